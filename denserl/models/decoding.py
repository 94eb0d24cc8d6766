"""Decoding with packed models (packing.py): a prompt is read once, then every row under way gets one token at a time.

Keys and values stand in groups of rows of like length, so that little padding is attended to; all else runs on the rows of
all groups together. Between changes of the rows a step has the same shapes on the same memory, and nothing that the host knows
is part of it, so that it is recorded where there is a GPU (recording.py). transformers' StaticCache has such shapes, but one
place for the newest token of all rows, so that none can join. Sampling and end-of-row checks are done by the caller.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import GenerationConfig, PreTrainedModel

from denserl.data.batching import length_batches, pad_rows
from denserl.models.measured import measured, stock_model
from denserl.models.packing import Attending, Packing, not_packable, packed_inputs
from denserl.models.recording import Recorded
from denserl.models.row_attention import BACKENDS
from denserl.models.scoring import head_reads
from denserl.models.varlen import Asked, Kernel, Sequences, runs_on

# The share of its columns, those of tokens to come included, that a group may pad in its shortest row.
PADDING = 0.2
# Columns that a group has room for are a multiple of it, which kernels like, and as many are added at a time, or a quarter.
ROOM = 32
# Tokens of prompts that are read at a time, or one prompt.
PROMPT_TOKENS = 8192


class Decoder:
    """Rows under way in a packed causal language model, which may have adapters around it and is in evaluation mode.

    Args:
        max_new_tokens: how many tokens a row is expected to get at most.
    """

    def __init__(self, model: nn.Module, max_new_tokens: int):
        self.model, self.max_new_tokens = model, max_new_tokens
        self.stock = stock_model(model)
        self.dtype, self.device = self.stock.dtype, self.stock.device
        found = measured(model)
        self.by_kernel = found is None or not found.masked
        self.groups: list[Group] = []
        self.layers: set[int] = set()
        self.one_token = Recorded(self._one_token, type(self.stock).__name__)
        # Weights that ZeRO-3 gathers for each pass are elsewhere in the next.
        self.one_token.can_record = not any(hasattr(parameter, "ds_id") for parameter in model.parameters())

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def admit(self, prompts: list[list[int]]) -> Tensor:
        """Add rows after those under way, the longest prompt first; (rows, V) logits of their next tokens.

        A prompt of several rows is read once.
        """
        numbers: dict[tuple[int, ...], int] = {}
        sources = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        lengths = [len(prompt) for prompt in prompts]
        groups = [Group(lengths[run], sources[run], self.dtype, self.device) for run in _alike(lengths, self.max_new_tokens)]
        read = list(numbers)
        # The longest come first, so that what is read at a time has numbers in a row.
        passes = length_batches([len(prompt) for prompt in read], PROMPT_TOKENS)
        logits = [self._read([read[number] for number in part], part[0], groups) for part in passes]
        self.groups += groups
        self.one_token.forget()
        return torch.cat(logits)[sources]

    def step(self, tokens: Tensor) -> Tensor:
        """Give every row one token, (rows,) long; (rows, V) logits of the next ones, until the next step."""
        if any(group.width == group.columns for group in self.groups):
            # All at a time, since the step is recorded anew.
            for group in self.groups:
                group.grow()
            self.one_token.forget()
        for group in self.groups:
            group.width += 1
        with sdpa_kernel(BACKENDS):
            return self.one_token(tokens)

    def keep(self, rows: list[int]) -> None:
        """Drop all but some rows, given by number in ascending order."""
        kept, first = [], 0
        for group in self.groups:
            mine = [row - first for row in rows if first <= row < first + len(group)]
            first += len(group)
            if 0 < len(mine) < len(group):
                group.keep(mine)
            if mine:
                kept.append(group)
        self.groups = kept
        self.one_token.forget()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        """Attention of each row's newest token, (1, heads, rows, dim), to its row (see `packing.Attending`)."""
        _enter(module, self.layers)
        sizes = [len(group) for group in self.groups]
        parts = zip(self.groups, *(x[0].transpose(0, 1).split(sizes) for x in (query, key, value)), strict=True)
        return torch.cat([group.attend(module.layer_idx, *part, kw.get("scaling")) for group, *part in parts])[None]

    def _read(self, prompts: list[tuple[int, ...]], first: int, groups: list["Group"]) -> Tensor:
        """(prompts, V) logits after some prompts, whose keys and values go to groups. first: the number of the first."""
        packing = _Prompts([len(prompt) for prompt in prompts], first, groups, self.by_kernel)
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=self.stock.device)
        lasts = torch.tensor(packing.counts).cumsum(0) - 1
        with head_reads(self.stock.get_output_embeddings(), lasts.to(tokens.device)):
            return self._logits(tokens, packing.positions.to(tokens.device), packing)

    def _one_token(self, tokens: Tensor) -> Tensor:
        self.layers.clear()
        positions = torch.cat([group.advance() for group in self.groups])
        return self._logits(tokens, positions.to(tokens.device), self)

    def _logits(self, tokens: Tensor, positions: Tensor, packing: Attending) -> Tensor:
        return self.model(**packed_inputs(tokens, positions, packing), use_cache=False).logits[0].float()


