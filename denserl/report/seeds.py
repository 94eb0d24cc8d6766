"""Runs that are seeds of one another, and their mean."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from denserl.intervals import mean_interval
from denserl.report.reading import Run

# What may differ between seeds of one setting, beside paths.
OWN = {"seed", "output_dir", "cache_dir", "resume"}


class Curve(NamedTuple):
    """Numbers of a metric by step; bounds of their interval, where they are means over several runs."""

    x: list[float]
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None


def groups_of(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, those together that have one command and one setting but for seeds, which all differ, and paths."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = _setting(run)
        seed = run.settings.get("seed")
        # One that has the seed of another is none of its seeds; nor is one without a record of its settings.
        while any(other.settings.get("seed") == seed for other in found.get(key, ())):
            key += " again"
        found.setdefault(key, []).append(run)
    return list(found.values())


def _setting(run: Run) -> str:
    """What seeds of one setting have in common: options, and data by what is in it; not where things are, nor which models."""
    if not run.settings:
        return str(run.folder)
    inputs = run.entries[-1].get("inputs")
    inputs = inputs if isinstance(inputs, dict) else {}
    options = {name: value for name, value in run.settings.items() if name not in OWN and name not in inputs}
    data = {name: [_content(about) for about in files.values()] for name, files in inputs.items() if isinstance(files, dict)}
    return json.dumps([run.kind, options, data], sort_keys=True, default=str)


def _content(about: Any) -> Any:
    """Of an input the hash of its data, that it is a model, or else where it is."""
    if not isinstance(about, dict):
        return about
    return "a model" if "fingerprint" in about else about.get("sha256", about.get("path"))


def name_of(group: Sequence[Run]) -> str:
    """What a group is called: by its only run, or by the first one and how many there are."""
    return group[0].name if len(group) == 1 else f"{group[0].name} (mean of {len(group)} seeds)"


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves with its 95 % t interval, at the steps that all of them have; of one, that one."""
    if len(curves) == 1:
        return curves[0]
    at = [dict(zip(curve.x, curve.y, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(curve.x) for curve in curves)))
    means, lows, highs = [], [], []
    for step in steps:
        values = [found[step] for found in at]
        known = [value for value in values if value is not None and math.isfinite(value)]
        mean, low, high = mean_interval(known) if len(known) == len(values) else (None, None, None)
        means.append(mean)
        lows.append(low)
        highs.append(high)
    return Curve(steps, means, lows, highs)
