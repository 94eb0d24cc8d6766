"""Charts as data: what uPlot (vendor/, version 1.6.32, MIT) draws and charts.js writes beside it as a table.

A page with charts includes pages/charts.css in its style, puts `chart(...)` of pages/charts.html where they belong and is
rendered with the scripts `CHART_SCRIPTS` (rendering.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from denserl.terminal import visible

Numbers = Sequence[float | None]
DIGITS = 6  # of the numbers on a page


@dataclass(frozen=True)
class Series:
    """One line, row of bars or cloud of points. A number that is None or not finite is a gap."""

    name: str
    x: Sequence[float]  # rising, but for points
    y: Numbers
    kind: Literal["line", "bars", "points"] = "line"
    low: Numbers | None = None  # bounds of an interval around each y: a band of a line, a bar of a point
    high: Numbers | None = None
    colour: int | None = None  # of the palette; by default the place among the chart's series
    dashed: bool = False


@dataclass(frozen=True)
class Reference:
    """A dashed line across the chart at a height, with its name."""

    name: str
    y: float


@dataclass(frozen=True)
class Chart:
    """Series over one x-axis. Bars are as wide as the x of their series are apart, and stand on 0."""

    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    references: Sequence[Reference] = ()
    note: str = ""  # a sentence below the title
    logarithmic: bool = False  # the y-axis; for numbers above 0
    # A head and rows of cells to be read in place of the numbers drawn, where these are too many to be read.
    table: Sequence[Sequence[str]] = field(default=())

    def data(self) -> dict[str, Any]:
        """As JSON for charts.js: numbers rounded to 6 digits, texts without control characters."""
        return {
            **{name: visible(getattr(self, name)) for name in ("title", "xlabel", "ylabel", "note")},
            "log": self.logarithmic,
            "series": [_series(series, number) for number, series in enumerate(self.series)],
            "references": [{"name": visible(line.name), "y": _number(line.y)} for line in self.references],
            "table": [[visible(cell) for cell in row] for row in self.table],
        }


def _series(series: Series, number: int) -> dict[str, Any]:
    columns = {name: getattr(series, name) for name in ("x", "y", "low", "high")}
    return {
        "name": visible(series.name),
        "kind": series.kind,
        "dashed": series.dashed,
        "colour": number if series.colour is None else series.colour,
        **{name: [_number(value) for value in values] for name, values in columns.items() if values is not None},
    }


def _number(value: float | None) -> float | None:
    """Rounded; whole numbers as such, which are shorter."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
