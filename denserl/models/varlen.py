"""Attention of all rows of a packed batch in one call of a kernel for sequences of unequal length, without a mask.

Such kernels run on CUDA, in bf16 and fp16: torch's own, from torch 2.11 on, and that of the package flash-attn. Elsewhere, and
for what they do not take (`Kernel.refuses`), rows are attended to one by one (row_attention.py).
"""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Where the kernels run, and in which types.
DEVICES: tuple[str, ...] = ("cuda",)
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
WIDEST = 256


class Sequences(NamedTuple):
    """Where the queries and keys of R rows stand among the tokens of a packed row; rows without queries are left out.

    A row's queries are the last of its keys: the n-th last one sees all keys but the last n - 1.
    """

    query_starts: Tensor  # (R + 1,) int32, where each row's queries begin, and the last row's end
    key_starts: Tensor  # (R + 1,) int32, the same of its keys
    most_queries: int
    most_keys: int
    keys: Tensor | None  # (keys,) long, the packed token of each key; None where keys are the packed tokens as they stand

    def to(self, device: torch.device) -> "Sequences":
        """On a device, without waiting for it."""
        return Sequences(*(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in self))


def sequences_of(counts: Tensor, prefixes: Tensor, owners: Tensor) -> Sequences:
    """The sequences of a packed batch (see `packing.Packing`), made on the host; counts, prefixes, owners: (B,) long."""
    firsts, rows = counts.cumsum(0) - counts, counts.nonzero().squeeze(1)
    queries, prefix = counts[rows], prefixes[rows]
    lengths = prefix + queries
    query_starts, key_starts = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (queries, lengths))
    keys = None
    if prefix.any():
        row = torch.arange(len(rows)).repeat_interleave(lengths)
        place = torch.arange(len(row)) - key_starts[row]
        shared, own = firsts[owners[rows]], firsts[rows] - prefix
        keys = torch.where(place < prefix[row], shared[row], own[row]) + place
    return Sequences(query_starts.int(), key_starts.int(), int(queries.max()), int(lengths.max()), keys)


class Asked(NamedTuple):
    """What attention is asked for beside queries, keys and values."""

    scale: float | None
    dropout: float
    window: int | None  # how many keys a query sees, itself included; None: all before it
    causal: bool = True  # whether a query sees no keys after it


class Kernel(NamedTuple):
    """A kernel for sequences of unequal length.

    function: its Python function, or None where there is none that will do. missing: what is missing then.
    run: query (N, heads, dim), key and value (keys, key heads, dim), sequences, what is asked -> (N, heads, dim).
    drops: whether it can drop attention weights.
    """

    name: str
    function: Callable[[], Callable | None]
    missing: str
    run: Callable[[Callable, Tensor, Tensor, Tensor, Sequences, Asked], Tensor]
    drops: bool

    def refuses(self, query: Tensor, value: Tensor, asked: Asked) -> str:
        """Why it cannot serve on a device and in a type that are its own; empty where it can. query, value: (..., dim)."""
        width = query.shape[-1]
        if self.function() is None:
            return self.missing
        if value.shape[-1] != width or width % 8 or width > WIDEST:
            return f"heads of {width} and {value.shape[-1]} numbers, not of one multiple of 8 up to {WIDEST}"
        return f"attention dropout {asked.dropout:g}" if asked.dropout and not self.drops else ""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, where: Sequences, asked: Asked) -> Tensor:
        """Attention of all rows: (1, heads, N, dim), twice (1, key heads, N, dim) -> (1, N, heads, dim)."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        if where.keys is not None:
            key, value = key.index_select(0, where.keys), value.index_select(0, where.keys)
        if asked.window is not None and asked.window >= where.most_keys:
            asked = asked._replace(window=None)
        return self.run(self.function(), query, key, value, where, asked)[None]


def runs_on(query: Tensor) -> bool:
    """Whether kernels for sequences of unequal length run on a tensor's device, in its type."""
    return query.device.type in DEVICES and query.dtype in DTYPES


def device_at_hand() -> torch.device | None:
    """The first device in this machine on which such kernels run; None without one."""
    found = [name for name in DEVICES if name != "cuda" or torch.cuda.is_available()]
    return torch.device(found[0]) if found else None


@functools.cache
def tell(kernel: str, why: str, instead: str = "attention goes row by row") -> None:
    """Log once for each reason what is done in place of all rows at once."""
    log.warning("%s, and not through %s, which is faster: %s", instead, kernel, why)


@functools.cache
def _of_torch() -> Callable | None:
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return function if {"window_size", "scale"} <= set(inspect.signature(function).parameters) else None


@functools.cache
def _of_flash_attn() -> Callable | None:
    try:
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None


def _window(asked: Asked) -> tuple[int, int]:
    """As the kernels count: keys before a query and after it; -1 for all."""
    return (-1 if asked.window is None else asked.window - 1, 0 if asked.causal else -1)


def _run_torch(function: Callable, query: Tensor, key: Tensor, value: Tensor, where: Sequences, asked: Asked) -> Tensor:
    more = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(function).parameters:
            more["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    starts = (where.query_starts, where.key_starts, where.most_queries, where.most_keys)
    return function(query, key, value, *starts, scale=asked.scale, window_size=_window(asked), **more)


def _run_flash_attn(function: Callable, query: Tensor, key: Tensor, value: Tensor, where: Sequences, asked: Asked) -> Tensor:
    return function(
        query,
        key,
        value,
        cu_seqlens_q=where.query_starts,
        cu_seqlens_k=where.key_starts,
        max_seqlen_q=where.most_queries,
        max_seqlen_k=where.most_keys,
        dropout_p=asked.dropout,
        softmax_scale=asked.scale,
        causal=asked.causal,
        window_size=_window(asked),
    )


TORCH = Kernel(
    "torch.nn.attention.varlen",
    _of_torch,
    "this torch has none with windows and scales (2.11 and later have)",
    _run_torch,
    False,
)
FLASH_ATTN = Kernel("flash_attn", _of_flash_attn, "flash_attn_varlen_func cannot be imported", _run_flash_attn, True)
