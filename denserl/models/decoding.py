"""Decoding with packed models (packing.py): a prompt is read once, then every row under way gets one token at a time.

Keys and values stand in groups of rows of like length, so that little padding is attended to; all else runs on the rows of
all groups together. Between changes of the rows a step has the same shapes on the same memory, and nothing that the host knows
is part of it, so that it is recorded where there is a GPU (recording.py). transformers' StaticCache has such shapes, but one
place for the newest token of all rows, so that none can join. Sampling and end-of-row checks are done by the caller.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import GenerationConfig, PreTrainedModel

from denserl.data.batching import length_batches, pad_rows
from denserl.models.measured import stock_model
from denserl.models.packing import Attending, Packing, not_packable, packed_inputs
from denserl.models.recording import Recorded
from denserl.models.row_attention import BACKENDS
from denserl.models.scoring import head_reads

# The share of its columns, those of tokens to come included, that a group may pad in its shortest row.
PADDING = 0.2
# Columns that a group has room for are a multiple of it, which kernels like, and as many are added at a time, or an eighth.
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
        groups = [
            Group(lengths[run], sources[run], self.stock.dtype, self.stock.device)
            for run in _alike(lengths, self.max_new_tokens)
        ]
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
        return torch.cat([group.attend(module, *part, kw.get("scaling")) for group, *part in parts])[None]

    def _read(self, prompts: list[tuple[int, ...]], first: int, groups: list["Group"]) -> Tensor:
        """(prompts, V) logits after some prompts, whose keys and values go to groups. first: the number of the first."""
        packing = _Prompts([len(prompt) for prompt in prompts], first, groups)
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=self.stock.device)
        lasts = torch.tensor(packing.counts).cumsum(0) - 1
        with head_reads(self.stock.get_output_embeddings(), lasts.to(tokens.device)):
            return self._logits(tokens, packing.positions.to(tokens.device), packing)

    def _one_token(self, tokens: Tensor) -> Tensor:
        self.layers.clear()
        positions = torch.cat([group.advance() for group in self.groups])
        return self._logits(tokens, positions, self)

    def _logits(self, tokens: Tensor, positions: Tensor, packing: Attending) -> Tensor:
        return self.model(**packed_inputs(tokens, positions, packing), use_cache=False).logits[0].float()


class Seen(NamedTuple):
    """What a step needs to know of layers whose keys and values have some number of slots."""

    slot: Tensor  # (1,) long, where the newest token stands
    mask: Tensor  # (rows, 1, 1, slots), added to the attention: 0 where a slot holds a token of the row, else -inf


class Group:
    """Keys and values of some rows, side by side, padded on the left to one width.

    A layer has as many slots as columns have room, or as its window sees; the token of column c stands in slot c modulo their
    number, so that a window's slots are written over and over.

    Args:
        lengths: of the rows' prompts, in tokens, the longest first.
        sources: the prompt of each row, by its number among those that are read together.
        dtype, device: of the attention.

    Attributes:
        width: columns with tokens. columns: those that there is room for. On the host.
        column: (1,) long, the newest one. padding: (rows,) long, columns before a row's first token. On the device.
    """

    def __init__(self, lengths: list[int], sources: list[int], dtype: torch.dtype, device: torch.device):
        self.width, self.sources, self.dtype = lengths[0], sources, dtype
        self.columns = room(self.width + 1)
        self.column = torch.tensor([self.width - 1], device=device)
        self.padding = torch.tensor([self.width - length for length in lengths], device=device)
        self.windows: dict[int, int | None] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.seen: dict[int, Seen] = {}

    def __len__(self) -> int:
        return len(self.padding)

    def fill(self, layer: int, window: int | None, first: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Take over a layer's keys and values of some prompts, each (1, heads, length, dim); first: the number of the first."""
        self.windows[layer] = window
        slots = self._slots(layer)
        for held, read in ((self.keys, keys), (self.values, values)):
            if layer not in held:
                held[layer] = read[0].new_zeros(len(self), read[0].shape[1], slots, read[0].shape[3])
            for row, source in enumerate(self.sources):
                if first <= source < first + len(read):
                    last = read[source - first][0, :, -slots:]
                    places = torch.arange(self.width - last.shape[1], self.width, device=last.device) % slots
                    held[layer][row].index_copy_(1, places, last)

    def grow(self) -> None:
        """Make room for further columns."""
        self.columns = room(self.columns + growth(self.columns))
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                held[layer] = pad(tensor, (0, 0, 0, self._slots(layer) - tensor.shape[2]))

    def advance(self) -> Tensor:
        """Go on to the next column; (rows,) long positions of its tokens in their rows."""
        self.column += 1
        self.seen.clear()
        return self.column - self.padding

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of the rows' newest tokens, (rows, heads, dim), written to their slot before."""
        slot, mask = self._seen(self.keys[module.layer_idx].shape[2])
        past = self.keys[module.layer_idx], self.values[module.layer_idx]
        for tensor, new in zip(past, (key, value), strict=True):
            tensor.index_copy_(2, slot, new[:, :, None])
        # Heads that share their keys are queries of one head, so that keys are not repeated.
        query = query.unflatten(1, (key.shape[1], -1))
        return scaled_dot_product_attention(query, *past, mask, scale=scale).flatten(1, 2)

    def keep(self, rows: list[int]) -> None:
        """Drop all but some rows."""
        index = torch.tensor(rows, device=self.padding.device)
        self.padding = self.padding[index]
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                held[layer] = tensor.index_select(0, index)

    def _slots(self, layer: int) -> int:
        return min(self.columns, self.windows[layer] or self.columns)

    def _seen(self, slots: int) -> Seen:
        """Made by the first layer of a step that asks."""
        if slots not in self.seen:
            # The column of the newest token that stands in each slot; negative where there was none.
            ago = (self.column - torch.arange(slots, device=self.column.device)) % slots
            hidden = self.column - ago < self.padding[:, None]
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device).masked_fill(hidden, -torch.inf)
            self.seen[slots] = Seen(self.column % slots, mask[:, None, None])
        return self.seen[slots]


class _Prompts(Packing):
    """Prompts, one after another, whose keys and values go to the groups of the rows that begin with them."""

    def __init__(self, lengths: list[int], first: int, groups: list[Group]):
        super().__init__(pad_rows([[1] * length for length in lengths], 0), None)
        self.first, self.groups = first, groups
        self.layers: set[int] = set()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        _enter(module, self.layers)
        read = [x.split(self.counts, 2) for x in (key, value)]
        for group in self.groups:
            group.fill(module.layer_idx, kw.get("sliding_window"), self.first, *read)
        return super().attend(module, query, key, value, **kw)


def room(columns: int) -> int:
    """Columns that there is room for where so many are asked for."""
    return -(-columns // ROOM) * ROOM


def growth(columns: int) -> int:
    """How many more columns a group of so many is given."""
    return max(ROOM, columns // 8)


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
