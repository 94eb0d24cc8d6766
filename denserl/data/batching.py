"""Lists of token ids -> padded batches; batches of like length; and mapping a function over many responses.

A batch is right-padded: prompt, response, padding. Slots of response-aligned tensors (B, T) count from each row's own response.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from denserl import distributed


class ResponseBatch(NamedTuple):
    """B prompts with their responses; S is the longest sequence, T the longest response."""

    input_ids: Tensor  # (B, S) long
    attention_mask: Tensor  # (B, S) long, 1 on prompt and response
    response_start: Tensor  # (B,) long, index of the first response token
    response_mask: Tensor  # (B, T) bool

    def to(self, device) -> "ResponseBatch":
        return ResponseBatch(*(x.to(device) for x in self))

    @property
    def response_ids(self) -> Tensor:
        """(B, T) long; what stands off the mask has no meaning."""
        return response_slots(self.input_ids, self.response_start, self.response_mask.shape[1])

    def ends_with(self, token_ids: Iterable[int]) -> Tensor:
        """(B,) bool: whether a row's last response token is one of `token_ids`; False for an empty response."""
        length = self.response_mask.sum(1)
        last = (self.response_start + length - 1).clamp(min=0)
        ids = self.input_ids.gather(1, last[:, None]).squeeze(1)
        return torch.isin(ids, torch.as_tensor(list(token_ids), device=ids.device)) & (length > 0)


def pad_rows(rows: Sequence[Sequence], value, dtype=torch.long) -> Tensor:
    """Right-pad rows of numbers to one (B, longest) tensor."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.as_tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value
    )


def pad_responses(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> ResponseBatch:
    """Join each prompt with its response and right-pad."""
    joined = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    return ResponseBatch(
        pad_rows(joined, pad_id),
        pad_rows([[1] * len(row) for row in joined], 0),
        torch.tensor([len(prompt) for prompt in prompts]),
        pad_rows([[True] * len(response) for response in responses], False, torch.bool),
    )


def response_slots(values: Tensor, start: Tensor, length: int) -> Tensor:
    """Cut (B, S, ...) position-aligned values to (B, length, ...): row b from `start[b]` on, clamped to the last position."""
    index = start[:, None] + torch.arange(length, device=values.device)
    index = index.clamp(0, values.shape[1] - 1)
    if values.ndim > 2:
        index = index[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, index)


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches of like length, longest first, each at most `max_tokens` padded tokens (or a single row)."""
    batches, current = [], []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if current and lengths[current[0]] * (len(current) + 1) > max_tokens:
            batches.append(current)
            current = []
        current.append(row)
    return [*batches, current] if current else batches


def rank_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], bool]]:
    """This rank's share of `length_batches`, with whether the batch counts.

    Every rank gets the same number of batches, so that collective forwards (ZeRO-3) stay in step: a rank that runs out repeats
    the first batch, not to be counted.
    """
    batches = length_batches(lengths, max_tokens)
    world = distributed.world_size()
    for first in range(0, len(batches), world):
        mine = first + distributed.rank()
        yield (batches[mine], True) if mine < len(batches) else (batches[0], False)


def map_responses(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    function: Callable[[ResponseBatch], Tensor],
    *,
    pad_id: int,
    max_tokens: int,
    device,
    progress: str,
) -> dict[int, np.ndarray]:
    """Apply a (B, T)-valued function to every response, in batches of like length, without gradient, each rank its share.

    Args:
        max_tokens: padded tokens per batch.
        progress: the label of the progress bar (rank 0).

    Returns: row number -> fp32 array of the row's own response length, for the rows of this rank.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    out = {}
    for rows, counted in tqdm(list(rank_batches(lengths, max_tokens)), desc=progress, disable=distributed.rank() > 0):
        batch = pad_responses([prompts[i] for i in rows], [responses[i] for i in rows], pad_id).to(device)
        with torch.no_grad():
            values = function(batch).float().cpu().numpy()
        if counted:
            out.update({i: values[slot, : len(responses[i])] for slot, i in enumerate(rows)})
    return out


class DemonstrationCollator:
    """Rows with input_ids and loss_start -> a batch for a causal language model; no loss before loss_start or on padding."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        labels = [[-100] * row["loss_start"] + row["input_ids"][row["loss_start"] :] for row in rows]
        return {
            "input_ids": pad_rows([row["input_ids"] for row in rows], self.pad_id),
            "attention_mask": pad_rows([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": pad_rows(labels, -100),
        }
