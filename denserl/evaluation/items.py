"""What is judged in most suites: an item with better and worse answers, their scores, and whether the better ones win.

How rows become items is in denserl/evaluation/suites/; what is judged otherwise in stored_answers.py and step_errors.py.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from denserl.data.bad_rows import BadRows
from denserl.data.schemas import BadRow
from denserl.errors import require


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
    """An item and the scores of its answers, in their order.

    log_odds: of a model that compares answers, see ListScores; the better ones first.
    wins: of a judge (judge_scorer.py), (better, worse): 1 where it prefers the better answer, 0.5 where neither, 0 where the
        worse, a number between them where it says how sure it is; NaN where it gives no valid verdict.
    """

    item: Item
    better: np.ndarray
    worse: np.ndarray
    log_odds: np.ndarray | None = None
    wins: np.ndarray | None = None


class Scorer(Protocol):
    """See denserl/rewards/scorer.py: RewardScorer, and baselines.py.

    is_model: whether scores of any size mean that it has diverged.
    """

    is_model: bool

    def encode(self, prompt: list[dict], response: str) -> object: ...

    def score(self, encoded: Sequence) -> np.ndarray: ...

    def text(self, prompt: list[dict], response: str) -> str: ...

    def describe(self) -> dict: ...


class ListScores(NamedTuple):
    """The scores of n answers to one question, and what they come from."""

    scores: np.ndarray  # (n,)
    log_odds: np.ndarray  # (n, n): at [i, j] that answer i, standing first, is better than j; NaN where that was not asked


class ListScorer(ABC):
    """Scores the answers to a question by comparing them with one another: a score is of an answer among the others.

    one_winner: whether the scores say only which answer is the best.
    """

    is_model = True
    one_winner: bool

    @abstractmethod
    def encode_list(self, prompt: list[dict], texts: Sequence[str]) -> object:
        """The answers as they are compared. BadRow for what cannot be."""

    @abstractmethod
    def score_lists(self, encoded: Sequence) -> list[ListScores]:
        """The scores of what `encode_list` gave, list by list."""


def question_of(item: Item) -> str:
    """What items that are no independent evidence have in common: the question's name, or else the prompt."""
    return item.question or json.dumps(item.better[0].prompt, sort_keys=True, default=str)


Credit = Callable[[Judged], float]
Kind = TypeVar("Kind", bound=Any)  # of items, each with a place


def judge(items: Iterable[Item], scorer: Scorer | ListScorer, bad_rows: BadRows) -> list[Judged]:
    """The items with the scores of their answers; one that the scorer's chat template refuses is a bad row."""
    if isinstance(scorer, ListScorer):
        return _judge_lists(list(items), scorer, bad_rows)
    kept, encoded = encode_all(items, lambda item: (*item.better, *item.worse), scorer.encode, bad_rows)
    return with_scores(kept, scorer.score(encoded)) if kept else []


def _judge_lists(items: Sequence[Item], scorer: ListScorer, bad_rows: BadRows) -> list[Judged]:
    several = next((item for item in items if len(item.better) > 1), None)
    require(
        several is None or not scorer.one_winner,
        f"`rank` knockout says which answer is the best, and {several and several.place} has several right ones",
        "use another `rank`",
    )
    kept, encoded = encode_all(items, lambda item: [_one_question(item)], scorer.encode_list, bad_rows)
    return [
        Judged(item, scores[: len(item.better)], scores[len(item.better) :], log_odds)
        for item, (scores, log_odds) in zip(kept, scorer.score_lists(encoded) if kept else [], strict=True)
    ]


def _one_question(item: Item) -> tuple[list[dict], list[str]]:
    """The prompt and the answers of an item. BadRow where they are answers to different prompts."""
    answers = [*item.better, *item.worse]
    if any(answer.prompt != answers[0].prompt for answer in answers):
        raise BadRow("its answers are to different prompts, and cannot be compared", "give a model that scores single answers")
    return answers[0].prompt, [answer.text for answer in answers]


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


def by_verdicts(judged: Judged, tie: float = 0.5, invalid: float = 0.5) -> float:
    """What the verdicts of a judge earn: of a pair 1 where it prefers the better answer, `tie` or `invalid` where it says so.

    A list is won, 1, where it prefers every better answer to every worse one, else lost, 0.
    """
    assert judged.wins is not None
    if judged.wins.size > 1:
        return float((judged.wins > 0.5).all())
    win = judged.wins.item()
    return invalid if np.isnan(win) else tie if win == 0.5 else float(win > 0.5)


def is_tie(judged: Judged) -> bool:
    """Whether the least of the better answers scores just what the best of the worse ones does, or a judge prefers neither."""
    if judged.wins is not None:
        return bool(judged.wins.min() == 0.5)
    return bool(judged.better.min() == judged.worse.max())


def told(scores: np.ndarray) -> list[float | None]:
    """Scores as files hold them: None in the place of NaN."""
    return [None if np.isnan(score) else score for score in scores.tolist()]


def largest_score(judged: Sequence[Judged]) -> float:
    """The magnitude of the largest score."""
    return max(float(np.abs(scores).max()) for entry in judged for scores in (entry.better, entry.worse))


def pairs_of(judged: Sequence[Judged]) -> list[tuple[int, int, int]]:
    """Each better answer against each worse one of its item, as numbers of item, better and worse answer."""
    return [(i, b, w) for i, each in enumerate(judged) for b in range(len(each.better)) for w in range(len(each.worse))]


def orders_of(judged: Sequence[Judged]) -> np.ndarray | None:
    """(pairs, 2) log-odds of `pairs_of` that the answer which stands first is better: the better one, then the worse one.

    NaN for those that were not compared; None where answers were scored one by one.
    """
    if any(entry.log_odds is None for entry in judged):
        return None
    places = [(judged[i].log_odds, b, len(judged[i].better) + w) for i, b, w in pairs_of(judged)]
    return np.array([(log_odds[b, w], log_odds[w, b]) for log_odds, b, w in places])
