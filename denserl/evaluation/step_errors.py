"""Suites of solutions whose first wrong step is to be found: numbers, intervals and files (denserl/evaluation/solutions.py)."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from scipy.special import expit

from denserl.data.bad_rows import BadRows
from denserl.errors import UserError, require
from denserl.evaluation.items import encode_all
from denserl.evaluation.results import grouped, in_columns, numbered, random_numbers, span, write_summary
from denserl.evaluation.solutions import NO_ERROR, JudgedSolution, Solution, best_threshold, f1, predictions
from denserl.evaluation.statistics import bootstrap_parts, share_interval
from denserl.evaluation.step_report import write_step_report
from denserl.evaluation.suites.rows import Row
from denserl.files import write_flushed
from denserl.rewards.pair_metrics import FEW_PAIRS


@runtime_checkable
class StepScorer(Protocol):
    """What gives a number for each step (denserl/rewards/scorer.py, rewards/step_scorer.py)."""

    def encode_steps(self, prompt: list[dict], steps: Sequence[str]) -> object: ...

    def step_scores(self, encoded: Sequence) -> list[np.ndarray]: ...


class StepSuite(NamedTuple):
    """What is particular to a suite of solutions with a first wrong step.

    rows, groups, sizes, unread: as of `Suite`.
    item: (row, part) -> Solution.
    threshold: chance below which a step is held for wrong. threshold_from: subset on which it is chosen instead, for the
        highest F1 there.
    """

    rows: Callable[[str, str | None, BadRows], Iterator[Row]]
    item: Callable[[dict, str], Solution]
    groups: Callable[[str], tuple[str, ...]] = lambda subset: ()
    sizes: Mapping[str, int] = {}
    unread: Callable[[object], set[str]] = lambda row: set()
    threshold: float = 0.5
    threshold_from: str | None = None
    rated: bool = False  # no judge says anything of steps

    def read(self, row: dict, part: str) -> Solution:
        """The solution of a row."""
        return self.item(row, part)

    def judge(self, items: Sequence[Solution], scorer: Any, bad_rows: BadRows) -> list[JudgedSolution]:
        """The solutions with the chances of their steps. UserError for a scorer that says nothing of steps."""
        require(
            isinstance(scorer, StepScorer),
            "the reward model gives one number for an answer, and this suite judges the numbers of steps",
            "give a model that was trained on labels of steps, or judge this one on bon_answers",
        )
        self._check_split(items)
        kept, encoded = encode_all(items, lambda item: [(item.prompt, item.steps)], scorer.encode_steps, bad_rows)
        scores = scorer.step_scores(encoded) if kept else []
        return [
            JudgedSolution(item, expit(np.asarray(logits, dtype=np.float64))) for item, logits in zip(kept, scores, strict=True)
        ]

    def summarise(self, judged: Sequence[JudgedSolution], scorer: Any, resamples: int, seed: int) -> dict:
        """All numbers, the F1 of each subset and their mean first; intervals are bootstrap intervals over problems."""
        threshold = self._threshold(judged)
        subsets = grouped(judged, lambda subset: (subset,))
        parts, mean = _tallies(judged, threshold, subsets, resamples, seed)
        generators: dict[str, list[int]] = {}
        for number, entry in enumerate(judged):
            generators.setdefault(entry.item.generator or "unknown", []).append(number)
        own, _ = _tallies(judged, threshold, dict(sorted(generators.items())), resamples, seed)
        whole = mean if self.sizes.keys() <= subsets.keys() else (None, None)
        scores = {name: (parts[name]["f1"], parts[name]["interval"]) if name in parts else (None, None) for name in self.sizes}
        headline = {**scores, "overall": whole, "macro_f1": mean}
        questions = len(set(_questions(judged).tolist()))
        few = [f"F1 is of {questions} problems only"] * (questions < FEW_PAIRS)
        sides = [f"{name} has no solution {part}: it has no F1" for name, each in parts.items() for part in _missing(each)]
        return {
            **{name: value for name, (value, _) in headline.items()},
            "n": len(judged),
            "questions": questions,
            "step_threshold": threshold,
            "threshold_from": self.threshold_from,
            "intervals": {name: bounds for name, (value, bounds) in headline.items() if value is not None},
            "subsets": parts,
            "generators": own,
            "remarks": few + sides,
        }

    def write(self, folder: Path, model: str, judged: Sequence[JudgedSolution], scorer: Any, summary: dict) -> None:
        """The table, the chances of all steps, the page of those that were misjudged worst, and `results.json`."""
        _write_table(folder / "results.csv", summary)
        found = predictions(judged, summary["step_threshold"]).tolist()
        rows = [
            {
                "id": item.id,
                "subset": item.subset,
                "generator": item.generator,
                "label": item.error,
                "prediction": prediction,
                "chances": chances.tolist(),
            }
            for (item, chances), prediction in zip(judged, found, strict=True)
        ]
        path = folder / f"{model}_steps.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(path, "".join(json.dumps(row) + "\n" for row in rows))
        write_step_report(folder / "steps.html", model, judged, summary)
        write_summary(folder, summary)

    def format(self, summary: dict) -> str:
        """F1 of each subset with the shares that it is made of, their mean, and where the threshold is from."""
        rows = [("", "F1", "95 % interval", "wrong found", "right passed", "n")]
        for name, part in summary["subsets"].items():
            shares = (_shown(part[side]) for side in ("acc_error", "acc_correct"))
            rows.append((name, _shown(part["f1"]), _bounds(part["interval"]), *shares, str(part["n"])))
        mean = "overall" if summary["overall"] is not None else "macro_f1"
        rows.append((mean, _shown(summary[mean]), _bounds(summary["intervals"].get(mean)), "", "", str(summary["n"])))
        chosen = f", chosen on {self.threshold_from}" if self.threshold_from else ""
        return f"{in_columns(rows)}\nsteps below {summary['step_threshold']:.4g} are held for wrong{chosen}"

    def _check_split(self, items: Sequence[Solution]) -> None:
        known = sorted({item.subset for item in items})
        found = f"`threshold_from` names {self.threshold_from}; the subsets are {', '.join(known)}"
        require(self.threshold_from in (None, *known), found, "name one of them")

    def _threshold(self, judged: Sequence[JudgedSolution]) -> float:
        if self.threshold_from is None:
            return self.threshold
        self._check_split([entry.item for entry in judged])
        found = best_threshold([entry for entry in judged if entry.item.subset == self.threshold_from])
        if found is None:
            raise UserError(f"`threshold_from` {self.threshold_from} has wrong or right solutions alone", "name another subset")
        return found


def _questions(judged: Sequence[JudgedSolution]) -> np.ndarray:
    return numbered(json.dumps(entry.item.prompt, sort_keys=True, default=str) for entry in judged)


def _tallies(
    judged: Sequence[JudgedSolution], threshold: float, parts: Mapping[str, list[int]], resamples: int, seed: int
) -> tuple[dict[str, dict], tuple[float | None, list[float] | None]]:
    """Of each part `n`, `questions`, `acc_error`, `acc_correct`, `f1` and `interval` (None where a side is missing); and their
    mean F1 with its interval. Problems are drawn anew, each with all its solutions.
    """
    names, questions = list(parts), _questions(judged)
    error = np.array([entry.item.error for entry in judged])
    credits = (predictions(judged, threshold) == error).astype(float)
    cell = np.empty(len(judged), dtype=int)
    for number, rows in enumerate(parts.values()):
        cell[rows] = 2 * number + (error[rows] == NO_ERROR)
    there, numbers = np.unique(cell, return_inverse=True)
    drawn = bootstrap_parts(credits, questions, numbers, resamples, random_numbers(seed))
    draws, shares = dict(zip(there.tolist(), drawn.T)), {int(c): float(credits[cell == c].mean()) for c in there}
    found: dict[str, dict] = {}
    scores = []
    for number, name in enumerate(names):
        sides = (2 * number, 2 * number + 1)
        own, count = [shares.get(side) for side in sides], len(set(questions[parts[name]].tolist()))
        part = {"n": len(parts[name]), "questions": count, "acc_error": own[0], "acc_correct": own[1]}
        found[name] = {**part, "f1": None, "interval": None}
        if None not in own:
            score, of_draws = float(f1(*own)), f1(*(draws[side] for side in sides))
            found[name] |= {"f1": score, "interval": share_interval(score, of_draws, count)}
            scores.append((score, of_draws))
    if not scores:
        return found, (None, None)
    mean, of_mean = float(np.mean([score for score, _ in scores])), np.mean([of_draws for _, of_draws in scores], axis=0)
    return found, (mean, share_interval(mean, of_mean, len(set(questions.tolist()))))


def _missing(part: Mapping) -> list[str]:
    words = {"acc_error": "with a wrong step", "acc_correct": "without a wrong step"}
    return [word for side, word in words.items() if part[side] is None]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bounds(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else span(bounds)


def _write_table(path: Path, summary: dict) -> None:
    rows = [
        ("headline", name, "", summary[name], *bounds, "", "")
        for name, bounds in summary["intervals"].items()
        if name not in summary["subsets"]
    ]
    for kind in ("subsets", "generators"):
        for name, part in summary[kind].items():
            bounds = part["interval"] or ("", "")
            rows.append((kind[:-1], name, part["n"], part["f1"], *bounds, part["acc_error"], part["acc_correct"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "name", "n", "f1", "low", "high", "acc_error", "acc_correct"])
        table.writerows(rows)
