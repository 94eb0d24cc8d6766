"""What evaluations, best-of-n, answers, judged policies and fits of a normaliser came to: tables and charts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from denserl.intervals import wilson
from denserl.pages.charts import Chart, Reference, Series
from denserl.report.reading import Run, number, text
from denserl.terminal import visible

Table = list[list[str]]
LISTED = 200  # rows of a table
CALIBRATED = 7  # the colour of what would be
LARGEST_PICTURE = 2**21  # bytes
PNG = b"\x89PNG\r\n\x1a\n"
R2_WORDS = (
    (0.0, "worse than a constant: rewards do not depend on the place as this line has it"),
    (0.3, "hardly better than a constant"),
    (0.7, "explains a part of how rewards depend on the place"),
    (0.9, "explains most of how rewards depend on the place"),
    (math.inf, "explains nearly all of how rewards depend on the place"),
)


class Part(NamedTuple):
    """A heading with what stands below it."""

    title: str
    words: list[str]
    table: Table
    charts: list[Chart]
    picture: Path | None = None


def evaluations(runs: Sequence[Run]) -> list[Part]:
    """Of each suite its numbers by run with 95 % intervals, calibration and what length has to do with it."""
    found = []
    suites = dict.fromkeys(text(run.results.get("suite")) for run in runs)
    for suite in suites:
        own = [run for run in runs if text(run.results.get("suite")) == suite]
        parts = {run.name: _scores(run.results) for run in own}
        names = list(dict.fromkeys(name for scores in parts.values() for name in scores))
        table = [["", *parts], *([name, *(parts[run].get(name, "") for run in parts)] for name in names[:LISTED])]
        words = [f"{run.name}: {line}" for run in own for line in map(text, _list(run.results.get("remarks")))]
        found.append(Part(f"Evaluation: {suite}", words, table, _calibration(own) + _by_gap(own)))
    return found


def best_of_n(runs: Sequence[Run]) -> list[Part]:
    """What the best of n samples is worth by the model that chooses it and by the gold reward, against its KL."""
    charts, rows = [], [["run", "prompts", "samples", "gold at n = 1", "highest gold", "at n", "gold at the end"]]
    for score in ("gold", "proxy"):
        series = []
        for place, run in enumerate(runs):
            curve = _mapping(_mapping(run.results.get("unbiased")).get(score))
            x = _numbers(run.results.get("kl"))
            columns = [_numbers(curve.get(name)) for name in ("mean", "low", "high")]
            if x and len(columns[0]) == len(x):
                low, high = (column if len(column) == len(x) else None for column in columns[1:])
                series.append(Series(run.name, x, columns[0], "line", low, high, place))
        if series:
            charts.append(Chart(f"Best of n: {score} reward", "KL (nats)", f"{score} reward", series))
    for run in runs:
        gold = _numbers(run.results.get("gold"))
        counts = [_shown(run.results.get(name)) for name in ("prompts", "samples")]
        if gold:
            best = [_shown(run.results.get(name)) for name in ("gold_best", "best_n")]
            rows.append([run.name, *counts, _shown(gold[0]), *best, _shown(gold[-1])])
        else:
            rows.append([run.name, *counts, "", "", "", ""])
    return [Part("Best of n", [], rows, charts)] if runs else []


def answers(runs: Sequence[Run]) -> list[Part]:
    """Policies that have answered a suite: how many questions, and how long the answers are."""
    head = ["run", "suite", "model", "questions", "answers to each", "tokens", "characters", "cut off", "empty"]
    rows = [head]
    for run in runs:
        known = run.results
        lengths = [
            ", ".join(f"{mean:.1f}" for mean in _numbers(known.get(of)) if mean is not None) for of in ("tokens", "characters")
        ]
        cut = number(known.get("truncated"))
        counts = [_shown(_mapping(known.get("questions")).get("count")), _shown(known.get("samples"))]
        shown = [text(known.get("suite")), text(known.get("model")), *counts, *lengths, "" if cut is None else f"{cut:.0%}"]
        rows.append([run.name, *shown, _shown(known.get("empty"))])
    words = ["Tokens and characters are means, of each turn. The answers themselves are among the samples."]
    return [Part("Answers", words, rows, [])] if runs else []


def policies(runs: Sequence[Run]) -> list[Part]:
    """Judged policies: the headline of each with its interval, and how many judgements it is of."""
    found = []
    for run in runs:
        known = {name: entry for name, entry in _mapping(run.results.get("policies")).items() if isinstance(entry, dict)}
        head = ["policy", "number", "value", "95 % interval", "questions", "judged", "without verdict"]
        rows = []
        for name, entry in known.items():
            headline = _mapping(entry.get("headline"))
            counts = [_shown(entry.get(count)) for count in ("questions", "judged", "invalid")]
            bounds = _bounds(headline.get("interval")).strip()
            rows.append([text(name), text(headline.get("name")), _shown(headline.get("value")), bounds, *counts])
        judge = _mapping(run.results.get("judge"))
        judges = [text(one.get("judge")) for one in map(_mapping, _list(judge.get("judges")))]
        named = ", ".join(judges) or text(judge.get("scorer"))
        words = [f"Suite: {text(run.results.get('suite'))}{f', judged by {named}' if named else ''}."]
        words += [f"{text(name)}: {text(line)}" for name, entry in known.items() for line in _list(entry.get("remarks"))]
        if (run.folder / "report.html").is_file():
            words.append(f"All answers stand side by side in {run.folder / 'report.html'}.")
        found.append(Part(f"Judged policies: {run.name}", words, [head, *rows], []))
    return found


def fits(runs: Sequence[Run]) -> list[Part]:
    """The fits of normalisers, with their R^2 in words and their lines; one of several folders once."""
    found, seen = [], []
    for run in sorted(runs, key=lambda run: run.kind != "fit-normalizer"):
        for key, fit in list(run.fits.items())[:LISTED]:
            if fit in seen:
                continue
            seen.append(fit)
            words, rows = [], [["of segment rewards by place p", "fitted line", "R²"]]
            constants = [number(value) for value in _list(fit.get("constants"))]
            whole = len(constants) == 4 and None not in constants
            for place, name in enumerate(("mean", "std")):
                r2 = number(fit.get(f"r2_{name}"))
                line = f"{constants[place]:.4g} ln p {constants[place + 2]:+.4g}" if whole else "not known"
                rows.append([name, line, "not known" if r2 is None else f"{r2:.3f}"])
                words.append(
                    f"The line of the {name}: {'R² is not known' if r2 is None else f'R² {r2:.3f}, {r2_in_words(r2)}'}."
                )
            counts = [
                f"{_shown(fit.get(name))} {name}" for name in ("pairs", "segments", "groups") if fit.get(name) is not None
            ]
            words += [f"Fitted on {', '.join(counts)}."] if counts else []
            picture = _picture(run.folder / "normalizer.png") if run.kind == "fit-normalizer" and len(run.fits) == 1 else None
            charts = [_lines(constants)] if whole and picture is None else []
            found.append(Part(f"Normaliser: {run.name}, {text(key)}", words, rows, charts, picture))
    return found


def r2_in_words(r2: float) -> str:
    """What an R^2 says of a fitted line."""
    return next(words for limit, words in R2_WORDS if r2 < limit)


def _lines(constants: Sequence[float]) -> Chart:
    """Mean and std by place, as the fit has them."""
    slope, spread, at, spread_at = constants
    places = [k / 50 for k in range(1, 51)]
    lines = {"mean": (slope, at), "std": (spread, spread_at)}
    series = [Series(name, places, [a * math.log(p) + b for p in places]) for name, (a, b) in lines.items()]
    return Chart("Fitted lines", "place p = k / K", "of segment rewards", series)


def _calibration(runs: Sequence[Run]) -> list[Chart]:
    """How often pairs are judged rightly, by how sure the scores are; the interval of each bin is Wilson's."""
    series, words = [], []
    for place, run in enumerate(runs):
        calibration = _mapping(run.results.get("calibration"))
        bins = [row for row in map(_mapping, _list(calibration.get("bins"))) if _bin(row)]
        if bins:
            accuracy, n = [row["accuracy"] for row in bins], [row["n"] for row in bins]
            low, high = zip(*(wilson(a, count) for a, count in zip(accuracy, n, strict=True)), strict=True)
            series.append(Series(run.name, [row["confidence"] for row in bins], accuracy, "points", low, high, place))
            words.append(f"{f'{run.name}: ' if len(runs) > 1 else ''}ECE {_shown(calibration.get('ece'))}")
    if not series:
        return []
    ideal = Series("as sure as right", [0.5, 1.0], [0.5, 1.0], colour=CALIBRATED, dashed=True)
    note = f"{'; '.join(words)}. Bars: 95 % intervals by Wilson."
    return [Chart("Calibration", "confidence of a pair", "share judged rightly", [*series, ideal], note=note)]


