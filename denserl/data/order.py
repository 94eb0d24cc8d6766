"""Which rows come when: functions of seed and place alone, so that a resumed run needs no state."""

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from denserl import distributed
from denserl.streams import Purpose, stream


class StepSampler:
    """This rank's micro-batches of an epoch, as lists of (row, counted): a batch sampler for a DataLoader.

    Optimiser step k takes the same rows on any number of ranks and micro-batches, and deals them out by length (`dealt`).
    Every row is counted once an epoch, in an order set by seed and epoch; the last step is filled up with rows of its own,
    not to be counted.

    Args:
        lengths: tokens of each row of the data.
        step_rows: of an optimiser step, all ranks together. micro_rows: of a forward on one rank.
        epoch: asked at the start of each pass.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, micro_rows: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.step_rows, self.micro_rows, self.seed, self.epoch = lengths, step_rows, micro_rows, seed, epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.lengths) // self.step_rows)

    def __len__(self) -> int:
        return self.steps * self.step_rows // distributed.world_size() // self.micro_rows

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        order = shuffled(len(self.lengths), stream(self.seed, Purpose.ROWS, self.epoch()))
        for first in range(0, len(order), self.step_rows):
            step = order[first : first + self.step_rows]
            filled = [(step[i % len(step)], i < len(step)) for i in range(self.step_rows)]
            lengths = [self.lengths[row] for row, _ in filled]
            for micro in dealt(lengths, distributed.world_size(), self.micro_rows)[distributed.rank()]:
                yield [filled[i] for i in micro]


def dealt(lengths: Sequence[int], ranks: int, micro_rows: int) -> list[list[list[int]]]:
    """Rows of an optimiser step, by number: each rank's micro-batches, longest rows first.

    The micro-batches that ranks have at a time are of rows of like length, and about as many tokens: in each the next row, in
    descending length, goes to the rank that has the fewest tokens and still room (Graham, Bounds on Multiprocessing Timing
    Anomalies, 1969). Under ZeRO-3 ranks wait for each other in every micro-batch.

    Args:
        lengths: tokens of each row, a multiple of ranks x micro_rows of them.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    found: list[list[list[int]]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for first in range(0, len(order), ranks * micro_rows):
        for batches in found:
            batches.append([])
        least = [(0, total, rank) for rank, total in enumerate(totals)]
        heapify(least)
        for row in order[first : first + ranks * micro_rows]:
            tokens, total, rank = heappop(least)
            found[rank][-1].append(row)
            totals[rank] = total + lengths[row]
            if len(found[rank][-1]) < micro_rows:
                heappush(least, (tokens + lengths[row], totals[rank], rank))
    return found


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
