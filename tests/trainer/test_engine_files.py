"""What DeepSpeed writes of an engine: each trained weight once, nothing that is frozen, and all that an exact resume needs."""

import copy
from pathlib import Path

import pytest
import tiny_models
import torch
import xxhash
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import nn

from denserl.models.gathering import gathered
from denserl.trainer import engine as engines
from denserl.trainer.config import OptimisationConfig

WORDS, WIDTH = 96, 32
TRAINED, FROZEN = WORDS * WIDTH + WIDTH, WIDTH * WIDTH
# Numbers beside weights and moments: a buffer, counts of steps, what flat groups are padded with.
BESIDE = 512


class Tied(nn.Module):
    """A table that is used twice, under two names, beside a frozen layer and a buffer."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        torch.manual_seed(seed)
        self.table, self.norm = nn.Embedding(WORDS, WIDTH), nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("seen", torch.tensor(float(seed)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(self.table(ids)))).float().square().mean()


@pytest.fixture(autouse=True)
def process_group():
    with tiny_models.restored_environment():
        engines.init_distributed(torch.device("cpu"))
        yield


def engine_of(module: nn.Module, stage: int, dtype: str) -> nn.Module:
    config = OptimisationConfig(zero_stage=stage, warmup_ratio=0.0)
    module = module.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    settings = engines.deepspeed_config(config, dtype, 1, 1)
    return engines.train_engine(module, settings, config, lr=1e-2, total_steps=9)


def step(engine: nn.Module) -> None:
    engine.backward(engine(torch.arange(WORDS)))
    engine.step()


def state(engine: nn.Module) -> dict[str, torch.Tensor]:
    with gathered(list(engine.module.parameters())):
        return copy.deepcopy(dict(engine.module.state_dict()))


def tensors_in(content: object) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else []
    return [tensor for part in inside for tensor in tensors_in(part)]


def numbers_in(folder: Path) -> int:
    """Bytes of all tensors in a folder's files, storage that is shared once."""
    storages = {}
    for path in folder.rglob("*.pt"):
        for tensor in tensors_in(torch.load(path, weights_only=False)):
            storage = tensor.untyped_storage()
            storages[path, storage.data_ptr()] = storage
    return sum(storage.nbytes() for storage in storages.values())


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("stage, dtype", [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "bf16")])
def test_weights_are_written_once_and_another_engine_goes_on_from_them_to_the_bit(stage, dtype, tmp_path):
    first = engine_of(Tied(1), stage, dtype)
    step(first)
    first.save_checkpoint(str(tmp_path), tag="state", save_latest=False)
    written = first.checkpoint_engine.take_written()
    saved = state(first)
    step(first)
    after = state(first)
    first.destroy()

    least = 12 * TRAINED  # a weight and its two moments, four bytes each
    assert least <= numbers_in(tmp_path) <= least + BESIDE
    files = list(tmp_path.rglob("*.pt"))
    assert {Path(path) for path in written} == set(files)
    for path, entry in written.items():
        content = Path(path).read_bytes()
        assert entry == {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}

    second = engine_of(Tied(2), stage, dtype)
    second.load_checkpoint(str(tmp_path), tag="state")
    assert same_bits(state(second), saved)
    step(second)
    assert same_bits(state(second), after)
    second.destroy()


def test_what_earlier_versions_wrote_is_read(tmp_path):
    """All weights of the module, the frozen ones too, beside those of the optimiser."""
    first = engine_of(Tied(1), 2, "bf16")
    step(first)
    first.checkpoint_engine = TorchCheckpointEngine()
    first.save_checkpoint(str(tmp_path), tag="state", save_latest=False, exclude_frozen_parameters=False)
    saved = state(first)
    first.destroy()
    assert numbers_in(tmp_path) >= 14 * TRAINED + 2 * FROZEN
    second = engine_of(Tied(2), 2, "bf16")
    second.load_checkpoint(str(tmp_path), tag="state")
    assert same_bits(state(second), saved)
    second.destroy()


def test_a_weight_that_a_checkpoint_lacks_is_missed(tmp_path):
    first = engine_of(Tied(1), 0, "fp32")
    step(first)
    first.save_checkpoint(str(tmp_path), tag="state", save_latest=False)
    first.destroy()
    other = Tied(2)
    other.more = nn.Linear(WIDTH, 1)
    second = engine_of(other, 0, "fp32")
    with pytest.raises(RuntimeError, match="more.weight"):
        second.load_checkpoint(str(tmp_path), tag="state")
    second.destroy()
