"""Attention over a text of which a short row is but each so-many-th token, so that a window shows in a few tokens.

A window of thousands ends far beyond the rows that a probe can afford. Here masks are asked about places that many tokens apart
that each of the model's windows, however long and wherever the model keeps it, ends among a few.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from denserl.data.batching import ResponseBatch
from denserl.errors import UserError
from denserl.models.packing import Packing
from denserl.models.varlen import Kernel

STRETCHED = "denserl_stretched"
# The farthest token looked for in masks.
FAR = 2**22
# Windows are made to end among this many tokens.
WINDOW = 8


class StretchedPacking(Packing):
    """Packed attention in which windows are narrower, as in `_stretched_mask`."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        window = kw.get("sliding_window")
        if window:
            kw["sliding_window"] = -(-window // _stretch(window))
        return super().attend(module, query, key, value, **kw)


class NarrowPacking(StretchedPacking):
    """The same, computed on a device in a narrow type whatever the model's are, by the kernel for all rows or row by row."""

    def __init__(self, batch: ResponseBatch, dtype: torch.dtype, device: torch.device, by_kernel: bool):
        super().__init__(batch.attention_mask, batch.shared)
        self.dtype, self.device, self.by_kernel = dtype, device, by_kernel

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        narrow = (x.to(self.device, self.dtype) for x in (query, key, value))
        if not self.by_kernel:
            kw["kernel"] = None
        return super().attend(module, *narrow, **kw).to(query.device, query.dtype)

    def refused(self, kernel: Kernel, why: str) -> None:
        raise UserError(f"{kernel.name} does not serve this model: {why}", "add `attention` sdpa")


def _stretched_mask(mask_function: Callable = causal_mask_function, **kw: Any) -> Tensor:
    """transformers' mask of a longer text, of which the tokens are so many apart that a window ends among those of a short row.

    In this way a window, however long and wherever the model keeps it, shows in a few tokens.
    """
    device = kw["device"]
    zero, last = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device), FAR - 1
    distance = 2 ** torch.arange(FAR.bit_length() - 1, device=device).view(1, 1, 1, -1)
    seen = mask_function(zero, zero, zero + last, last - distance).expand(1, 1, 1, distance.numel()).flatten()
    factor = 1 if seen.all() else _stretch(int(distance.flatten()[~seen][0]))

    def stretched(row: Tensor, attention_head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_function(row, attention_head, query * factor, key * factor)

    return sdpa_mask(**{**kw, "mask_function": stretched, "allow_is_causal_skip": False})


def _stretch(window: int) -> int:
    """How far apart tokens stand so that a window, or the next power of two, ends within WINDOW of them."""
    return max(1, 2 ** (window - 1).bit_length() // WINDOW)


AttentionInterface.register(STRETCHED, sdpa_attention_forward)
AttentionMaskInterface.register(STRETCHED, _stretched_mask)
