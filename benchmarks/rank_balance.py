"""Row 11: the share of time that ranks work in training a reward model, simulated on real lengths.

A micro-batch takes as long as it has tokens. Under ZeRO-3 ranks wait for the slowest in every micro-batch, below it once an
optimiser step. Against rows that are dealt as they come, one to each rank in turn.
"""

from collections.abc import Callable

import fixtures
import numpy as np
from harness import Options, Result, quartiles
from transformers import AutoTokenizer

from denserl.data.features import list_lengths
from denserl.data.order import dealt, shuffled
from denserl.streams import Purpose, stream

RANKS, MICRO_ROWS, STEP_ROWS, EPOCHS = 8, 4, 128, 5
REACH = 0.95
Deal = list[list[list[int]]]


def measure(options: Options) -> list[Result]:
    """Shares of time at work, dealt by length and as rows come."""
    lengths = tokens_of_pairs(options)
    steps = [step for epoch in range(EPOCHS) for step in steps_of(lengths, epoch)]
    ours, theirs = ([shares(step, deal) for step in steps] for deal in (dealt, in_turn))
    return [
        result(f"ranks at work, {name}", [share[which] for share in ours], [share[which] for share in theirs])
        for which, name in enumerate(("ZeRO-3", "ZeRO-0 to 2"))
    ]


def tokens_of_pairs(options: Options) -> np.ndarray:
    """Tokens of each pair of ultrafeedback-1k: its prompt once, and both responses."""
    tokenizer = AutoTokenizer.from_pretrained(fixtures.tokenizer_folder(options))
    rows = fixtures.tokenized_pairs(str(fixtures.pairs_file(options)), tokenizer)
    return sum(list_lengths(rows, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


def steps_of(lengths: np.ndarray, epoch: int) -> list[list[int]]:
    """The lengths in each whole optimiser step of an epoch."""
    order = shuffled(len(lengths), stream(0, Purpose.ROWS, epoch))
    return [lengths[order[first : first + STEP_ROWS]].tolist() for first in range(0, len(order) - STEP_ROWS + 1, STEP_ROWS)]


def in_turn(lengths: list[int], ranks: int, micro_rows: int) -> Deal:
    """Rows one to each rank in turn, in micro-batches as they come."""
    mine = [list(range(rank, len(lengths), ranks)) for rank in range(ranks)]
    return [[rows[first : first + micro_rows] for first in range(0, len(rows), micro_rows)] for rows in mine]


def shares(lengths: list[int], deal: Callable[[list[int], int, int], Deal]) -> tuple[float, float]:
    """The share of a step's time at which a rank works, where ranks wait in every micro-batch, and where at the step's end."""
    found = deal(lengths, RANKS, MICRO_ROWS)
    tokens = np.array([[sum(lengths[row] for row in micro) for micro in batches] for batches in found])
    return tokens.mean(0).sum() / tokens.max(0).sum(), tokens.sum(1).mean() / tokens.sum(1).max()


def result(name: str, ours: list[float], theirs: list[float]) -> Result:
    mean, before = float(np.mean(ours)), float(np.mean(theirs))
    return Result(11, f"{name}, share", mean, before, mean, quartiles(ours), REACH, mean >= REACH)
