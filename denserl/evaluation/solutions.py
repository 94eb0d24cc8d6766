"""Finding the first wrong step of a solution (ProcessBench): the first one held for wrong against the one that is.

A step is held for wrong where its chance of being right, the sigmoid of its logit, is below a threshold. Of the solutions with
a wrong step the share e whose step is found, of those without one the share c in which none is: F1 = 2 e c / (e + c).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

NO_ERROR = -1


class Solution(NamedTuple):
    """A solution of K steps, and the place of the first wrong one from 0; NO_ERROR where all are right."""

    id: str
    subset: str
    prompt: list[dict]
    steps: list[str]
    error: int
    generator: str = ""
    final_right: bool | None = None  # whether its final answer is right, where that is known
    place: str = ""  # where it was read


class JudgedSolution(NamedTuple):
    """A solution and the chance of each of its steps of being right, (K,) fp64."""

    item: Solution
    chances: np.ndarray


def f1(acc_error: np.ndarray | float, acc_correct: np.ndarray | float) -> Any:
    """2 e c / (e + c), 0 where both are 0; of numbers or arrays."""
    total = np.asarray(acc_error) + np.asarray(acc_correct)
    return 2 * acc_error * acc_correct / np.where(total > 0, total, 1.0)


def predictions(judged: Sequence[JudgedSolution], threshold: float) -> np.ndarray:
    """(n,): the first step whose chance is below the threshold, NO_ERROR where none is."""
    return np.array([next(iter(np.flatnonzero(chances < threshold)), NO_ERROR) for _, chances in judged])


def best_threshold(judged: Sequence[JudgedSolution]) -> float | None:
    """The threshold of the highest F1, of equal ones that nearest to one half; None where F1 is not defined.

    A solution is judged rightly by the thresholds of one interval, (its wrong step's chance, the least chance before it].
    """
    rows = [
        (0.0, chances.min()) if item.error == NO_ERROR else (chances[item.error], chances[: item.error].min(initial=1.0))
        for item, chances in judged
    ]
    (low, high), is_error = np.array(rows).T, np.array([item.error != NO_ERROR for item, _ in judged])
    if is_error.all() or not is_error.any():
        return None
    ends = np.unique(np.concatenate([low, high, [0.0, 1.0]]))
    tried = np.unique(np.concatenate([(ends[1:] + ends[:-1]) / 2, [0.5]]))
    right = (low < tried[:, None]) & (tried[:, None] <= high)
    found = f1(right[:, is_error].mean(1), right[:, ~is_error].mean(1))
    best = tried[found == found.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
