"""What the strength of preferences says of pairs: their parts, and how members agree. Pure functions of (M, N) differences.

Mean, spread and votes are in data/strength_file.py, with the file that keeps them. Source: arXiv 2401.06080.
"""

import numpy as np
from numpy.typing import ArrayLike

# From the lowest means on: the share of pairs at which each part ends.
PARTS = {"incorrect": 0.2, "ambiguous": 0.4, "normal": 0.9, "strong": 1.0}
# What parts are called in results, and tenths by the same rank: a name, or a number from 1 on, is behind it.
GROUP = "strength "
DECILE = f"{GROUP}decile "


def parts(mean: ArrayLike) -> np.ndarray:
    """The part of each of N pairs by the rank of its mean, as (N,) numbers into the names of PARTS.

    Equal means rank in the order given. A part ends at its share of N, to the nearest whole number.

    Args:
        mean: (N,) mean differences.
    """
    count = np.shape(mean)[0]
    ends = [round(share * count) for share in PARTS.values()]
    return np.searchsorted(ends, ranks(mean), side="right")


def ranks(mean: ArrayLike) -> np.ndarray:
    """The places of N means when they are sorted, from 0 at the lowest; equal ones in the order given."""
    found = np.empty(np.shape(mean)[0], dtype=np.int64)
    found[np.argsort(mean, kind="stable")] = np.arange(len(found))
    return found


def mean_chance(difference: ArrayLike) -> np.ndarray:
    """(N,) mean over members of sigma(difference), the chance that each gives the chosen response.

    Args:
        difference: (M, N) chosen less rejected; NaN where a member has no say.
    """
    return np.nanmean(0.5 + 0.5 * np.tanh(np.asarray(difference, dtype=np.float64) / 2), 0)


def agreement(difference: ArrayLike) -> float | None:
    """The share of pairs which two members order alike, mean over all two that both have a say of some; None for one member.

    A pair whose responses one of them scores equally counts half.

    Args:
        difference: (M, N) chosen less rejected; NaN where a member has no say.
    """
    signs = np.sign(np.asarray(difference, dtype=np.float64))
    alike = [
        float((0.5 + 0.5 * both[~np.isnan(both)]).mean())
        for first, row in enumerate(signs)
        for both in (row * other for other in signs[first + 1 :])
        if not np.isnan(both).all()
    ]
    return float(np.mean(alike)) if alike else None
