"""The page of what was found: the summary's sections, charts, and responses cut at three thresholds side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from denserl.files import write_flushed
from denserl.inspection.sections import Section, sections_of
from denserl.pages.charts import Chart, Reference, Series
from denserl.pages.rendering import CHART_SCRIPTS, render
from denserl.pages.segments import Segment, Step, limit_of, share_of
from denserl.terminal import visible

OPEN = 2  # responses that are unfolded when the page opens
_COLOURS = 5  # steps of the legend
_SHARES = {"one_token": "of one token", "at_word": "begin at a word", "at_line": "at a line", "at_sentence": "at a sentence"}


def write_page(target: Path, figures: Mapping[str, Any]) -> None:
    """figures: as `inspected` finds them, with the options that were given."""
    charts = {
        "numbers": [_bars(name, name, of["histogram"]) for name, of in figures["numbers"].items()],
        "entropies": [_bars("Entropies of tokens", "nats", figures["entropies"]["histogram"])]
        if "entropies" in figures
        else [],
        "thresholds": _of_thresholds(figures["thresholds"], figures["wished"]) if "thresholds" in figures else [],
    }
    page = {
        "title": visible(f"Data: {', '.join(Path(source).name or source for source in figures['options']['data'])}", kept=""),
        "model": visible(str(figures["options"]["model"] or ""), kept=""),
        "sections": [_shown(section, charts.get(section.key, [])) for section in sections_of(figures)],
        **_cuts(figures.get("responses", []), figures.get("thresholds", [])),
    }
    write_flushed(target, render("inspection/inspect.html", page, CHART_SCRIPTS))


def _shown(section: Section, charts: Sequence[Chart]) -> dict[str, Any]:
    return {
        "title": section.title,
        "words": [visible(text) for text in section.words],
        "table": [[visible(cell) for cell in row] for row in section.table],
        "charts": [chart.data() for chart in charts],
    }


def _bars(title: str, unit: str, histogram: Mapping[str, list]) -> Chart:
    """How often numbers occur, at their values or in the middle of their bins."""
    at = histogram.get("values") or [(low + high) / 2 for low, high in zip(histogram["edges"], histogram["edges"][1:])]
    return Chart(title, unit, "how many", [Series("how many", at, histogram["counts"], "bars")])


def _of_thresholds(at: Sequence[Mapping[str, float]], wished: Mapping[str, Any]) -> list[Chart]:
    x = [each["threshold"] for each in at]

    def line(name: str, key: str) -> Series:
        return Series(name, x, [each[key] for each in at])

    goal = [Reference(f"{wished['tokens_per_segment']:g} tokens", wished["tokens_per_segment"])]
    label = "entropy threshold (nats)"
    length = [line("tokens a segment", "tokens_per_segment")]
    return [
        Chart("How long segments are", label, "tokens a segment", length, goal, logarithmic=True),
        Chart("What segments are like", label, "share of segments", [line(name, key) for key, name in _SHARES.items()]),
    ]


def _cuts(responses: Sequence[Mapping[str, Any]], thresholds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Responses cut at several thresholds, on the colour of the entropy at which each segment opens."""
    lengths = {at["threshold"]: at["tokens_per_segment"] for at in thresholds}
    opened = [segment["entropy"] for one in responses for cut in one["cuts"] for segment in cut["segments"]]
    limit = limit_of(opened)
    return {
        "open": OPEN,
        "legend_steps": [
            Step(f"{entropy:.1f}", share_of(entropy, limit)) for entropy in np.linspace(0, limit, _COLOURS).tolist()
        ],
        "responses": [
            {
                "name": visible(f"{Path(one['place']).name}, {one['side']}", kept=""),
                "length": f"{one['tokens']} tokens"
                + ("" if one["tokens"] == one["shown_tokens"] else f", the first {one['shown_tokens']} shown"),
                "cuts": [
                    {
                        "title": f"threshold {cut['threshold']:g}, {lengths[cut['threshold']]:.2f} tokens a segment",
                        "segments": _coloured(cut, limit),
                    }
                    for cut in one["cuts"]
                ],
            }
            for one in responses
        ],
    }


def _coloured(cut: Mapping[str, Any], limit: float) -> list[Segment]:
    return [
        Segment(
            visible(segment["text"]),
            f"{segment['tokens']} token{'s' if segment['tokens'] > 1 else ''}, opened at entropy {segment['entropy']:.2f}",
            share_of(segment["entropy"], limit),
        )
        for segment in cut["segments"]
    ]
