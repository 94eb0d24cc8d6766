"""Results of a suite: from judged items to one dictionary, and the files that are written of it."""

import csv
import importlib.metadata
import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from denserl.data.bad_rows import BadRows
from denserl.evaluation.items import (
    Credit,
    Item,
    Judged,
    ListScorer,
    Scorer,
    by_verdicts,
    is_tie,
    judge,
    largest_score,
    orders_of,
    pairs_of,
    question_of,
    strict_win,
    with_scores,
)
from denserl.evaluation.judge_scorer import ComparingJudge, JudgeScorer, write_verdicts
from denserl.evaluation.reasons import attribute_means, write_reasons
from denserl.evaluation.statistics import (
    bootstrap_means,
    bootstrap_parts,
    calibration,
    interval,
    length_bias,
    position_bias,
    share_interval,
)
from denserl.evaluation.strength import by_strength
from denserl.evaluation.strength_page import write_accuracy_page
from denserl.evaluation.suites.rewardbench import write_outputs
from denserl.evaluation.suites.rows import Row, checked
from denserl.files import write_flushed
from denserl.rewards.pair_metrics import remarks
from denserl.rewards.ranking import chances, log_odds
from denserl.rewards.scorer import Reasons, RewardScorer
from denserl.streams import Purpose, stream

NAMED = 4  # incomplete parts at the terminal
LISTED = 24  # subsets at the terminal; results.csv has all
# Of pairs: what every scorer has, and what those that compare answers have.
OF_PAIRS = ("pairs", "mean_margin", "score_mean", "score_std")
OF_COMPARISONS = ("pair_accuracy", "position_consistency", "position_bias")
_LIBRARIES = ("denserl", "torch", "transformers", "datasets")
Numbers = dict[str, list[int]]  # name of a subset or a group -> the numbers of its items


class Special(NamedTuple):
    """The score of a subset that is no mean of its items, and that score on items drawn anew: (resamples,)."""

    score: Callable[[Sequence[Judged]], float]
    draw: Callable[[Sequence[Judged], int, np.random.Generator], np.ndarray]


class Suite(NamedTuple):
    """What is particular to a suite of better and worse answers.

    rows: (path, split or None, BadRows) -> parts, places and rows.
    item: (row, part) -> Item, or a list of several.
    credit: what an item's scores earn, 0 to 1.
    by_judge: what the verdicts of a judge on it earn.
    rated: a judge rates each answer, and compares none.
    headline: (score of each subset, items of each) -> the suite's own numbers; scores may be arrays of one length.
    special: subset -> how it is scored where that is not the mean credit of its items.
    groups: subset -> the names under which its items are pooled as well.
    sizes: items of a subset, a group or `all` (those left out included) in the complete suite; none: nothing is known.
    writers: what writes result files beside those of every suite.
    unread: row -> keys that say something and are not read, which are logged.
    strength: place of an item -> how much better members hold its better answer for; its parts are groups as well.
    """

    rows: Callable[[str, str | None, BadRows], Iterator[Row]]
    item: Callable[[dict, str], Item | list[Item]]
    credit: Credit = strict_win
    headline: Callable[[Mapping, Mapping], dict] = lambda scores, counts: {}
    special: Mapping[str, Special] = {}
    groups: Callable[[str], tuple[str, ...]] = lambda subset: ()
    sizes: Mapping[str, int] = {}
    writers: Sequence[Callable] = ()
    unread: Callable[[object], set[str]] = lambda row: set()
    strength: Mapping[str, float] = {}
    by_judge: Credit = by_verdicts
    rated: bool = False

    def read(self, row: dict, part: str) -> list[Item]:
        """The items of a row. BadRow where one lacks a better or a worse answer."""
        found = self.item(row, part)
        return [checked(item) for item in (found if isinstance(found, list) else [found])]

    def earned(self, judged: Judged) -> float:
        """What an item earns, 0 to 1."""
        return self.credit(judged) if judged.wins is None else self.by_judge(judged)

    def judge(self, items: Sequence[Item], scorer: Scorer | ListScorer | JudgeScorer, bad_rows: BadRows) -> list[Judged]:
        """The items with the scores of their answers, or a judge's verdicts on them."""
        return scorer.of_items(items, bad_rows) if isinstance(scorer, JudgeScorer) else judge(items, scorer, bad_rows)

    def summarise(self, judged: Sequence[Judged], scorer: Scorer | JudgeScorer, resamples: int, seed: int) -> dict:
        """All numbers, and what a reader of them has to know."""
        found = summarise(self, judged, resamples, seed, not isinstance(scorer, JudgeScorer) or scorer.calibrated)
        largest = largest_score(judged) if scorer.is_model else 0.0
        about = remarks(found["accuracy"], found["questions"], largest, found["intervals"]["accuracy"], "questions")
        about += scorer.remarks() if isinstance(scorer, JudgeScorer) else []
        reasons = reasons_of(scorer)
        attributes = {"attributes": attribute_means(judged, reasons)} if reasons else {}
        return {**found, **attributes, "remarks": about}

    def write(self, folder: Path, model: str, judged: Sequence[Judged], scorer: Scorer, summary: dict) -> None:
        """All files of the results."""
        write(folder, model, self, judged, scorer, summary)

    def format(self, summary: dict) -> str:
        """The numbers for the terminal."""
        return format_summary(summary)


