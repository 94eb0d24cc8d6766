"""Which rows come when: functions of seed and place alone, so that a resumed run needs no state."""

from collections.abc import Callable, Iterator

import numpy as np

from denserl import distributed
from denserl.streams import Purpose, stream


class StepSampler:
    """This rank's micro-batches of an epoch, as lists of (row, counted): a batch sampler for a DataLoader.

    Optimiser step k takes the same rows on any number of ranks and micro-batches. Every row is counted once an epoch, in an
    order set by seed and epoch; the last step is filled up with rows of its own, not to be counted.

    Args:
        rows: of the data. step_rows: of an optimiser step, all ranks together. micro_rows: of a forward on one rank.
        epoch: asked at the start of each pass.
    """

    def __init__(self, rows: int, step_rows: int, micro_rows: int, seed: int, epoch: Callable[[], int]):
        self.rows, self.step_rows, self.micro_rows, self.seed, self.epoch = rows, step_rows, micro_rows, seed, epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.rows // self.step_rows)

    def __len__(self) -> int:
        return self.steps * self.step_rows // distributed.world_size() // self.micro_rows

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        order = shuffled(self.rows, stream(self.seed, Purpose.ROWS, self.epoch()))
        for first in range(0, self.rows, self.step_rows):
            step = order[first : first + self.step_rows]
            filled = [(step[i % len(step)], i < len(step)) for i in range(self.step_rows)]
            mine = filled[distributed.rank() :: distributed.world_size()]
            yield from (mine[start : start + self.micro_rows] for start in range(0, len(mine), self.micro_rows))


def shuffled(rows: int, numbers: np.random.SeedSequence) -> list[int]:
    """0 .. rows - 1 in an order that the stream of random numbers says."""
    return np.random.default_rng(numbers).permutation(rows).tolist()


def endless_rows(first: int, count: int, total: int, seed: int, purpose: Purpose) -> list[int]:
    """Rows first .. first + count of the endless pass over `total` rows, in a new order each time.

    It is a function of the seed alone, so that a resumed run needs only its place.
    """
    rows: list[int] = []
    while len(rows) < count:
        episode, offset = divmod(first + len(rows), total)
        rows += shuffled(total, stream(seed, purpose, episode))[offset : offset + count - len(rows)]
    return rows


def step_table(rows: int, per_step: int, numbers: np.random.SeedSequence) -> np.ndarray:
    """Which of `rows` responses each optimiser step takes: (rows / per_step, per_step), every row once, in random order.

    Column c holds rows c, c + per_step, ... in an order of its own, so that a rank that holds some columns holds them in
    every step: steps are made of the same rows whatever the number of ranks, and no row changes its rank.
    """
    blocks = np.tile(np.arange(rows // per_step)[:, None], (1, per_step))
    return np.random.default_rng(numbers).permuted(blocks, axis=0) * per_step + np.arange(per_step)
