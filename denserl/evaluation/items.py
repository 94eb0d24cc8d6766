"""What is judged in most suites: an item with better and worse answers, their scores, and whether the better ones win.

How rows become items is in denserl/evaluation/suites/; what is judged otherwise in stored_answers.py and step_errors.py.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from denserl.data.bad_rows import BadRows
from denserl.data.schemas import BadRow


class Answer(NamedTuple):
    """The messages before an answer, and its text, which may be empty."""

    prompt: list[dict]
    text: str


class Item(NamedTuple):
    """A question of a suite: each of the better answers should score above each of the worse."""

    id: str
    subset: str
    better: list[Answer]
    worse: list[Answer]
    place: str = ""  # where it was read
    question: str = ""  # name of what is asked, which other items may ask as well; none: the prompt


class Judged(NamedTuple):
    """An item and the scores of its answers, in their order."""

    item: Item
    better: np.ndarray
    worse: np.ndarray


class Scorer(Protocol):
    """See denserl/rewards/scorer.py: RewardScorer, and baselines.py.

    is_model: whether scores of any size mean that it has diverged.
    """

    is_model: bool

    def encode(self, prompt: list[dict], response: str) -> object: ...

    def score(self, encoded: Sequence) -> np.ndarray: ...

    def text(self, prompt: list[dict], response: str) -> str: ...

    def describe(self) -> dict: ...


def question_of(item: Item) -> str:
    """What items that are no independent evidence have in common: the question's name, or else the prompt."""
    return item.question or json.dumps(item.better[0].prompt, sort_keys=True, default=str)


Credit = Callable[[Judged], float]
Kind = TypeVar("Kind", bound=Any)  # of items, each with a place


def judge(items: Iterable[Item], scorer: Scorer, bad_rows: BadRows) -> list[Judged]:
    """The items with the scores of their answers; one that the scorer's chat template refuses is a bad row."""
    kept, encoded = encode_all(items, lambda item: (*item.better, *item.worse), scorer.encode, bad_rows)
    return with_scores(kept, scorer.score(encoded)) if kept else []


def encode_all(
    items: Iterable[Kind], texts: Callable[[Kind], Iterable[tuple]], encode: Callable, bad_rows: BadRows
) -> tuple[list[Kind], list]:
    """The items, and what `encode` makes of their texts, one after the other; one that it refuses (BadRow) is a bad row."""
    kept, encoded = [], []
    for item in items:
        try:
            encoded += [encode(*text) for text in texts(item)]
            kept.append(item)
        except BadRow as error:
            bad_rows.add(item.place, str(error), error.fix)
    bad_rows.check(len(kept))
    return kept, encoded


def with_scores(items: Sequence[Item], scores: np.ndarray) -> list[Judged]:
    """The items with scores of all their answers, item by item, the better ones first."""
    ends = np.cumsum([len(item.better) + len(item.worse) for item in items])
    return [
        Judged(item, part[: len(item.better)], part[len(item.better) :])
        for item, part in zip(items, np.split(scores, ends[:-1]), strict=True)
    ]


def strict_win(judged: Judged) -> float:
    """1 where every better answer scores above every worse one, else 0: a tie is lost."""
    return float(judged.better.min() > judged.worse.max())


def is_tie(judged: Judged) -> bool:
    """Whether the least of the better answers scores just what the best of the worse ones does."""
    return bool(judged.better.min() == judged.worse.max())


def largest_score(judged: Sequence[Judged]) -> float:
    """The magnitude of the largest score."""
    return max(float(np.abs(scores).max()) for _, *both in judged for scores in both)


def pairs_of(judged: Sequence[Judged]) -> list[tuple[int, int, int]]:
    """Each better answer against each worse one of its item, as numbers of item, better and worse answer."""
    return [(i, b, w) for i, (_, better, worse) in enumerate(judged) for b in range(len(better)) for w in range(len(worse))]
