"""Lists of token ids -> padded batches; batches of like length; and mapping a function over many responses.

A batch is right-padded: prompt, response, padding. Slots of response-aligned tensors (B, T) count from each row's own response.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from denserl import distributed

log = logging.getLogger(__name__)
Argument = TypeVar("Argument")
Result = TypeVar("Result")
Row = TypeVar("Row")

LAYOUT = ("attention_mask", "response_start", "prompt_row")


class SharedPrompts(NamedTuple):
    """Row b begins with the first `length[b]` tokens of row `row[b]`; a row that shares with none before it names itself."""

    row: Tensor  # (B,) long
    length: Tensor  # (B,) long


class ResponseBatch(NamedTuple):
    """B prompts with their responses; S is the longest sequence, T the longest response."""

    input_ids: Tensor  # (B, S) long
    attention_mask: Tensor  # (B, S) long, 1 on prompt and response
    response_start: Tensor  # (B,) long, index of the first response token
    prompt_row: Tensor  # (B,) long, the first row with the same prompt
    response_mask: Tensor  # (B, T) bool

    @classmethod
    def of(cls, batch: dict[str, Tensor]) -> "ResponseBatch":
        """From a dictionary, which may have other keys as well."""
        return cls(*(batch[field] for field in cls._fields))

    def to(self, device: torch.device | str) -> "ResponseBatch":
        """See `to_device`."""
        return ResponseBatch(**to_device(self._asdict(), device))

    @property
    def shared(self) -> SharedPrompts:
        """The prompts that rows have in common."""
        return SharedPrompts(self.prompt_row, self.response_start)

    @property
    def response_ids(self) -> Tensor:
        """(B, T) long; values off the mask have no meaning."""
        return response_slots(self.input_ids, self.response_start, self.response_mask.shape[1])

    def ends_with(self, token_ids: Iterable[int]) -> Tensor:
        """(B,) bool: whether a row's last response token is one of `token_ids`; False for an empty response."""
        length = self.response_mask.sum(1)
        last = (self.response_start.to(length.device) + length - 1).clamp(min=0)
        ids = self.input_ids.gather(1, last[:, None]).squeeze(1)
        return torch.isin(ids, torch.as_tensor(list(token_ids), device=ids.device)) & (length > 0)


def to_device(batch: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Move a batch to a device, except LAYOUT, which models read on the host."""
    return {name: value if name in LAYOUT else value.to(device, non_blocking=True) for name, value in batch.items()}


def pad_rows(rows: Sequence[Sequence | np.ndarray], value: float, dtype: torch.dtype = torch.long) -> Tensor:
    """Right-pad rows of numbers to one (B, longest) tensor."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.as_tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value
    )


