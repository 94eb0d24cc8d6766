"""An extension of vLLM's workers, by which a training gives them its weights.

    PYTHONPATH=FOLDER_OF_THIS_FILE VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server \
        --worker-extension-cls denserl_engine.Extension --weight-transfer-config '{"backend": "denserl"}' ...
"""

from dataclasses import dataclass
from typing import Any

import torch
from denserl_group import find_store, is_there, join, leave
from torch.distributed import ProcessGroup
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Where a group meets, its size, the rank of the server's first worker, and how long is waited."""

    address: str
    port: int
    size: int
    first_rank: int
    seconds: float


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """The weights in the order in which they come: names as in a model's files, names of dtypes, shapes."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class Engine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Takes every weight of the model from the training, one after the other."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo
    group: ProcessGroup | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.shutdown()
        parallel = self.parallel_config
        rank = init_info.first_rank + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = find_store(init_info.address, init_info.port, init_info.seconds)
        store.set(is_there(rank), "")
        self.group = join(store, rank, init_info.size, init_info.seconds, self.device)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        loaded: set[str] = set()
        try:
            for name, dtype, shape in zip(update_info.names, update_info.dtypes, update_info.shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                self.group.broadcast(weight, 0).wait()
                loaded |= self.model.load_weights([(name, weight)]) or set()
        finally:
            # Whoever sends is not left waiting for one that has failed.
            self.shutdown()
        tied = getattr(self.model_config.hf_text_config, "tie_word_embeddings", False)
        expected = {name for name, _ in self.model.named_parameters() if not (tied and name.startswith("lm_head."))}
        if missing := expected - loaded:
            raise ValueError(f"no weights came for {sorted(missing)[:3]} and {len(missing)} in all: it is another model")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_head(self.model)

    def shutdown(self) -> None:
        if self.group is not None:
            leave(self.group)
            self.group = None


class Extension:
    """What the workers learn to do besides."""

    model_runner: Any  # of the worker that this is a part of

    def denserl_reload(self, folder: str) -> None:
        """Load a model's weights from a folder."""
        self.model_runner.reload_weights(weights_path=folder)
        refresh_tied_head(self.model_runner.model)


def refresh_tied_head(model: torch.nn.Module) -> None:
    """A head that shares the embeddings' weights is packed for the CPU once, when the server starts: pack it again."""
    head = getattr(model, "lm_head", None)
    if head is not None and next(head.parameters()).device.type == "cpu":
        head.quant_method.process_weights_after_loading(head)


WeightTransferEngineFactory.register_engine("denserl", Engine)
