"""Directions that features are told apart by, learned beside a reward head while it trains, and not saved with it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

# What they are called beside `score`.
PROTOTYPES = "prototypes"


class Prototypes(nn.Module):
    """K directions: (..., hidden) features -> (..., K) fp32 cosines with them (arXiv 2006.09882).

    Of the weight's rows only the directions count. It is no nn.Linear, which would be given adapters.
    """

    def __init__(self, hidden: int, number: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, hidden, dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        # Here, where ZeRO-3 has made the weight whole, and takes its gradient.
        return normalize(features.float(), dim=-1) @ normalize(self.weight.float(), dim=-1).T


def attach_prototypes(model: PreTrainedModel, number: int, seed: int) -> None:
    """Give a reward model, as `model.prototypes`, so many of them, drawn the same on every rank; saving leaves them out."""
    head = next(module for module in model.score.modules() if isinstance(module, nn.Linear))
    made = Prototypes(head.in_features, number, head.weight.dtype)
    drawn = torch.empty(made.weight.shape).normal_(generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        made.weight.copy_(normalize(drawn, dim=-1))
    model.prototypes = made.to(head.weight.device)
    model._keys_to_ignore_on_save = [*(model._keys_to_ignore_on_save or ()), f"{PROTOTYPES}.weight"]
