"""What many numbers come to: quantiles, histograms, shares with intervals, repeats. Pure functions of arrays."""

from typing import Any

import numpy as np

from denserl.rewards.pair_metrics import wilson

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "max": 1.0}
_BINS = 20


def spread(values: np.ndarray) -> dict[str, float]:
    """Quantiles, interpolated between neighbours, and the mean of (n,) numbers; n of them, NaN left out."""
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not len(known):
        return {"n": 0}
    found = np.quantile(known, list(QUANTILES.values()))
    return {"n": len(known), **dict(zip(QUANTILES, found.tolist(), strict=True)), "mean": float(known.mean(dtype=np.float64))}


def histogram(values: np.ndarray) -> dict[str, list]:
    """How often numbers occur: each by itself where few differ, else in bins of one width.

    Returns: `edges`, one more than there are bins, or `values`; and `counts`.
    """
    known = values[~np.isnan(values)]
    different = np.unique(known)
    if len(different) <= _BINS:
        found, counts = np.unique(known, return_counts=True)
        return {"values": found.tolist(), "counts": counts.tolist()}
    counts, edges = np.histogram(known, _BINS)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def share(true: int, count: int) -> dict[str, Any]:
    """So many of so many, and Wilson's interval of the share."""
    of = true / count
    return {"count": true, "share": of, "interval": wilson(of, count)}


def clustered_share(true: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """The share of (n,) rows of which something is true, with Wilson's interval of as many rows as would tell as much.

    Rows of one cluster, (n,) numbers of any kind, are no independent evidence: n is divided by how much larger the variance of
    the share is than that of independent rows, sum over clusters of (sum over rows of true - share)^2 / sum over rows of the
    same squared (Kish's design effect), unless it is smaller. Where all rows are alike, a cluster counts as one.
    """
    of, count = float(true.mean()), len(true)
    _, number = np.unique(clusters, return_inverse=True)
    apart = true - of
    single = float((apart**2).sum())
    effect = float((np.bincount(number, apart) ** 2).sum()) / single if single else count / (number.max() + 1)
    return {"count": int(true.sum()), "share": of, "interval": wilson(of, count / max(effect, 1.0))}


def repeats(keys: np.ndarray) -> int:
    """How many of (n,) keys stand a second time, or once more."""
    return len(keys) - len(np.unique(keys))


def turned_round(pairs: np.ndarray, first: np.ndarray) -> int:
    """How many rows hold a pair whose responses stand the other way round in another row.

    Args:
        pairs: (n,) a key of a row's prompt and both responses, whichever is the better one. first: (n,) bool, whether the
            better one is that which is first in an order of all responses.
    """
    _, number = np.unique(pairs, return_inverse=True)
    ways = np.bincount(number, first) * np.bincount(number, ~first)
    return int((ways[number] > 0).sum())
