"""Which pairs a model has judged so surely that they may be learned from, and which side of them wins. Pure functions.

Self-training of reward models (arXiv 2409.06903).
"""

from typing import Literal

import numpy as np

Balance = Literal["none", "length"]


def confident(chances: np.ndarray, threshold: float) -> np.ndarray:
    """max(p, 1 - p) > threshold, strictly: (n,) bool. A chance of exactly one half, or none (NaN), is never kept.

    chances: (n,) p that the first of two responses is the better.
    """
    return np.maximum(chances, 1 - chances) > max(threshold, 0.5)


def surest(chances: np.ndarray, sources: np.ndarray, share: float) -> np.ndarray:
    """The surest share of the pairs of each source: (n,) bool.

    round(share * pairs of the source that have a chance), those of equal confidence in file order; none at one half.

    Args:
        chances: (n,) p that the first of two responses is the better. sources: (n,) number of each pair's source.
    """
    sure = np.nan_to_num(np.maximum(chances, 1 - chances), nan=0.0)
    kept = np.zeros(len(chances), dtype=bool)
    for source in np.unique(sources):
        inside = np.flatnonzero(sources == source)
        many = round(share * int((sure[inside] > 0).sum()))
        kept[inside[np.argsort(-sure[inside], kind="stable")[:many]]] = True
    return kept & (sure > 0.5)


def balanced(chances: np.ndarray, kept: np.ndarray, longer: np.ndarray) -> np.ndarray:
    """Of the kept pairs as many won by the longer as by the shorter response, the surest of each: (n,) bool.

    A model's own labels prefer the longer response more often still than those it learned from. Pairs of equal lengths say
    nothing of it, and stay.

    Args:
        chances: (n,) p that the first of two responses is the better. kept: (n,) bool.
        longer: (n,) length of the first response less that of the second.
    """
    sign = np.sign(longer) * np.where(chances > 0.5, 1, -1)  # 1: the longer wins, -1: the shorter
    sides = [np.flatnonzero(kept & (sign == side)) for side in (1, -1)]
    many = min(map(len, sides))
    sure = np.maximum(chances, 1 - chances)
    balanced = kept & (sign == 0)
    for side in sides:
        balanced[side[np.argsort(-sure[side], kind="stable")[:many]]] = True
    return balanced


def pseudo_labelled(row: dict, chance: float, kind: Literal["hard", "soft"]) -> dict:
    """A pair of two responses as a preference row: the winner is chosen, the first if and only if p > 1/2.

    Its `p_chosen` is max(p, 1 - p) where labels are soft, else 1. ValueError at one half, which says nothing.

    Args:
        row: prompt, first, second. chance: p that the first is the better.
    """
    if chance == 0.5:
        raise ValueError("a chance of one half is no label")
    won, lost = ("first", "second") if chance > 0.5 else ("second", "first")
    sure = max(chance, 1 - chance) if kind == "soft" else 1.0
    return {"prompt": row["prompt"], "chosen": row[won], "rejected": row[lost], "p_chosen": sure}
