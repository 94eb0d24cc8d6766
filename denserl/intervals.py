"""Intervals of shares and means. Light: pages read it without torch."""

from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

LEVEL = 0.95  # of every interval


def wilson(share: float, count: float, level: float = LEVEL) -> list[float]:
    """Wilson's interval, [low, high], of a share of `count` independent pairs.

    The p for which |share - p| <= z sqrt(p (1 - p) / count), where z is the normal quantile of `level`.
    """
    square = NormalDist().inv_cdf((1 + level) / 2) ** 2 / count
    middle, half = share + square / 2, (square * (share * (1 - share) + square / 4)) ** 0.5
    return [max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))]


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """The mean of at least one value with Student's t interval; the bounds of a single value are None."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    # Here, for it takes a while to load.
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half
