"""Results of a suite: from judged items to one dictionary, and the files that are written of it."""

import csv
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from denserl.evaluation.items import Judged, Scorer, is_tie, pairs_of, with_scores
from denserl.evaluation.statistics import bootstrap_means, calibration, interval, length_bias
from denserl.evaluation.suites.registry import Suite
from denserl.evaluation.suites.rewardbench import write_outputs
from denserl.files import write_flushed

_LIBRARIES = ("denserl", "torch", "transformers", "datasets")
Numbers = dict[str, list[int]]  # name of a subset or a group -> the numbers of its items


def summarise(suite: Suite, judged: Sequence[Judged], resamples: int, seed: int) -> dict:
    """All numbers of a suite, its headline first; intervals are 95 % percentile bootstrap intervals.

    Those of the headline and of the macro accuracy draw items anew within each subset, the others within all that they are of.
    """
    rng = np.random.default_rng(seed)
    by_length = _by_length(judged)
    credits, of_length = (np.array([suite.credit(entry) for entry in each]) for each in (judged, by_length))
    parts, groups = _grouped(judged, lambda subset: (subset,)), _grouped(judged, suite.groups)
    means = {name: bootstrap_means(credits[numbers], resamples, rng) for name, numbers in parts.items()}
    subsets = {name: _tally(judged, credits, of_length, numbers, means[name]) for name, numbers in parts.items()}
    draws = dict(means)
    for name, special in _special(suite, parts):
        rows, lengths = ([each[i] for i in parts[name]] for each in (judged, by_length))
        draws[name] = special.draw(rows, resamples, rng)
        score, length_score = special.score(rows), special.score(lengths)
        subsets[name] |= {"score": score, "score_interval": interval(draws[name]), "length_score": length_score}
    counts = {name: part["n"] for name, part in subsets.items()}
    headline, baseline = (
        suite.headline({name: part.get(f"{of}score", part[f"{of}accuracy"]) for name, part in subsets.items()}, counts)
        for of in ("", "length_")
    )
    drawn = suite.headline(draws, counts)
    whole = _tally(judged, credits, of_length, range(len(judged)), bootstrap_means(credits, resamples, rng))
    return {
        **headline,
        "accuracy": whole["accuracy"],
        "macro_accuracy": float(np.mean([part["accuracy"] for part in subsets.values()])),
        "n": whole["n"],
        "ties": whole["ties"],
        "intervals": {
            **{name: interval(drawn[name]) for name, value in headline.items() if value is not None},
            "accuracy": whole["interval"],
            "macro_accuracy": interval(np.asarray(sum(means.values())) / len(means)),
        },
        **{name: whole[name] for name in ("pairs", "mean_margin", "calibration", "length_bias")},
        "length_baseline": {**baseline, "accuracy": whole["length_accuracy"]},
        "groups": {
            name: _tally(judged, credits, of_length, numbers, bootstrap_means(credits[numbers], resamples, rng))
            for name, numbers in groups.items()
        },
        "subsets": subsets,
    }


def _by_length(judged: Sequence[Judged]) -> list[Judged]:
    """The items with the lengths of their answers, in characters, for scores."""
    lengths = [len(answer.text) for item, *_ in judged for answer in (*item.better, *item.worse)]
    return with_scores([item for item, *_ in judged], np.array(lengths, dtype=np.float64))


def write(folder: Path, model: str, suite: Suite, judged: Sequence[Judged], scorer: Scorer, summary: dict) -> None:
    """The plot, the table, the outputs of every item, the suite's own files, and last `results.json`, which stands for all.

    Args:
        model: name of the scorer, under which RewardBench's shapes are written; a `/` in it makes a folder.
    """
    from denserl.evaluation.plots import plot_reliability

    credits = [suite.credit(entry) for entry in judged]
    plot_reliability(summary["calibration"], folder / "reliability.png")
    _write_table(folder / "results.csv", summary)
    for writer in (write_outputs, *suite.writers):
        writer(folder, model, judged, credits, scorer, summary)
    write_flushed(folder / "results.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """The versions of the libraries that scores depend on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def format_summary(summary: dict) -> str:
    """The headline and the scores of all groups and subsets, in aligned columns."""
    rows = [[name, f"{value:.4f}", "", _span(summary["intervals"][name])] for name, value in _headline(summary).items()]
    for kind in ("groups", "subsets"):
        rows += [
            [f"  {name}", f"{score:.4f}", f"n {part['n']}", _span(bounds)]
            for name, part in summary[kind].items()
            for score, bounds in [_score_of(part)]
        ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _headline(summary: dict) -> dict[str, float]:
    """The numbers at the top that have an interval."""
    return {name: summary[name] for name in summary["intervals"]}


def _score_of(part: dict) -> tuple[float, list[float]]:
    """A subset's own score, where it has one, or its accuracy, and the interval."""
    return (part["score"], part["score_interval"]) if "score" in part else (part["accuracy"], part["interval"])


def _span(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"


def _grouped(judged: Sequence[Judged], names: Callable[[str], Iterable[str]]) -> Numbers:
    found = defaultdict(list)
    for number, entry in enumerate(judged):
        for name in names(entry.item.subset):
            found[name].append(number)
    return dict(sorted(found.items()))


def _special(suite: Suite, parts: Numbers) -> list:
    return [(name, special) for name, special in suite.special.items() if name in parts]


def _tally(
    judged: Sequence[Judged], credits: np.ndarray, of_length: np.ndarray, numbers: Sequence[int], draws: np.ndarray
) -> dict:
    """The statistics of the items of those numbers. credits, of_length: what scores and lengths earn, of all items."""
    entries, rows = [judged[i] for i in numbers], list(numbers)
    return {
        "n": len(entries),
        "ties": sum(map(is_tie, entries)),
        "accuracy": float(credits[rows].mean()),
        "interval": interval(draws),
        "length_accuracy": float(of_length[rows].mean()),
        **_pair_statistics(entries),
    }


def _pair_statistics(judged: Sequence[Judged]) -> dict:
    """Statistics of pairs alone: margin, calibration and length bias."""
    pairs = pairs_of(judged)
    scores = [(judged[i].better[b], judged[i].worse[w]) for i, b, w in pairs]
    lengths = [(len(judged[i].item.better[b].text), len(judged[i].item.worse[w].text)) for i, b, w in pairs]
    (chosen, rejected), (long, short) = np.array(scores).T, np.array(lengths, dtype=np.float64).T
    return {
        "pairs": len(pairs),
        "mean_margin": float((chosen - rejected).mean()),
        "calibration": calibration(chosen, rejected),
        "length_bias": length_bias(chosen, rejected, long, short),
    }


def _write_table(path: Path, summary: dict) -> None:
    by_length, rows = summary["length_baseline"], []
    for name, value in _headline(summary).items():
        rows.append(("headline", name, "", "", value, *summary["intervals"][name], by_length.get(name, "")))
    for kind in ("groups", "subsets"):
        for name, part in summary[kind].items():
            score, bounds = _score_of(part)
            length = part.get("length_score", part["length_accuracy"])
            rows.append((kind[:-1], name, part["n"], part["ties"], score, *bounds, length))
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kind", "name", "n", "ties", "score", "low", "high", "length"])
        table.writerows(rows)
