"""The frozen language model as engines run it: whole on each GPU, or in shares of ZeRO-3."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from denserl.data.batching import ResponseBatch
from denserl.models.scoring import token_logprob_entropy
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.engine import deepspeed_config, frozen_engine


class PolicyModule(nn.Module):
    """A language model whose forward gives log-probabilities and entropies of given tokens, so that an engine can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kw: Any) -> tuple[Tensor, Tensor | None]:
        return token_logprob_entropy(self.model, *args, **kw)


def in_shares(
    config: OptimisationConfig, dtype: str, device: torch.device
) -> Callable[[PreTrainedModel], Callable[[ResponseBatch], Tensor]] | None:
    """What spreads a frozen language model over the ranks (see `prepare_pairs`); None below ZeRO-3, where each has it whole."""
    if config.zero_stage < 3:
        return None
    engine_config = {**deepspeed_config(config, dtype, 1, 1), "zero_optimization": {"stage": 3}}

    def spread(model: PreTrainedModel) -> Callable[[ResponseBatch], Tensor]:
        engine = frozen_engine(PolicyModule(model), engine_config, device)

        def read(batch: ResponseBatch) -> Tensor:
            width = batch.response_mask.shape[1]
            return torch.stack(engine(*batch[:3], response_length=width, shared=batch.shared), -1)

        return read

    return spread
