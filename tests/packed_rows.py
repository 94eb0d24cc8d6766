"""Rows that share prompts, of which a packed batch is made, and what attention gives of them by a loop over tokens."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

HEADS, KEY_HEADS = 4, 2


def module(causal: bool = True) -> SimpleNamespace:
    """As much of an attention module as is read."""
    return SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=causal)


def attention_inputs(tokens: int, width: int, key_heads: int = KEY_HEADS) -> list[Tensor]:
    """Queries, keys and values of a packed row, fp64: (1, heads, tokens, width)."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(1, heads, tokens, width) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in shapes]


def attention_by_hand(
    rows: list[Tensor], query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
) -> Tensor:
    """Every query of every row, and the keys that it sees, one by one: (1, tokens, heads, width).

    rows: where each row's tokens stand in the packed row, in order.
    """
    out: list[Tensor] = [query.new_zeros(0)] * query.shape[2]
    query, key, value = query[0], *(x[0].repeat_interleave(query.shape[1] // x.shape[1], 0) for x in (key, value))
    for places in rows:
        for i, place in enumerate(places.tolist()):
            seen = places[max(0, 0 if window is None else i + 1 - window) : i + 1]
            scores = (key[:, seen] * query[:, None, place]).sum(2) * scale
            out[place] = (scores.softmax(1)[:, :, None] * value[:, seen]).sum(1)
    return torch.stack(out)[None]


def with_gradients(attend: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """What attention gives, and the gradients of a weighted sum of it."""
    out = attend(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]