class Scored(NamedTuple):
    """The n judged items, and of each what its scores and what the lengths of its answers in characters earn, (n,) each.

    calibrated: whether it can be asked how often scores are as right as they are sure.
    """

    judged: Sequence[Judged]
    by_length: Sequence[Judged]  # with lengths for scores
    credits: np.ndarray
    length_credits: np.ndarray
    questions: np.ndarray  # number of the question that is asked
    calibrated: bool

    def rows(self, numbers: Sequence[int]) -> "Scored":
        """Some of them."""
        judged, by_length = ([column[i] for i in numbers] for column in (self.judged, self.by_length))
        credits, by_lengths, questions = (
            column[list(numbers)] for column in (self.credits, self.length_credits, self.questions)
        )
        return Scored(judged, by_length, credits, by_lengths, questions, self.calibrated)


def summarise(suite: Suite, judged: Sequence[Judged], resamples: int, seed: int, calibrated: bool = True) -> dict:
    """All numbers of a suite, its headline first; intervals are 95 % percentile bootstrap intervals (docs/evaluation.md).

    Questions are drawn anew, each with all its items: for the headline and the macro accuracy within each subset, for the
    others among all that they are of. Each number draws from the same seed, so that equal items have equal intervals, and a
    subset or group that is also a number of the headline has its interval. calibrated: as of `Scored`.
    """
    items, parts = _scored(suite, judged, calibrated), grouped(judged, lambda subset: (subset,))
    groups = grouped(judged, suite.groups) | by_strength(suite.strength, [entry.item.place for entry in judged])
    whole = _tally(items, resamples, seed)
    pooled, subsets = (
        {name: _tally(items.rows(numbers), resamples, seed) for name, numbers in each.items()} for each in (groups, parts)
    )
    draws, macro_interval = _draws(suite, items, parts, subsets, resamples, seed)
    counts, questions = ({name: part[key] for name, part in subsets.items()} for key in ("n", "questions"))
    scores, baselines = (
        {name: part.get(f"{of}score", part[f"{of}accuracy"]) for name, part in subsets.items()} for of in ("", "length_")
    )
    headline = suite.headline(scores, counts)

    def of_headline(name: str) -> Callable[[Mapping], Any]:
        return lambda scores: suite.headline(scores, counts)[name]

    known = [name for name, value in headline.items() if value is not None]
    intervals = {name: _interval_of(of_headline(name), scores, draws, questions) for name in known}
    for name, part in (*pooled.items(), *subsets.items()):
        if name in intervals:
            part["score_interval" if "score" in part else "interval"] = intervals[name]
    return {
        **headline,
        "accuracy": whole["accuracy"],
        "macro_accuracy": _mean({name: part["accuracy"] for name, part in subsets.items()}),
        **{name: whole[name] for name in ("n", "questions", "ties")},
        "intervals": {**intervals, "accuracy": whole["interval"], "macro_accuracy": macro_interval},
        **{name: whole[name] for name in (*OF_PAIRS, *OF_COMPARISONS, "calibration", "length_bias") if name in whole},
        "length_baseline": {
            **suite.headline(baselines, counts),
            "accuracy": whole["length_accuracy"],
            "macro_accuracy": _mean({name: part["length_accuracy"] for name, part in subsets.items()}),
        },
        "groups": pooled,
        "subsets": subsets,
    }