def pad_responses(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> ResponseBatch:
    """Join each prompt with its response and right-pad."""
    joined = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    first: dict[tuple[int, ...], int] = {}
    start = torch.tensor([len(prompt) for prompt in prompts])
    lengths = torch.tensor([len(response) for response in responses])
    return ResponseBatch(
        pad_rows(joined, pad_id),
        _is_before(start + lengths).long(),
        start,
        torch.tensor([first.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]),
        _is_before(lengths),
    )


def _is_before(lengths: Tensor) -> Tensor:
    """(B,) -> (B, longest) bool, True on as many slots of each row."""
    return torch.arange(int(lengths.max())) < lengths[:, None]


def response_slots(values: Tensor, start: Tensor, length: int) -> Tensor:
    """Cut (B, S, ...) position-aligned values to (B, length, ...): row b from `start[b]` on, clamped to the last position."""
    index = start.to(values.device, non_blocking=True)[:, None] + torch.arange(length, device=values.device)
    index = index.clamp(0, values.shape[1] - 1)
    if values.ndim > 2:
        index = index[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)


def length_batches(
    lengths: Sequence[int] | np.ndarray, max_tokens: int, groups: Sequence[int] | np.ndarray | None = None
) -> list[list[int]]:
    """Row numbers in batches of like length, longest first, each at most `max_tokens` padded tokens (or a single row).

    groups: a number for each row; rows of one number follow one another, at the place of the longest. Default: each its own.
    """
    width_of = np.asarray(lengths, dtype=np.int64)
    group = np.arange(len(width_of)) if groups is None else np.asarray(groups, dtype=np.int64)
    numbers, place = np.unique(group, return_inverse=True)
    longest = np.zeros(len(numbers), dtype=np.int64)
    np.maximum.at(longest, place, width_of)
    order = np.lexsort((np.arange(len(group)), -width_of, group, -longest[place]))
    batches: list[list[int]] = []
    current: list[int] = []
    width = 0
    for row, length in zip(order.tolist(), width_of[order].tolist(), strict=True):
        width = max(width, length)
        if current and width * (len(current) + 1) > max_tokens:
            batches.append(current)
            current, width = [], length
        current.append(row)
    return [*batches, current] if current else batches


def rank_batches(batches: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    """This rank's share of batches, as of `length_batches`, with whether the batch counts.

    Every rank gets the same number of batches, so that collective forwards (ZeRO-3) stay in step: a rank that runs out repeats
    the first batch, not to be counted.
    """
    world = distributed.world_size()
    for first in range(0, len(batches), world):
        mine = first + distributed.rank()
        yield (batches[mine], True) if mine < len(batches) else (batches[0], False)


def in_halves(function: Callable[[list[Row]], Result], rows: list[Row], together: bool = False) -> list[Result]:
    """`[function(rows)]`; where memory does not suffice, the results of both halves instead, halved again where needed.

    Args:
        together: ranks compute together (ZeRO-3 on several), so that none can repeat alone.

    Raises:
        RuntimeError or MemoryError: memory does not suffice for a single row.
    """
    fits, result = _attempt(function, rows, last=together or len(rows) < 2)
    if fits:
        return [result]
    half = len(rows) // 2
    log.warning("out of memory with %d rows at once; repeated with %d", len(rows), half)
    return in_halves(function, rows[:half]) + in_halves(function, rows[half:])


def in_length_batches(
    function: Callable[[list[int]], list[Result]],
    lengths: Sequence[int],
    max_tokens: int,
    groups: Sequence[int] | None = None,
) -> list[Result]:
    """What a function of row numbers gives for each row, in their order, called with one batch of `length_batches` at a time.

    By this rank alone, without gradient, in halves where memory does not suffice.
    """
    found: dict[int, Result] = {}
    with torch.no_grad():
        for rows in length_batches(lengths, max_tokens, groups):
            for part in in_halves(lambda rows: dict(zip(rows, function(rows), strict=True)), rows):
                found |= part
    return [found[row] for row in range(len(lengths))]


def in_batches_of(size: int, function: Callable[[int], Result]) -> Result:
    """`function(size)`, which works in batches of that size; where memory does not suffice, anew with half the size.

    Raises:
        RuntimeError or MemoryError: memory does not suffice for a batch of one.
    """
    fits, result = _attempt(function, size, last=size < 2)
    if fits:
        return result
    log.warning("out of memory with %d rows at once; repeated with %d", size, size // 2)
    return in_batches_of(size // 2, function)


def _attempt(function: Callable[[Argument], Result], argument: Argument, last: bool) -> tuple[bool, Result | None]:
    """Whether memory sufficed, and the function's result; on the `last` attempt an out-of-memory error is raised."""
    try:
        return True, function(argument)
    except (RuntimeError, MemoryError) as error:
        if last or not is_out_of_memory(error):
            raise
    # Out of the handler, whose traceback holds the tensors of the failed attempt.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the allocator of a device, or of the CPU, could not serve a request."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in words)


def in_rank_batches(
    function: Callable[[list[int]], Result],
    batches: list[list[int]],
    tokens: list[int],
    progress: str,
    together: bool = False,
) -> Iterator[Result]:
    """What a function gives of batches of row numbers, without gradient, one after the other, each rank its share.

    A batch for which memory does not suffice comes in halves.

    Args:
        tokens: of each batch. progress: the label of the bar, which counts those of rank 0's share; empty: none.
        together: see `in_halves`.
    """

    def quietly(rows: list[int]) -> Result:
        with torch.no_grad():
            return function(rows)

    share = list(rank_batches([*zip(batches, tokens, strict=True)]))
    total = sum(many for (_, many), counted in share if counted)
    shown = {"desc": progress, "unit": " tokens", "unit_scale": True, "disable": distributed.rank() > 0 or not progress}
    with tqdm(total=total, **shown) as bar:
        for (rows, many), counted in share:
            found = in_halves(quietly, rows, together)
            if counted:
                yield from found
                bar.update(many)


def map_rows_in_batches(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    function: Callable[[list[int]], Tensor],
    max_tokens: int,
    progress: str,
    together: bool = False,
) -> dict[int, np.ndarray]:
    """Apply a function to the numbers of all rows, in batches of like length, without gradient, each rank its share.

    Args:
        prompts, responses: token ids of each row. function: B row numbers -> (B, T), or (B, T, ...).
        max_tokens: padded tokens per batch.
        progress: the label of the progress bar (rank 0); empty: none.
        together: see `in_halves`.

    Returns: row number -> fp32 array, as long as the row's own response, for the rows of this rank.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    # In one batch, a packed model reads the prompt of several responses once.
    first: dict[tuple[int, ...], int] = {}
    batches = length_batches(lengths, max_tokens, [first.setdefault(tuple(prompt), i) for i, prompt in enumerate(prompts)])

    def values(rows: list[int]) -> dict[int, np.ndarray]:
        found = function(rows).float().cpu().numpy()
        return {i: found[slot, : len(responses[i])] for slot, i in enumerate(rows)}

    out = {}
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    for part in in_rank_batches(values, batches, tokens, progress, together):
        out.update(part)
    return out


def map_responses(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    function: Callable[[ResponseBatch], Tensor],
    *,
    pad_id: int,
    max_tokens: int,
    device: torch.device | str,
    progress: str,
    together: bool = False,
) -> dict[int, np.ndarray]:
    """`map_rows_in_batches` of a function of padded batches."""

    def of_rows(rows: list[int]) -> Tensor:
        return function(pad_responses([prompts[i] for i in rows], [responses[i] for i in rows], pad_id).to(device))

    return map_rows_in_batches(prompts, responses, of_rows, max_tokens, progress, together)


class DemonstrationCollator:
    """Rows with input_ids and loss_start -> a ResponseBatch as a dictionary; a row's response is the part with loss."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        # Nothing predicts a row's first token.
        parts = [(row["input_ids"], max(row["loss_start"], 1)) for row in rows]
        batch = pad_responses([ids[:start] for ids, start in parts], [ids[start:] for ids, start in parts], self.pad_id)
        return batch._asdict()