class NarrowDecoder(Decoder):
    """The same, with attention on a device in a narrow type whatever the model's are, by a kernel or under masks."""

    def __init__(self, model: nn.Module, max_new_tokens: int, dtype: torch.dtype, device: torch.device, by_kernel: bool):
        super().__init__(model, max_new_tokens)
        self.dtype, self.device, self.by_kernel = dtype, device, by_kernel

    def _logits(self, tokens: Tensor, positions: Tensor, packing: Attending) -> Tensor:
        return super()._logits(tokens, positions, _Narrow(packing, self.dtype, self.device))


class _Narrow(NamedTuple):
    packing: Attending
    dtype: torch.dtype
    device: torch.device

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        narrow = (x.to(self.device, self.dtype) for x in (query, key, value))
        return self.packing.attend(module, *narrow, **kw).to(query.device, query.dtype)


@dataclass
class Past:
    """Keys and values of a layer, (rows, heads, slots, dim), or where a kernel reads them (rows, slots, heads, dim).

    The token at position p of a row stands in slot p modulo their number, so that a window's slots are written over and over.
    """

    window: int | None
    kernel: Kernel | None
    keys: Tensor
    values: Tensor

    def by_slot(self) -> tuple[Tensor, Tensor]:
        """Views of keys and values, (rows, slots, heads, dim)."""
        return (self.keys, self.values) if self.kernel else (self.keys.transpose(1, 2), self.values.transpose(1, 2))

    def grow(self, columns: int) -> None:
        """Make room for rows of so many tokens."""
        more = _slots(columns, self.window) - self.by_slot()[0].shape[1]
        edges = (0, 0, 0, 0, 0, more) if self.kernel else (0, 0, 0, more)
        self.keys, self.values = pad(self.keys, edges), pad(self.values, edges)

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


