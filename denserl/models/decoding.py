"""Decoding with packed models (packing.py): a prompt is read once, then every row under way gets one token at a time.

Keys and values stand in groups of rows of like length, so that little padding is attended to; all else runs on the rows of
all groups together. Sampling and end-of-row checks are done by the caller.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from denserl.data.batching import pad_rows
from denserl.models.measured import stock_model
from denserl.models.packing import Attending, Packing, not_packable, packed_inputs
from denserl.models.scoring import head_reads

# The share of its columns, those of tokens to come included, that a group may pad in its shortest row.
PADDING = 0.2
# Columns that a group's keys and values grow by, at least.
ROOM = 64


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
        self.positions = torch.zeros(0, dtype=torch.long, device=self.stock.device)

    def admit(self, prompts: list[list[int]]) -> Tensor:
        """Add rows after those under way, the longest prompt first; (rows, V) logits of their next tokens.

        A prompt of several rows is read once.
        """
        numbers: dict[tuple[int, ...], int] = {}
        sources = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.stock.device)
        runs = _alike([len(prompt) for prompt in prompts], self.max_new_tokens)
        groups = [Group(lengths[run], sources[run], self.stock.dtype) for run in runs]
        packing = _Prompts([len(prompt) for prompt in numbers], groups)
        tokens = torch.tensor([token for prompt in numbers for token in prompt], device=lengths.device)
        lasts = torch.tensor(packing.counts).cumsum(0)[sources] - 1
        with head_reads(self.stock.get_output_embeddings(), lasts.to(lengths.device)):
            logits = self._logits(tokens, packing.positions.to(lengths.device), packing)
        self.groups += groups
        self.positions = torch.cat([self.positions, lengths])
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Give every row one token, (rows,) long; (rows, V) logits of the next ones."""
        for group in self.groups:
            group.advance()
        self.layers.clear()
        self.positions = self.positions + 1
        return self._logits(tokens, self.positions - 1, self)

    def keep(self, rows: list[int]) -> None:
        """Drop all but some rows, given by number in ascending order."""
        self.positions = self.positions[rows]
        kept, first = [], 0
        for group in self.groups:
            mine = [row - first for row in rows if first <= row < first + len(group)]
            first += len(group)
            if 0 < len(mine) < len(group):
                group.keep(mine)
            if mine:
                kept.append(group)
        self.groups = kept

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        """Attention of each row's newest token, (1, heads, rows, dim), to its row (see `packing.Attending`)."""
        _enter(module, self.layers)
        sizes = [len(group) for group in self.groups]
        parts = zip(self.groups, *(x.split(sizes, 2) for x in (query, key, value)), strict=True)
        return torch.cat([group.attend(module, *part, **kw) for group, *part in parts], 1)

    def _logits(self, tokens: Tensor, positions: Tensor, packing: Attending) -> Tensor:
        return self.model(**packed_inputs(tokens, positions, packing), use_cache=False).logits[0].float()


class Group:
    """Keys and values of some rows, side by side, padded on the left to one width.

    Args:
        lengths: (rows,) of the rows' prompts, in tokens.
        sources: the prompt of each row, by its number among those that are read together.
        dtype: of the attention.
    """

    def __init__(self, lengths: Tensor, sources: list[int], dtype: torch.dtype):
        self.width, self.sources = int(lengths[0]), sources
        hidden = torch.arange(self.width, device=lengths.device) < self.width - lengths[:, None]
        # (rows, 1, 1, columns), added to the attention.
        self.mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill(hidden, -torch.inf)[:, None, None]
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.mask)

    def fill(self, layer: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Take over a layer's keys and values of the prompts, each (1, heads, length, dim)."""
        for held, read in ((self.keys, keys), (self.values, values)):
            rows = [read[source][0] for source in self.sources]
            held[layer] = torch.stack([pad(row, (0, 0, self.width - row.shape[1], ROOM)) for row in rows])

    def advance(self) -> None:
        """Make a column for the next token of every row."""
        self.mask = pad(self.mask, (0, 1))
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                if tensor.shape[2] == self.width:
                    held[layer] = pad(tensor, (0, 0, 0, max(ROOM, self.width // 2)))
        self.width += 1

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        """Attention of the rows' newest tokens: (1, heads, rows, dim) -> (1, rows, heads, dim)."""
        window = kw.get("sliding_window") or self.width
        seen, past = slice(max(0, self.width - window), self.width), []
        for held, new in ((self.keys, key), (self.values, value)):
            tensor = held[module.layer_idx]
            tensor[:, :, self.width - 1] = new[0].transpose(0, 1)
            past.append(tensor[:, :, seen])
        query = query[0].transpose(0, 1)[:, :, None]
        return sdpa_attention_forward(module, query, *past, self.mask[..., seen], **kw)[0].transpose(0, 1)

    def keep(self, rows: list[int]) -> None:
        """Drop all but some rows."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                held[layer] = tensor.index_select(0, index)


class _Prompts(Packing):
    """Prompts, one after another, whose keys and values go to the groups of the rows that begin with them."""

    def __init__(self, lengths: list[int], groups: list[Group]):
        super().__init__(pad_rows([[1] * length for length in lengths], 0), None)
        self.groups = groups
        self.layers: set[int] = set()

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
        _enter(module, self.layers)
        for group in self.groups:
            group.fill(module.layer_idx, key.split(self.counts, 2), value.split(self.counts, 2))
        return super().attend(module, query, key, value, **kw)


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