def _scored(suite: Suite, judged: Sequence[Judged], calibrated: bool) -> Scored:
    items = [entry.item for entry in judged]
    lengths = [len(answer.text) for item in items for answer in (*item.better, *item.worse)]
    by_length = with_scores(items, np.array(lengths, dtype=np.float64))
    credits, of_length = (np.array([suite.earned(entry) for entry in each]) for each in (judged, by_length))
    return Scored(judged, by_length, credits, of_length, numbered(map(question_of, items)), calibrated)


def _draws(
    suite: Suite, items: Scored, parts: Numbers, subsets: dict, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Scores of each subset on questions drawn anew, (resamples,) each, and the interval of the subsets' mean accuracy.

    Subsets that are scored by a rule of their own get their `score` here.
    """
    rng = random_numbers(seed)
    part = np.empty(len(items.judged), dtype=int)
    for number, rows in enumerate(parts.values()):
        part[rows] = number
    draws = dict(zip(parts, bootstrap_parts(items.credits, items.questions, part, resamples, rng).T, strict=True))
    accuracies, questions = ({name: part[key] for name, part in subsets.items()} for key in ("accuracy", "questions"))
    macro_interval = _interval_of(_mean, accuracies, draws, questions)
    for name, special in suite.special.items():
        if name in parts:
            rows = items.rows(parts[name])
            draws[name] = special.draw(rows.judged, resamples, rng)
            score, length_score = special.score(rows.judged), special.score(rows.by_length)
            subsets[name] |= {"score": score, "score_interval": interval(draws[name]), "length_score": length_score}
    return draws, macro_interval


def _interval_of(number: Callable[[Mapping], Any], scores: Mapping, draws: Mapping, questions: Mapping) -> list[float]:
    """The interval of a number that is made of the scores of subsets.

    With weights w on subsets of n questions each, it is worth 1 / sum of w^2 / n questions.
    """
    value = number(scores)
    weights = {name: number({**scores, name: score + 1}) - value for name, score in scores.items()}
    variance = sum(weight**2 / questions[name] for name, weight in weights.items())
    return share_interval(value, number(draws), 1 / variance if variance else 1)


def write(folder: Path, model: str, suite: Suite, judged: Sequence[Judged], scorer: Scorer, summary: dict) -> None:
    """The plot, the table, the outputs of every item, the suite's own files, and last `results.json`, which stands for all.

    Args:
        model: name of the scorer, under which RewardBench's shapes are written; a `/` in it makes a folder.
    """
    from denserl.evaluation.plots import plot_by_strength, plot_reliability

    credits = [suite.earned(entry) for entry in judged]
    if "calibration" in summary:
        plot_reliability(summary["calibration"], folder / "reliability.png")
    else:
        (folder / "reliability.png").unlink(missing_ok=True)  # of another scorer
    _write_table(folder / "results.csv", summary)
    if suite.strength:
        groups, picture = summary["groups"], folder / "strength.png"
        plot_by_strength(groups, picture)
        write_accuracy_page(folder / "strength.html", model, judged, suite.earned, suite.strength, groups, picture)
    own = [write_verdicts] if isinstance(scorer, ComparingJudge) else []
    for writer in (write_outputs, *suite.writers, *own):
        writer(folder, model, judged, credits, scorer, summary)
    if reasons := reasons_of(scorer):
        write_reasons(folder, model, judged, reasons)
    write_summary(folder, summary)


def reasons_of(scorer: Scorer | ListScorer | JudgeScorer) -> Reasons | None:
    """Why the answers that were judged last have their scores, by a scorer that says it."""
    return scorer.reasons if isinstance(scorer, RewardScorer) else None


def write_summary(folder: Path, summary: dict) -> None:
    """`results.json`."""
    write_flushed(folder / "results.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """The versions of the libraries that scores depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def format_summary(summary: dict) -> str:
    """The headline with what length alone would get, calibration, groups, and the subsets if they are few, in columns."""
    by_length, above = summary["length_baseline"], _headline(summary)
    sizes = {name: part["n"] for name, part in (*summary["subsets"].items(), *summary["groups"].items())}
    rows = [(name, value, sizes.get(name), summary["intervals"][name], by_length.get(name)) for name, value in above.items()]
    count = len(summary["subsets"])
    for kind in ("groups", "subsets") if 1 < count <= LISTED else ("groups",):
        for name, part in summary[kind].items():
            if name not in above:
                score, bounds = _score_of(part)
                rows.append((f"  {name}", score, part["n"], bounds, part.get("length_score", part["length_accuracy"])))
    cells = [
        (name, f"{value:.4f}", f"n {n}" if n else "", span(bounds), f"length {length:.4f}" if length is not None else "")
        for name, value, n, bounds, length in rows
    ]
    lines = in_columns(cells).splitlines()
    lines[len(above) : len(above)] = _notes(summary)
    return "\n".join(lines + [f"  {count} subsets: in results.csv"] * (count > LISTED))


def _notes(summary: dict) -> list[str]:
    """What is said below the headline: how sure scores are, what places do."""
    lines = []
    if "calibration" in summary:
        lines.append(f"calibration error (ECE) {summary['calibration']['ece']:.4f}")
    if "position_consistency" in summary:
        shown = [f"{name.replace('_', ' ')} {summary[name]:.4f}" for name in OF_COMPARISONS]
        lines.append(f"{', '.join(shown)}; lists ranked by {summary['rank']}")
    return lines


def format_remarks(summary: dict) -> list[str]:
    """What a reader of the numbers has to know, a line each: remarks, rows that are left out, parts that are not there."""
    lines = [*summary["remarks"], *(f"{count} rows left out: {reason}" for reason, count in summary["left_out"].items())]
    parts = [f"{name} has {found} of {size}" for name, (found, size) in summary["partial"].items()]
    more = f", and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return lines + [f"not the complete suite: {', '.join(parts[:NAMED])}{more}"] * bool(parts)


def in_columns(cells: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def _headline(summary: dict) -> dict[str, float]:
    """The numbers at the top that have an interval."""
    return {name: summary[name] for name in summary["intervals"]}


def _score_of(part: dict) -> tuple[float, list[float]]:
    """A subset's own score, where it has one, or its accuracy, and the interval."""
    return (part["score"], part["score_interval"]) if "score" in part else (part["accuracy"], part["interval"])


def span(bounds: Sequence[float]) -> str:
    """An interval, to be read."""
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"


def random_numbers(seed: int) -> np.random.Generator:
    """Those of the intervals."""
    return np.random.default_rng(stream(seed, Purpose.BOOTSTRAP))


def _mean(scores: Mapping) -> Any:
    return sum(scores.values()) / len(scores)


def numbered(names: Iterable[Hashable]) -> np.ndarray:
    """Numbers from 0 on in the place of names, in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def grouped(judged: Sequence, names: Callable[[str], Iterable[str]]) -> Numbers:
    """The numbers of judged items by the names that their subsets have, S2 before S10."""
    found = defaultdict(list)
    for number, entry in enumerate(judged):
        for name in names(entry.item.subset):
            found[name].append(number)
    return dict(sorted(found.items(), key=lambda entry: _natural(entry[0])))


def _natural(name: str) -> list:
    """For sorting: S2 before S10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _tally(items: Scored, resamples: int, seed: int) -> dict:
    """The statistics of items: their mean credit with its interval, and those of pairs."""
    accuracy, questions = float(items.credits.mean()), len(set(items.questions.tolist()))
    numbers = np.unique(items.questions, return_inverse=True)[1]
    draws = bootstrap_means(items.credits, numbers, resamples, random_numbers(seed))
    return {
        "n": len(items.judged),
        "questions": questions,
        "ties": sum(map(is_tie, items.judged)),
        "accuracy": accuracy,
        "interval": share_interval(accuracy, draws, questions),
        "length_accuracy": float(items.length_credits.mean()),
        **_pair_statistics(items.judged, items.calibrated),
    }


def _pair_statistics(judged: Sequence[Judged], calibrated: bool) -> dict:
    """Statistics of pairs alone: margin, scores, calibration and length bias; of answers that were compared also position bias.

    What these are sure of is the probability of each pair, and no difference of scores. Of a judge's verdicts the valid ones
    count.
    """
    pairs = pairs_of(judged)
    if all(entry.wins is not None for entry in judged):
        return _verdict_statistics(judged, pairs, calibrated)
    scores = [(judged[i].better[b], judged[i].worse[w]) for i, b, w in pairs]
    (chosen, rejected), (long, short) = np.array(scores).T, _lengths(judged, pairs)
    margin = chosen - rejected
    found = {"pairs": len(pairs), "mean_margin": float(margin.mean())}
    bias = {"length_bias": length_bias(chosen, rejected, long, short)}
    orders = orders_of(judged)
    if orders is None:
        both = np.concatenate([chosen, rejected])
        moments = {"score_mean": float(both.mean()), "score_std": float(both.std())}
        return {**found, **moments, "calibration": calibration(chosen, rejected), **bias}
    orders = orders[~np.isnan(orders).any(1)]
    gap = log_odds(chances(orders))
    accuracy = float(((gap > 0) + 0.5 * (gap == 0)).mean())
    of_orders = {"pair_accuracy": accuracy, **position_bias(orders)}
    return {**found, **of_orders, "calibration": calibration(gap, np.zeros_like(gap)), **bias}


def _verdict_statistics(judged: Sequence[Judged], pairs: Sequence[tuple[int, int, int]], calibrated: bool) -> dict:
    wins = np.array([judged[i].wins[b, w] for i, b, w in pairs])
    valid = ~np.isnan(wins)
    if not valid.any():
        return {"pairs": len(pairs)}
    chances, (long, short) = wins[valid], _lengths(judged, pairs)[:, valid]
    found = {"pairs": len(pairs), "pair_accuracy": float(((chances > 0.5) + 0.5 * (chances == 0.5)).mean())}
    gap = log_odds(chances)
    sure = {"calibration": calibration(gap, np.zeros_like(gap))} if calibrated else {}
    return {**found, **sure, "length_bias": length_bias(chances, 1 - chances, long, short)}


def _lengths(judged: Sequence[Judged], pairs: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """(2, pairs): characters of the better and the worse answer."""
    lengths = [(len(judged[i].item.better[b].text), len(judged[i].item.worse[w].text)) for i, b, w in pairs]
    return np.array(lengths, dtype=np.float64).T


def _write_table(path: Path, summary: dict) -> None:
    by_length, rows = summary["length_baseline"], []
    for name, value in _headline(summary).items():
        rows.append(("headline", name, "", "", value, *summary["intervals"][name], by_length.get(name, ""), ""))
    for kind in ("groups", "subsets"):
        for name, part in summary[kind].items():
            score, bounds = _score_of(part)
            length = part.get("length_score", part["length_accuracy"])
            rows.append((kind[:-1], name, part["n"], part["ties"], score, *bounds, length, part["questions"]))
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "name", "n", "ties", "score", "low", "high", "length", "questions"])
        table.writerows(rows)