class Group:
    """Rows of like length, and their keys and values.

    Args:
        lengths: of the rows' prompts, in tokens, the longest first.
        sources: the prompt of each row, by its number among those that are read together.
        dtype, device: of the attention.

    Attributes:
        width: tokens of the longest row. columns: for how many there is room. On the host.
        position: (rows,) long, of each row's newest token. On the device.
    """

    def __init__(self, lengths: list[int], sources: list[int], dtype: torch.dtype, device: torch.device):
        self.width, self.sources, self.dtype = lengths[0], sources, dtype
        self.columns = room(self.width + 1)
        self.position = torch.tensor(lengths, device=device) - 1
        self.layers: dict[int, Past] = {}
        # Of a step, by the slots of those layers that use them.
        self.places: dict[int, tuple[Tensor, Tensor]] = {}
        self.masks: dict[int, Tensor] = {}
        self.sequences: dict[int, Sequences] = {}

    def __len__(self) -> int:
        return len(self.position)

    def make(self, layer: int, window: int | None, kernel: Kernel | None, key: Tensor, value: Tensor) -> None:
        """Make room for a layer's keys and values, which are like those of a packed row, (1, heads, N, dim)."""
        slots = _slots(self.columns, window)
        shape = (len(self), slots, key.shape[1]) if kernel else (len(self), key.shape[1], slots)
        self.layers[layer] = Past(window, kernel, *(x.new_zeros(*shape, x.shape[3]) for x in (key, value)))

    def fill(self, layer: int, first: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Take over keys and values of some prompts, each (length, heads, dim). first: the number of the first."""
        for held, read in zip(self.layers[layer].by_slot(), (keys, values), strict=True):
            slots = held.shape[1]
            for row, source in enumerate(self.sources):
                if first <= source < first + len(read):
                    whole = read[source - first]
                    places = torch.arange(max(0, len(whole) - slots), len(whole), device=whole.device) % slots
                    held[row].index_copy_(0, places, whole[-slots:])

    def grow(self) -> None:
        """Make room for further columns."""
        self.columns = room(self.columns + growth(self.columns))
        for past in self.layers.values():
            past.grow(self.columns)

    def advance(self) -> Tensor:
        """Go on to the next tokens; (rows,) long, their positions in their rows."""
        self.position += 1
        for made in (self.places, self.masks, self.sequences):
            made.clear()
        return self.position

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of the rows' newest tokens, (rows, heads, dim), written to their slots before: by a kernel, or a mask."""
        past = self.layers[layer]
        keys, values = past.by_slot()
        slots = keys.shape[1]
        for held, new in ((keys, key), (values, value)):
            held.index_put_(self._places(slots), new)
        # Heads that share their keys are queries of one head, so that keys are not repeated.
        query = query.unflatten(1, (key.shape[1], -1))
        if past.kernel is None:
            return sdpa(query, past.keys, past.values, self._mask(slots), scale=scale).flatten(1, 2)
        queries, where = query.transpose(1, 2).flatten(0, 1), self._sequences(slots, query.shape[2])
        inputs = queries, keys.flatten(0, 1), values.flatten(0, 1), where, Asked(scale, 0.0, None, causal=False)
        return past.kernel.run(past.kernel.function(), *inputs).unflatten(0, (len(self), -1)).transpose(1, 2).flatten(1, 2)

    def keep(self, rows: list[int]) -> None:
        """Drop all but some rows."""
        index = torch.tensor(rows, device=self.position.device)
        self.position = self.position[index]
        for past in self.layers.values():
            past.keep(index)

    def _places(self, slots: int) -> tuple[Tensor, Tensor]:
        """Rows, and where their newest tokens stand among so many slots."""
        if slots not in self.places:
            self.places[slots] = torch.arange(len(self), device=self.position.device), self.position % slots
        return self.places[slots]

    def _mask(self, slots: int) -> Tensor:
        """(rows, 1, 1, slots), added to the attention: 0 where a slot holds a token of the row, else -inf."""
        if slots not in self.masks:
            hidden = torch.arange(slots, device=self.position.device) > self.position[:, None]
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill(hidden, -torch.inf)
            self.masks[slots] = mask[:, None, None]
        return self.masks[slots]

    def _sequences(self, slots: int, queries: int) -> Sequences:
        """Where a kernel finds the rows, of so many queries each: the slots that are not taken yet are rows without queries."""
        if slots not in self.sequences:
            row = torch.arange(len(self) + 1, device=self.position.device)
            ends = row[:-1] * slots + (self.position + 1).clamp(max=slots)
            key_starts = torch.cat([torch.stack([row[:-1] * slots, ends], 1).flatten(), row[-1:] * slots])
            query_starts = (row * queries)[:, None].expand(-1, 2).flatten()[1:]
            # Of rows of one query some kernels believe that none is without.
            self.sequences[slots] = Sequences(query_starts.int(), key_starts.int(), max(2, queries), slots, None)
        return self.sequences[slots]


class _Prompts(Packing):
    """Prompts, one after another, whose keys and values go to the groups of the rows that begin with them."""

    def __init__(self, lengths: list[int], first: int, groups: list[Group], by_kernel: bool):
        super().__init__(pad_rows([[1] * length for length in lengths], 0), None)
        self.first, self.groups, self.by_kernel = first, groups, by_kernel
        self.layers: set[int] = set()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        _enter(module, self.layers)
        kernel: Kernel | None = kw.get("kernel") if self.by_kernel else None
        if kernel is not None and (not runs_on(query) or kernel.refuses(query, value, Asked(kw.get("scaling"), 0.0, None))):
            kernel = None
        for group in self.groups:
            if module.layer_idx not in group.layers:
                group.make(module.layer_idx, kw.get("sliding_window"), kernel, key, value)
            group.fill(module.layer_idx, self.first, *(x[0].transpose(0, 1).split(self.counts) for x in (key, value)))
        return super().attend(module, query, key, value, **kw)


def _slots(columns: int, window: int | None) -> int:
    """How many slots a layer has for a row of so many tokens at most."""
    return min(columns, window or columns)


def room(columns: int) -> int:
    """Columns that there is room for where so many are asked for."""
    return -(-columns // ROOM) * ROOM


def growth(columns: int) -> int:
    """How many more columns a group of so many is given."""
    return max(ROOM, columns // 4)


def _enter(module: nn.Module, layers: set[int]) -> None:
    """Note the layer; UserError where it attends twice in one pass, since it has but one place for keys and values."""
    if module.layer_idx in layers:
        raise not_packable(module, f"layer {module.layer_idx} attends more than once in a pass")
    layers.add(module.layer_idx)


def _alike(lengths: list[int], max_new_tokens: int) -> Iterator[slice]:
    """Runs of descending lengths in which no row is padded by more than PADDING of its group's columns."""
    first = 0
    for row in range(1, len(lengths) + 1):
        if row == len(lengths) or lengths[row] + max_new_tokens < (1 - PADDING) * (lengths[first] + max_new_tokens):
            yield slice(first, row)
            first = row


@contextlib.contextmanager
def plain_settings(model: PreTrainedModel):
    """The model's own generation settings set aside: a repetition penalty, say, would bend the distribution that is trained."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = kept