def _by_gap(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy by how many characters the chosen answer is longer."""
    series = []
    for place, run in enumerate(runs):
        rows = [_mapping(row) for row in _list(_mapping(run.results.get("length_bias")).get("by_gap"))]
        rows = [
            row
            for row in rows
            if None not in (number(row.get(name)) for name in ("low", "high", "n", "accuracy")) and row["n"] > 0
        ]
        if rows:
            middle, accuracy = [(row["low"] + row["high"]) / 2 for row in rows], [row["accuracy"] for row in rows]
            low, high = zip(*(wilson(min(max(row["accuracy"], 0.0), 1.0), row["n"]) for row in rows), strict=True)
            series.append(Series(run.name, middle, accuracy, "points", low, high, place))
    if not series:
        return []
    note = "Pairs in parts of about equal size, each at the middle of its differences. Bars: 95 % intervals by Wilson."
    xlabel = "characters by which the better answer is longer"
    return [Chart("Accuracy and length", xlabel, "share judged rightly", series, [Reference("by chance", 0.5)], note)]


def _bin(row: Mapping[str, Any]) -> bool:
    confidence, accuracy, n = (number(row.get(name)) for name in ("confidence", "accuracy", "n"))
    return None not in (confidence, accuracy, n) and n > 0 and 0 <= accuracy <= 1


def _scores(results: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of an evaluation by what they are of, with their intervals."""
    intervals = _mapping(results.get("intervals"))
    shown = {text(name): f"{_shown(results.get(name))}{_bounds(bounds)}" for name, bounds in intervals.items()}
    for kind in ("groups", "subsets"):
        for name, part in _mapping(results.get(kind)).items():
            part = _mapping(part)
            value = part.get("score", part.get("accuracy", part.get("f1")))
            bounds = part.get("score_interval", part.get("interval"))
            if number(value) is not None:
                shown.setdefault(text(name), f"{_shown(value)}{_bounds(bounds)} (n {_shown(part.get('n'))})")
    return shown


def _bounds(bounds: Any) -> str:
    found = [number(value) for value in _list(bounds)]
    return f" [{found[0]:.4f}, {found[1]:.4f}]" if len(found) == 2 and None not in found else ""


def _picture(path: Path) -> Path | None:
    """The plot, where there is one that a page can hold."""
    if not path.is_file() or path.stat().st_size > LARGEST_PICTURE or path.open("rb").read(len(PNG)) != PNG:
        return None
    return path


def _shown(value: Any) -> str:
    found = number(value)
    if found is None:
        return "" if value is None else visible(text(value)[:100])
    return str(value) if isinstance(value, int) else f"{found:.4f}"


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> list[float | None]:
    return [number(one) for one in _list(value)]
