"""Padding removed: the real tokens of a batch in one row, a prompt that rows share only once, attention within each sequence.

All but attention works token by token and sees no difference. Whether that is so of a model is found by running it when it is
loaded (probe.py); others run on padded batches.
"""

import functools
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from denserl.data.batching import SharedPrompts
from denserl.errors import UserError
from denserl.models.measured import Measured, check_longest, measured
from denserl.models.row_attention import BACKENDS, Masks, row_attention
from denserl.models.varlen import FLASH_ATTN, TORCH, Asked, Kernel, Sequences, runs_on, sequences_of, tell

# Names that transformers is told, with the kernel that attends to all rows at once where it runs. One with flash in it would be
# taken for a kernel of the library's own.
PACKED_ATTENTION, PACKED_FLASH, PACKED_ROWS = "denserl_packed", "denserl_packed_fa2", "denserl_packed_rows"
KERNELS = {PACKED_ATTENTION: TORCH, PACKED_FLASH: FLASH_ATTN, PACKED_ROWS: None}
NO_MASK = (1, 1, 1, 1)
# On the CPU shorter prompts are read with each row: keys that are put together, and a mask, cost more than they save. Time of
# an RM step of pairs (4x128, one thread) that shares none, against one that shares: 0.82 for prompts of 2 tokens, 0.88 to
# 0.92 for 8, 1.00 to 1.10 for 16, 1.04 for 64, 1.24 for 192; responses of 64 and 300 tokens. Eight rows to a prompt of 8: 0.99.
SHORTEST_SHARED = 16
# What attention may be told in numbers beside queries, keys and values; any other may change what it attends to, and how.
HONOURED = {"dropout", "scaling", "position_ids", "cache_position"}


class Attending(Protocol):
    """Attention of the tokens of a packed row; query, key, value: (1, heads, N, dim) -> (1, N, heads, dim)."""

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor: ...


class Packing:
    """A padded batch of B rows and S slots in one row of N tokens, row after row. Made on the host.

    Row b gives the tokens after its first `prefixes[b]`, which are those of row `owners[b]`.

    Attributes:
        counts, prefixes, owners: lists of B numbers.
        tokens: (N,) long, the place of each packed token in the flattened batch.
        positions: (N,) long, each token's place in its row.
        slots: (B, S) long, where in the packed row a padded slot's token stands; 0 for padding.
    """

    def __init__(self, attention_mask: Tensor, shared: SharedPrompts | None):
        mask = attention_mask.cpu().bool()
        position = position_ids(mask)
        rows = torch.arange(len(mask))
        owners = rows if shared is None else shared.row.cpu()
        prefix = torch.zeros_like(rows) if shared is None else torch.where(owners == rows, 0, shared.length.cpu())
        own = mask & (position >= prefix[:, None])
        counts = own.sum(1)
        first = counts.cumsum(0) - counts
        base = torch.where(position < prefix[:, None], first[owners, None], (first - prefix)[:, None])
        self.counts, self.prefixes, self.owners = counts.tolist(), prefix.tolist(), owners.tolist()
        self.tokens, self.positions = own.flatten().nonzero().squeeze(1), position[own]
        self.slots = torch.where(mask, base + position, 0)
        self.masks = Masks(max(self.counts), int((counts + prefix).max()))
        self._rows = counts, prefix, owners

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        """Attention of each row's tokens with one another, and with the prompt that they share.

        kw: `kernel` attends to all rows at once on the devices, in the types and for the requests that it takes.
        """
        kernel: Kernel | None = kw.pop("kernel", None)
        if kernel is not None and runs_on(query):
            causal = kw.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            asked = Asked(kw.get("scaling"), kw.get("dropout", 0.0), kw.get("sliding_window"))
            why = kernel.refuses(query, value, asked) if causal else "it is not marked as causal"
            if not why:
                return kernel(query, key, value, self._sequences_on(query.device), asked)
            self.refused(kernel, why)
        return self._row_by_row(module, query, key, value, **kw)

    def refused(self, kernel: Kernel, why: str) -> None:
        """What is done where a kernel does not take what is asked; rows are attended to one by one then."""
        tell(kernel.name, why)

    @functools.cached_property
    def sequences(self) -> Sequences:
        """Where the kernels find the rows."""
        return sequences_of(*self._rows)

    def _sequences_on(self, device: torch.device) -> Sequences:
        """Sent once for all layers."""
        self.sequences = self.sequences.to(device)
        return self.sequences

    def _row_by_row(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        keys, values = key.split(self.counts, 2), value.split(self.counts, 2)
        outputs: list[Tensor] = []
        rows = zip(query.split(self.counts, 2), keys, values, self.prefixes, self.owners, strict=True)
        with sdpa_kernel(BACKENDS):
            for q, k, v, prefix, owner in rows:
                if prefix:
                    k, v = (torch.cat([whole[owner][:, :, :prefix], own], 2) for whole, own in ((keys, k), (values, v)))
                if q.shape[2]:
                    outputs += row_attention(module, q, k, v, self.masks, **kw)
        return torch.cat(outputs, 1)


def is_packed(model: nn.Module) -> bool:
    """Whether it runs without padding (`probe.run_as`); asked of a stock model, or of one with adapters around it."""
    return model.config.get_text_config()._attn_implementation in KERNELS


def packed_name(found: Measured) -> str:
    """The attention of a model that runs without padding, by what was found of it."""
    if found.row_by_row:
        return PACKED_ROWS
    return PACKED_FLASH if found.attention.startswith("flash") else PACKED_ATTENTION


def lay_out(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, shared: SharedPrompts | None) -> tuple[dict, Tensor]:
    """What the model is called with for a padded batch, and where in its flattened output each padded slot is found.

    Args:
        model: a stock one, packed or not (`is_packed`).
        input_ids, attention_mask: (B, S); a row's real tokens are contiguous.
        shared: prompts that rows have in common, or None.

    Returns: keyword arguments, and (B, S) long places on the device of input_ids, of no meaning for padding.

    Raises:
        UserError: a row longer than the model's positions allow (see `measured.check_longest`).
    """
    if measured(model) and measured(model).longest is not None:
        check_longest(model, int(attention_mask.sum(1).max()))
    device = input_ids.device
    if not is_packed(model):
        mask = attention_mask.to(device, non_blocking=True)
        inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids(mask)}
        return inputs, torch.arange(input_ids.numel(), device=device).view(input_ids.shape)
    packing = Packing(attention_mask, worth_sharing(shared, device))
    tokens, positions, slots = (x.to(device, non_blocking=True) for x in (packing.tokens, packing.positions, packing.slots))
    return packed_inputs(input_ids.flatten()[tokens], positions, packing), slots


