"""Judges in the place of a scorer: which of two answers is better, or how good each is, and what that says of items.

Judges themselves are in denserl/judging/; what their verdicts earn in a suite is said with it, in suites/registry.py.
"""

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from denserl.data.bad_rows import BadRow, BadRows
from denserl.data.responses import Messages
from denserl.evaluation.items import Answer, Item, Judged, encode_all, judge
from denserl.judging.contract import Comparison, Judge, Judgement
from denserl.judging.tallies import tally

SHARES = ("position_consistency", "first_share", "first_share_of_verdicts", "agreement")
UNRATED = -1.0  # the rating of an answer to which no valid one was given: below all others


class Rater(Protocol):
    """Says how good an answer is."""

    def rate(self, answers: Sequence[Answer]) -> list[float | None]:
        """A rating of each answer, in their order; None where none is valid."""

    def describe(self) -> dict: ...


class JudgeScorer(ABC):
    """A judge as a scorer of the items of suites.

    calibrated: its numbers are probabilities, and not votes.
    """

    is_model = False
    calibrated: bool

    @abstractmethod
    def of_items(self, items: Sequence[Item], bad_rows: BadRows) -> list[Judged]:
        """The items with what the judge says of them; one that it cannot be shown is a bad row."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """How the verdicts came about, and what they say of the judge, for a file of results."""

    @abstractmethod
    def remarks(self) -> list[str]:
        """What a reader of the numbers has to know of the verdicts, a line each; often nothing."""

    def text(self, prompt: Messages, response: str) -> str:
        """What is judged."""
        return response


class ComparingJudge(JudgeScorer):
    """Compares each better answer of an item with each worse one.

    The score of an answer is the mean of what its comparisons say, NaN where none has a valid verdict.
    """

    def __init__(self, judge: Judge, calibrated: bool):
        self.judge, self.calibrated = judge, calibrated
        self.judgements: list[Judgement] = []  # of what was judged last, pair by pair

    def of_items(self, items: Sequence[Item], bad_rows: BadRows) -> list[Judged]:
        """See `JudgeScorer.of_items`."""
        kept, encoded = encode_all(items, lambda item: [(item,)], comparisons, bad_rows)
        self.judgements = self.judge.compare([comparison for each in encoded for comparison in each]) if kept else []
        scores = np.array([np.nan if each.score is None else each.score for each in self.judgements], dtype=np.float64)
        ends = np.cumsum([len(each) for each in encoded])
        return [_compared(item, part) for item, part in zip(kept, np.split(scores, ends[:-1]) if kept else [], strict=True)]

    def describe(self) -> dict[str, Any]:
        """See `JudgeScorer.describe`."""
        return {"judge": self.judge.describe(), "verdicts": tally(self.judgements)}

    def remarks(self) -> list[str]:
        """See `JudgeScorer.remarks`."""
        found = tally(self.judgements)
        lines = []
        if found["undecided"]:
            lines.append("{undecided} of {comparisons} pairs have no valid verdict".format(**found))
        if found["cut"]:
            lines.append("{cut} of {verdicts} verdicts are cut at the limit of tokens".format(**found))
        return lines


class RatingJudge(JudgeScorer):
    """Rates each answer by itself; a pair is won by the higher rating, a tie where both are equal."""

    calibrated = False

    def __init__(self, judge: Rater):
        self.judge = judge
        self.ratings: list[float | None] = []  # of what was rated last, answer by answer

    def of_items(self, items: Sequence[Item], bad_rows: BadRows) -> list[Judged]:
        """See `JudgeScorer.of_items`."""
        return [entry._replace(wins=_by_rating(entry)) for entry in judge(items, self, bad_rows)]

    def encode(self, prompt: Messages, response: str) -> Answer:
        """Prompt and response as they are."""
        return Answer(prompt, response)

    def score(self, encoded: Sequence[Answer]) -> np.ndarray:
        """The ratings of what `encode` gave: (n,) fp64, UNRATED where none is valid."""
        self.ratings = self.judge.rate(encoded)
        return np.array([UNRATED if rating is None else rating for rating in self.ratings], dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        """See `JudgeScorer.describe`."""
        invalid = sum(rating is None for rating in self.ratings)
        return {"judge": self.judge.describe(), "ratings": {"answers": len(self.ratings), "unrated": invalid}}

    def remarks(self) -> list[str]:
        """See `JudgeScorer.remarks`."""
        unrated = sum(rating is None for rating in self.ratings)
        found = f"{unrated} of {len(self.ratings)} answers have no valid rating, and count as below all others"
        return [found] if unrated else []


def comparisons(item: Item) -> list[Comparison]:
    """Each better answer against each worse one. BadRow where two are to different prompts."""
    return [_comparison(better, worse) for better in item.better for worse in item.worse]


def write_verdicts(
    folder: Path, model: str, judged: Sequence[Judged], credits: Sequence[float], scorer: Any, summary: dict
) -> None:
    """`MODEL_verdicts.jsonl.gz`: of every item what it earns, and of each of its pairs the score and all verdicts."""
    found = iter(scorer.judgements)
    path = folder / f"{model}_verdicts.jsonl.gz"
    with open(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for entry, credit in zip(judged, credits, strict=True):
            own = [next(found)._asdict() for _ in range(entry.wins.size)]
            row = {"id": entry.item.id, "subset": entry.item.subset, "results": credit, "pairs": own}
            packed.write(json.dumps(row).encode() + b"\n")


def format_judge(summary: dict) -> list[str]:
    """Who judged, and what the verdicts say of the judge, for the terminal; nothing where none did."""
    if "judge" not in summary:
        return []
    lines = [_judged_by(summary["judge"])]
    if "verdicts" in summary:
        found = summary["verdicts"]
        shares = (f"{name.replace('_', ' ')} {found[name]:.4f}" for name in SHARES if found[name] is not None)
        counts = f"of {found['verdicts']} verdicts {found['invalid']} are invalid and {found['cut']} cut"
        lines.append("; ".join([", ".join(shares), counts]).removeprefix("; "))
    return lines


def _judged_by(about: dict) -> str:
    """The judges, the template, and what was asked."""
    orders = f", {about['orders']} order{'s' * (about['orders'] == 'both')}" if "orders" in about else ""
    votes = f", {about['votes']} votes" if about["votes"] > 1 else ""
    asked = "; ".join(
        f"{each['judge']}: {each['calls']} answers, {each['prompt_tokens']} + {each['tokens']} tokens"
        for each in about["judges"]
    )
    return f"template {about['template']} {about['template_hash']}{orders}{votes}; {asked}"


def _comparison(first: Answer, second: Answer) -> Comparison:
    """Two answers; where their conversations part at a turn of the assistant's, all that follows is compared."""
    if first.prompt == second.prompt:
        return Comparison(first.prompt, first.text, second.text)
    both = zip(first.prompt, second.prompt)
    shared = next(
        (place for place, (one, other) in enumerate(both) if one != other), min(len(first.prompt), len(second.prompt))
    )
    one, other = ([*each.prompt[shared:], {"role": "assistant", "content": each.text}] for each in (first, second))
    if not shared or any(turns[0]["role"] != "assistant" for turns in (one, other)):
        raise BadRow(
            "its answers are to different prompts, and cannot be compared", "give a `judge_template` that rates answers"
        )
    return Comparison(first.prompt[:shared], one, other)


def _compared(item: Item, scores: np.ndarray) -> Judged:
    wins = scores.reshape(len(item.better), len(item.worse))
    return Judged(item, _mean_of_valid(wins), _mean_of_valid(1 - wins.T), wins=wins)


def _mean_of_valid(wins: np.ndarray) -> np.ndarray:
    """The mean of each row, without NaN; NaN of a row that has nothing else."""
    valid = ~np.isnan(wins)
    count = valid.sum(1)
    return np.where(count > 0, np.where(valid, wins, 0).sum(1) / np.maximum(count, 1), np.nan)


def _by_rating(judged: Judged) -> np.ndarray:
    """1, 0.5 or 0 for each better and worse answer, NaN where neither is rated."""
    better, worse = judged.better[:, None], judged.worse[None]
    return np.where(np.maximum(better, worse) == UNRATED, np.nan, 0.5 + 0.5 * np.sign(better - worse))
