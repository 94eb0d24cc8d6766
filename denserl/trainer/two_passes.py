"""Two passes of a batch as one forward of it twice over, whose dropout differs row by row.

Engines that spread weights over ranks (ZeRO-3) run a module's forward once before its backward.
"""

from typing import Any

import torch
from torch import Tensor

from denserl.rewards.objectives import Groups


def twice(batch: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """A batch of `size` groups as one of twice as many, those of the second pass behind those of the first.

    batch: (G, ...) or (M G, ...) each, all groups' first candidates before all second ones, as they then stand again.
    """
    doubled = {name: torch.cat([by_candidate(values, size)] * 2, 1).flatten(0, 1) for name, values in batch.items()}
    # Prompts are shared within a pass alone: one that both read would be the same in both.
    candidate, group = batch["prompt_row"].div(size, rounding_mode="floor"), batch["prompt_row"] % size
    rows = [by_candidate(2 * size * candidate + group + again * size, size) for again in (0, 1)]
    return {**doubled, "prompt_row": torch.cat(rows, 1).flatten(0, 1)}


def parted(groups: Groups) -> Groups:
    """What was read of a batch that holds each group twice: the first pass, with the second one as its `second`."""
    size = len(groups.counted) // 2
    first, second = (_of_pass(groups, 2 * size, slice(start, start + size)) for start in (0, size))
    return first._replace(second=second)


def by_candidate(values: Tensor, size: int) -> Tensor:
    """(G, ...) or (M G, ...) of `size` groups -> (1 or M, G, ...)."""
    return values.reshape(-1, size, *values.shape[1:])


def _of_pass(values: Any, size: int, part: slice) -> Any:
    if isinstance(values, Tensor):
        return by_candidate(values, size)[:, part].flatten(0, 1) if values.ndim else values
    if isinstance(values, dict):
        return {name: _of_pass(value, size, part) for name, value in values.items()}
    return type(values)(*(_of_pass(value, size, part) for value in values)) if isinstance(values, tuple) else values