def worth_sharing(shared: SharedPrompts | None, device: torch.device) -> SharedPrompts | None:
    """The shared prompts that are read once on a device; others are read with each of their rows."""
    if shared is None or device.type != "cpu":
        return shared
    row, length = (x.cpu() for x in shared)
    return SharedPrompts(torch.where(length < SHORTEST_SHARED, torch.arange(len(row)), row), length)


def packed_inputs(input_ids: Tensor, positions: Tensor, packing: Attending) -> dict:
    """What a packed model is called with for N tokens; input_ids, positions: (N,) long."""
    # A mask of four dimensions is handed to attention as it is, which only looks whether it is this one.
    mask = torch.zeros(NO_MASK, device=input_ids.device)
    return {"input_ids": input_ids[None], "attention_mask": mask, "position_ids": positions[None], "packing": packing}


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from each row's first real token, so that padding on the left changes nothing. (B, S) long."""
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Attending | None = None,
    **kw: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' sdpa attention, or what `packing` says; registered with transformers, which knows the arguments.

    Raises:
        UserError: the model does not hand on the packing, or makes a mask of its own.
    """
    marked = attention_mask is not None and attention_mask.shape == NO_MASK
    if packing is None and not (marked and key.shape[2] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kw)
    unread = sorted(name for name, value in kw.items() if isinstance(value, (Tensor, float)) and name not in HONOURED)
    if unread:
        raise not_packable(module, f"its attention is given {', '.join(unread)}, which packed attention does not read")
    if packing is None or not marked:
        raise not_packable(module, "it keeps from its attention how the batch is laid out, or masks it in a way of its own")
    return packing.attend(module, query, key, value, **kw), None


def not_packable(module: nn.Module, why: str) -> UserError:
    """The error for a model that cannot run without padding; the probe takes it for the reason to run it with padding."""
    return UserError(f"{type(module).__name__} cannot run without padding: {why}", "add `attention` eager")


for name, kernel in KERNELS.items():
    AttentionInterface.register(name, functools.partial(packed_attention, kernel=kernel))
    AttentionMaskInterface.register(name, sdpa_mask)
