"""Segments of a text as a page shows them (segments.html), and numbers as shares of the colours' ends."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

QUANTILE = 0.95  # of the sizes of numbers, beyond which they have the colour of the end


class Segment(NamedTuple):
    """A part of a text on the colour of a number. text, title and label have no control characters (terminal.visible)."""

    text: str
    title: str  # shown for the pointer and the keyboard
    share: float  # from -1 to 1: see share_of
    label: str = ""  # shown behind the text


class Step(NamedTuple):
    """One colour of a legend."""

    label: str
    share: float


def share_of(value: float, limit: float) -> float:
    """Where a number stands between 0 and the colours' ends at -limit and limit; 0 for one that is not finite."""
    return round(min(max(value / limit, -1.0), 1.0), 3) + 0.0 if math.isfinite(value) else 0.0


def limit_of(values: Iterable[float]) -> float:
    """The number at the end of the colours: the 95 % quantile of the sizes of those that are finite; 1 where that is 0."""
    sizes = np.abs(np.fromiter(values, dtype=np.float64))
    sizes = sizes[np.isfinite(sizes)]
    return (float(np.quantile(sizes, QUANTILE)) if len(sizes) else 0.0) or 1.0


def legend(limit: float, steps: int = 9) -> list[Step]:
    """Steps from -limit to limit, 0 in the middle. steps: an odd number."""
    numbers = np.linspace(-limit, limit, steps).tolist()
    return [Step(f"{number:+.1f}" if limit >= 1 else f"{number:+.2g}", share_of(number, limit)) for number in numbers]
