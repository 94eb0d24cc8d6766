"""Choosing one of the stored answers to a problem by their scores: how often a right one is chosen, of any number of answers.

best: the answer of the highest score; majority: of the final answer that most answers give; weighted: of the final answer whose
answers' scores have the largest sum. Of equal ones the earlier. An answer whose final answer cannot be read is alone with it.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from denserl.data.bad_rows import BadRow, BadRows
from denserl.errors import require
from denserl.evaluation.best_of_n import subsets_of, unbiased_curve
from denserl.evaluation.final_answers import final_answer
from denserl.evaluation.items import Answer, ListScorer, Scorer, encode_all
from denserl.evaluation.judge_scorer import JudgeScorer
from denserl.evaluation.results import grouped, in_columns, numbered, random_numbers, span, write_summary
from denserl.evaluation.statistics import bootstrap_parts, share_interval
from denserl.evaluation.suites.rows import Row
from denserl.rewards.pair_metrics import remarks

WAYS = ("best", "majority", "weighted")
NUMBERS = (*WAYS, "oracle", "pass@1", "longest")


class StoredAnswers(NamedTuple):
    """A problem with N answers: their texts, which of them are right, and what final answer each states (None: none)."""

    id: str
    subset: str
    prompt: list[dict]
    texts: list[str]
    right: list[bool]
    finals: Sequence[str | None] = ()
    place: str = ""  # where it was read


class JudgedAnswers(NamedTuple):
    """A problem and the scores of its answers, (N,)."""

    item: StoredAnswers
    scores: np.ndarray


class AnswerSuite(NamedTuple):
    """What is particular to a suite of stored answers.

    rows, groups, sizes, unread: as of `Suite`.
    item: (row, part) -> StoredAnswers, without final answers.
    final_answer: text -> the final answer in a form that is the same for all ways of writing it; None where there is none.
    choose: the way, among WAYS, whose accuracy is the headline.
    """

    rows: Callable[[str, str | None, BadRows], Iterator[Row]]
    item: Callable[[dict, str], StoredAnswers]
    groups: Callable[[str], tuple[str, ...]] = lambda subset: ()
    sizes: Mapping[str, int] = {}
    unread: Callable[[object], set[str]] = lambda row: set()
    final_answer: Callable[[str], str | None] = final_answer
    choose: str = "best"
    rated: bool = True  # a judge rates each answer, and compares none

    def read(self, row: dict, part: str) -> StoredAnswers:
        """The problem of a row, with its final answers."""
        found = self.item(row, part)
        finals = [self.final_answer(text) for text in found.texts]
        if wrong := [final for final in finals if not isinstance(final, (str, type(None)))]:
            raise BadRow(f"the final answer of one is {wrong[0]!r}; expected a text or None")
        return found._replace(finals=finals)

    def judge(self, items: Sequence[StoredAnswers], scorer: Scorer | ListScorer, bad_rows: BadRows) -> list[JudgedAnswers]:
        """The problems with the scores of their answers; of a scorer that compares, each among all answers to its problem."""
        if isinstance(scorer, ListScorer):
            require(not scorer.one_winner, "`rank` knockout ranks no answers beside the best one", "use another `rank`")
            kept, encoded = encode_all(items, lambda item: [(item.prompt, item.texts)], scorer.encode_list, bad_rows)
            found = scorer.score_lists(encoded) if kept else []
            return [JudgedAnswers(item, each.scores) for item, each in zip(kept, found, strict=True)]
        kept, encoded = encode_all(
            items, lambda item: [Answer(item.prompt, text) for text in item.texts], scorer.encode, bad_rows
        )
        ends = np.cumsum([len(item.texts) for item in kept])
        return [
            JudgedAnswers(*row) for row in zip(kept, np.split(scorer.score(encoded), ends[:-1]) if kept else [], strict=True)
        ]

    def summarise(self, judged: Sequence[JudgedAnswers], scorer: Scorer | JudgeScorer, resamples: int, seed: int) -> dict:
        """All numbers; intervals are bootstrap intervals over problems, each with all its answers."""
        everything = _estimates(numbers_of(judged), judged, resamples, seed)
        whole = {"accuracy": everything[self.choose], **everything}
        subsets = grouped(judged, lambda subset: (subset,))
        parts = {name: [judged[i] for i in rows] for name, rows in subsets.items()}
        largest = max(float(np.abs(entry.scores).max()) for entry in judged) if scorer.is_model else 0.0
        accuracy, bounds = whole["accuracy"]
        questions = len(set(_questions(judged).tolist()))
        of_judge = scorer.remarks() if isinstance(scorer, JudgeScorer) else []
        return {
            **_flat(whole),
            "choose": self.choose,
            "n": len(judged),
            "questions": questions,
            "answers": [min(len(entry.scores) for entry in judged), max(len(entry.scores) for entry in judged)],
            **_states(judged),
            "curves": _curves(judged, resamples, seed),
            "distinct": _of_distinct(judged, resamples, seed),
            "subsets": {name: _of_subset(part, resamples, seed) for name, part in parts.items()},
            "remarks": [*remarks(accuracy, questions, largest, bounds, "questions"), *_remarks(judged), *of_judge],
        }

    def write(self, folder: Path, model: str, judged: Sequence[JudgedAnswers], scorer: Scorer, summary: dict) -> None:
        """The plot, the table, the scores of all answers, and `results.json`."""
        from denserl.evaluation.plots import plot_stored_answers

        plot_stored_answers(summary["curves"], folder / "bon_answers.png")
        _write_table(folder / "results.csv", summary)
        path = folder / f"{model}_scores.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for item, scores in judged:
                about = {"id": item.id, "subset": item.subset, "scores": scores.tolist()}
                row = {**about, "right": item.right, "final_answers": item.finals, "chosen": chosen(item.finals, scores)}
                packed.write(json.dumps(row).encode() + b"\n")
        write_summary(folder, summary)

    def format(self, summary: dict) -> str:
        """The numbers of all answers, then the chosen way for fewer of them."""
        distinct, curve = summary["distinct"], summary["curves"]
        rows = [("", "accuracy", "95 % interval", f"distinct texts ({distinct['answers']:.1f})")]
        for name in NUMBERS:
            mark = "*" if name == summary["choose"] else ""
            rows.append((name + mark, f"{summary[name]:.4f}", span(summary["intervals"][name]), f"{distinct[name]:.4f}"))
        points = zip(curve["n"], curve[summary["choose"]]["mean"], strict=True)
        return "\n".join(
            [in_columns(rows), f"{summary['choose']} of n: " + "  ".join(f"{n}: {value:.4f}" for n, value in points)]
        )


def class_numbers(finals: Sequence[str | None]) -> np.ndarray:
    """(N,): the number of each final answer, in order of appearance; each that cannot be read has one of its own."""
    return numbered((number, "") if final is None else (-1, final) for number, final in enumerate(finals))


def vote(classes: np.ndarray, weights: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """The winner among each of S subsets of n answers: the first answer of the class whose weights have the largest sum.

    Args:
        classes, weights: (N,) of all answers. subsets: (S, n) numbers of answers, ascending.

    Returns: (S,) numbers of answers. Of classes with equal sums the one that appears first.
    """
    rows, count = np.arange(len(subsets))[:, None], int(classes.max()) + 1
    found = classes[subsets]
    sums = np.bincount((rows * count + found).ravel(), weights[subsets].ravel(), len(subsets) * count)
    first = np.full((len(subsets), count), len(classes))
    np.minimum.at(first, (rows, found), subsets)
    there = first < len(classes)
    sums = np.where(there, sums.reshape(len(subsets), count), -np.inf)
    return np.where(sums == sums.max(1, keepdims=True), first, len(classes)).min(1)


def chosen(finals: Sequence[str | None], scores: np.ndarray) -> dict[str, int]:
    """Way -> number of the answer that it chooses among all."""
    classes, everything = class_numbers(finals), np.arange(len(scores))[None]
    majority, weighted = (int(vote(classes, weights, everything)[0]) for weights in (np.ones(len(scores)), scores))
    return {"best": int(np.argmax(scores)), "majority": majority, "weighted": weighted}


def numbers_of(judged: Sequence[JudgedAnswers]) -> dict[str, np.ndarray]:
    """Name among NUMBERS -> what each problem's answers earn, (P,): 1 where the chosen answer is right.

    oracle: whether any is right; pass@1: the share that is right; longest: of the answer with the most characters.
    """
    rows = []
    for item, scores in judged:
        right = np.array(item.right, dtype=np.float64)
        ways = {way: right[number] for way, number in chosen(item.finals, scores).items()}
        longest = right[int(np.argmax([len(text) for text in item.texts]))]
        rows.append({**ways, "oracle": right.max(), "pass@1": right.mean(), "longest": longest})
    return {name: np.array([row[name] for row in rows]) for name in NUMBERS}


def distinct(entry: JudgedAnswers) -> JudgedAnswers:
    """The problem with every text once, the first time it appears."""
    item, scores = entry
    kept = sorted({text: number for number, text in reversed([*enumerate(item.texts)])}.values())
    columns: dict[str, Any] = {name: [getattr(item, name)[number] for number in kept] for name in ("texts", "right", "finals")}
    return JudgedAnswers(item._replace(**columns), scores[kept])


def curves_of(judged: Sequence[JudgedAnswers], sizes: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """Name -> the mean of what n of a problem's answers earn, (P, sizes), over all subsets of n.

    best and oracle: exactly. majority and weighted: over drawn ones where there are many (`subsets_of`).
    """
    rng, at = random_numbers(seed), np.array(sizes) - 1
    found = {name: np.empty((len(judged), len(sizes))) for name in (*WAYS, "oracle")}
    by_count: dict[int, list[int]] = {}
    for number, entry in enumerate(judged):
        by_count.setdefault(len(entry.scores), []).append(number)
    for rows in by_count.values():
        scores = np.stack([judged[row].scores for row in rows])
        right = np.array([judged[row].item.right for row in rows], dtype=np.float64)
        found["best"][rows] = unbiased_curve(scores, right)[:, at]
        found["oracle"][rows] = unbiased_curve(right, right)[:, at]
    for number, (item, scores) in enumerate(judged):
        classes, right = class_numbers(item.finals), np.array(item.right, dtype=np.float64)
        for column, n in enumerate(sizes):
            subsets = subsets_of(len(scores), n, rng)
            for way, weights in (("majority", np.ones(len(scores))), ("weighted", scores)):
                found[way][number, column] = right[vote(classes, weights, subsets)].mean()
    return found


def _questions(judged: Sequence[JudgedAnswers]) -> np.ndarray:
    return numbered(json.dumps(entry.item.prompt, sort_keys=True, default=str) for entry in judged)


Estimate = tuple[float, list[float]]  # and its interval


def _estimates(
    numbers: Mapping[Any, np.ndarray], judged: Sequence[JudgedAnswers], resamples: int, seed: int
) -> dict[Any, Estimate]:
    """The means of numbers of problems, with intervals from the same problems drawn anew."""
    questions, columns = _questions(judged), len(numbers)
    values = np.stack([*numbers.values()], axis=1)
    parts = np.tile(np.arange(columns), len(judged))
    draws = bootstrap_parts(values.ravel(), questions.repeat(columns), parts, resamples, random_numbers(seed))
    count = len(set(questions.tolist()))
    means = values.mean(0).tolist()
    return {name: (mean, share_interval(mean, draws[:, i], count)) for i, (name, mean) in enumerate(zip(numbers, means))}


def _flat(estimates: Mapping[str, Estimate]) -> dict:
    values = {name: value for name, (value, _) in estimates.items()}
    return {**values, "intervals": {name: bounds for name, (_, bounds) in estimates.items()}}


def _of_subset(judged: Sequence[JudgedAnswers], resamples: int, seed: int) -> dict:
    return {"n": len(judged), **_flat(_estimates(numbers_of(judged), judged, resamples, seed))}


def _of_distinct(judged: Sequence[JudgedAnswers], resamples: int, seed: int) -> dict:
    """The numbers with every text once; `answers`: how many there then are of a problem, on average."""
    once = [distinct(entry) for entry in judged]
    mean = float(np.mean([len(entry.scores) for entry in once]))
    return {"answers": mean, **_flat(_estimates(numbers_of(once), once, resamples, seed))}


def _curves(judged: Sequence[JudgedAnswers], resamples: int, seed: int) -> dict:
    """`n` = 1, 2, 4, ... up to the fewest answers of a problem, and of each name `mean`, `low` and `high` for them."""
    most = min(len(entry.scores) for entry in judged)
    sizes = sorted({*(2**power for power in range(most.bit_length())), most})
    curves = curves_of(judged, sizes, seed)
    columns = {(name, n): curve[:, i] for name, curve in curves.items() for i, n in enumerate(sizes)}
    found = _estimates(columns, judged, resamples, seed)
    points = {name: [found[name, n] for n in sizes] for name in curves}
    return {"n": sizes} | {
        name: {"mean": [mean for mean, _ in each], "low": [b[0] for _, b in each], "high": [b[1] for _, b in each]}
        for name, each in points.items()
    }


def _states(judged: Sequence[JudgedAnswers]) -> dict[str, float]:
    """`unreadable`: the share of answers without a final answer; `mixed`: of final answers, those that are right and wrong."""
    unreadable = [final is None for entry in judged for final in entry.item.finals]
    labels: dict[tuple[int, str | None], set[bool]] = {}
    for number, entry in enumerate(judged):
        for final, right in zip(entry.item.finals, entry.item.right, strict=True):
            if final is not None:
                labels.setdefault((number, final), set()).add(right)
    mixed = [len(each) > 1 for each in labels.values()]
    return {"unreadable": float(np.mean(unreadable)), "mixed": float(np.mean(mixed)) if mixed else 0.0}


def _remarks(judged: Sequence[JudgedAnswers]) -> list[str]:
    found, counts = _states(judged), [len(entry.scores) for entry in judged]
    lines = []
    if found["unreadable"]:
        lines.append(f"{found['unreadable']:.1%} of the answers state no final answer that can be read: each votes for itself")
    if found["mixed"]:
        lines.append(f"{found['mixed']:.1%} of the final answers are those of right and of wrong answers: see `final_answer`")
    if min(counts) < max(counts):
        lines.append(f"problems have {min(counts)} to {max(counts)} answers: curves end at {min(counts)}")
    if any(entry.scores.min() < 0 for entry in judged):
        lines.append(
            "some scores are below 0, and the weighted majority sums them as they are: they count against their answer"
        )
    return lines


def _write_table(path: Path, summary: dict) -> None:
    rows: list[tuple] = []
    for kind, name, part in (
        ("headline", "", summary),
        ("distinct", "", summary["distinct"]),
        *(("subset", name, part) for name, part in summary["subsets"].items()),
    ):
        rows += [(kind, name, way, "", part[way], *part["intervals"][way]) for way in NUMBERS]
    for way in (*WAYS, "oracle"):
        curve = summary["curves"][way]
        points = zip(summary["curves"]["n"], curve["mean"], curve["low"], curve["high"], strict=True)
        rows += [("curve", "", way, *point) for point in points]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "subset", "way", "n", "accuracy", "low", "high"])
        table.writerows(rows)
