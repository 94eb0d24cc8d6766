"""What pairs are learned as when it is known how strong they are: turned round, with a margin, softly, or not at all.

Pure functions of (N,) mean differences and shares of votes (data/strength_file.py). Source: arXiv 2401.06080, section 2.2.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from denserl.errors import UserError
from denserl.rewards.strength import PARTS, ranks

Use = Literal["flip", "margin", "flip_margin", "soft", "soft_margin", "votes", "sigmoid"]
FLIPS = ("flip", "flip_margin")
SOFTENS = ("soft", "soft_margin")
MARGINS = ("margin", "flip_margin", "soft_margin")
SIGNS = ("negative", "positive")


class Learned(NamedTuple):
    """What N pairs are learned as; None: as their rows say."""

    turned: np.ndarray  # (N,) bool: chosen and rejected are exchanged
    margin: np.ndarray | None = None  # (N,) of the score of what is then chosen over that of the other
    p_chosen: np.ndarray | None = None  # (N,) chance that what is then chosen is the better


def learned_as(
    use: Use,
    mean: np.ndarray,
    votes: np.ndarray,
    low: str = "0.2",
    scale: float = 1.0,
    clip: float | None = None,
    smoothing: float = 0.1,
) -> Learned:
    """What pairs are learned as.

    flip: those of the low part are turned round. soft: those of the low part are wrong with a chance of `smoothing`.
    margin: -log sigmoid(d - m), m = scale x mean held within +-clip, a turned pair's with the other sign; below 0 it asks for
    less than equality. votes, sigmoid: the chance that the label is right is the share of votes, or sigmoid(scale x mean).

    Args:
        mean, votes: (N,), as of `Strength`. low: the part (`in_part`) whose labels are taken for wrong.
    """
    is_low = in_part(mean, low)
    turned = is_low & (use in FLIPS)
    margin, p_chosen = None, None
    if use in MARGINS:
        margin = scale * np.where(turned, -mean, mean)
        margin = margin if clip is None else margin.clip(-clip, clip)
    if use in SOFTENS:
        p_chosen = np.where(is_low, 1 - smoothing, 1.0)
    elif use == "votes":
        p_chosen = np.asarray(votes, dtype=np.float64)
    elif use == "sigmoid":
        p_chosen = expit(scale * mean)
    return Learned(turned, margin, p_chosen)


def in_part(mean: np.ndarray, part: str) -> np.ndarray:
    """(N,) bool: which pairs are in a part, as `check_part` knows them; by ranks of the mean, or by its sign.

    A pair whose mean is not known (NaN) is in none, and is not counted.
    """
    if part in SIGNS:
        return mean < 0 if part == "negative" else mean >= 0
    (low, high), places, known = _shares(part), ranks(mean), np.count_nonzero(~np.isnan(mean))
    return (round(low * known) <= places) & (places < round(high * known))


def check_part(option: str, part: str) -> None:
    """UserError for what is no part: a sign, one of PARTS, the share with the lowest means, or two shares as LOW-HIGH."""
    try:
        low, high = (0.0, 1.0) if part in SIGNS else _shares(part)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        known = f"{', '.join(SIGNS)}, {', '.join(PARTS)}, a share such as 0.2, or two such as 0.1-0.2"
        raise UserError(f"`{option}` {part} is no part of the pairs; there are {known}", f"correct `{option}`")


def _shares(part: str) -> tuple[float, float]:
    """From which share of the pairs to which, the lowest means first. ValueError for other words."""
    if part in PARTS:
        names = list(PARTS)
        at = names.index(part)
        return (PARTS[names[at - 1]] if at else 0.0), PARTS[part]
    low, dash, high = part.rpartition("-")
    return float(low if dash else 0), float(high)
