"""Attention of one sequence's last tokens to all of it, by torch's scaled dot products, in memory that grows with the length.

Where plain causal attention does not say what is seen (a prompt is read elsewhere, or a window ends), queries go in blocks,
each with the keys that it sees, under a mask of one block that all share.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

# Queries that are attended to at once under a mask. A mask has so many rows, and more work is done for what it hides.
BLOCK = 256
# Kernels on CUDA read a mask 16 bytes at a time, and check neither where it begins nor whether it is a part of another: every
# row of it begins at a multiple of so many numbers.
ALIGNED = 8
# cuDNN's attention, which torch may prefer on CUDA, makes a plan for every new shape.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Masks:
    """What is added to the attention of blocks of queries, made once for each window; see `of`."""

    def __init__(self, queries: int, keys: int):
        """For rows of at most so many queries and keys."""
        self.queries, self.keys = min(queries, BLOCK), keys
        self.made: dict[tuple[int | None, int], Tensor] = {}

    def of(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """(1, 1, queries, keys): 0 where the last of so many queries, at the last of so many keys, see one; else -inf.

        What a query sees depends on how far before the last key it and the others stand, so that all masks are the lower right
        corners of one; of one for each remainder of `keys` by ALIGNED, so that corners begin where kernels can read them. They
        are no copies, since a backward pass would keep each.
        """
        remainder = keys % ALIGNED
        if (window, remainder) not in self.made:
            widest = self.keys if window is None else min(self.keys, seen_by(self.queries, window))
            widest += (remainder - widest) % ALIGNED
            aligned = like.new_empty(1, 1, self.queries, widest + -widest % ALIGNED)[..., :widest]
            self.made[window, remainder] = aligned.copy_(_mask(self.queries, widest, window), non_blocking=True)
        return self.made[window, remainder][:, :, -queries:, -keys:]


def row_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, masks: Masks, **kw: Any) -> Iterator[Tensor]:
    """Attention of a sequence's last n tokens to themselves and all before them, in parts of some queries each.

    Args:
        query: (1, heads, n, dim). key, value: (1, key heads, N, dim).
        masks: for at least n queries and N keys.

    Returns: (1, queries, heads, dim) of each part, in order.
    """
    queries, keys, window = query.shape[2], key.shape[2], kw.get("sliding_window")
    if queries == keys and (window is None or window >= keys):
        yield sdpa_attention_forward(module, query, key, value, None, **kw)[0]
        return
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":
        # Elsewhere a mask and fewer key heads have no fused kernel in common.
        key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
    told = {"dropout_p": kw.get("dropout", 0.0), "scale": kw.get("scaling"), "enable_gqa": grouped}
    for first in range(0, queries, BLOCK):
        q = query[:, :, first : first + BLOCK]
        last = keys - queries + first + q.shape[2]
        seen = slice(0 if window is None else max(0, last - seen_by(q.shape[2], window)), last)
        mask = masks.of(q.shape[2], last - seen.start, window, q)
        yield scaled_dot_product_attention(q, key[:, :, seen], value[:, :, seen], mask, **told).transpose(1, 2)


def seen_by(queries: int, window: int) -> int:
    """How many keys the last queries of a sequence see together."""
    return queries + window - 1


def _mask(queries: int, keys: int, window: int | None) -> Tensor:
    # Places, counted back from the last one.
    query, key = torch.arange(queries).flip(0)[:, None], torch.arange(keys).flip(0)
    hidden = key < query if window is None else (key < query) | (key >= query + window)
    return torch.zeros(1, 1, queries, keys).masked_fill(hidden, -torch.inf)
