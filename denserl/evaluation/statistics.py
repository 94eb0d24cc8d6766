"""Statistics of scored pairs: bootstrap intervals, calibration and length bias. Pure functions of arrays."""

from collections import defaultdict

import numpy as np
from scipy.special import expit

from denserl.intervals import LEVEL, wilson
from denserl.rewards.pair_chances import CONFIDENCE_BINS, calibration_error, reliability

GAP_BINS = 5
SAME = 1e-12  # differences below are of rounding


def bootstrap_means(credits: np.ndarray, questions: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `credits` on questions drawn anew with replacement, each with all its items: (resamples,).

    Args: see `bootstrap_parts`.
    """
    return bootstrap_parts(credits, questions, np.zeros(len(credits), dtype=int), resamples, rng)[:, 0]


def bootstrap_parts(
    credits: np.ndarray, questions: np.ndarray, parts: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of `credits` in each of several parts, on questions drawn anew, each with all its items: (resamples, parts).

    A question is drawn among those that have items in the same parts: parts that share questions vary together, and none is
    ever empty. A mean is the sum of the credits drawn over the number of items drawn.

    Args:
        credits: (n,). questions, parts: (n,) numbers from 0 on, none left out, of the question and part of each item.
    """
    cells, cell = np.unique(np.stack([questions, parts]), axis=1, return_inverse=True)
    sums, sizes = np.bincount(cell.ravel(), credits), np.bincount(cell.ravel())
    strata = defaultdict(list)
    for here in np.split(np.arange(len(sums)), np.flatnonzero(np.diff(cells[0])) + 1):
        strata[tuple(cells[1, here])].append(np.concatenate([sums[here], sizes[here]]))
    total = np.zeros((2, resamples, parts.max() + 1))
    for inside, rows in strata.items():
        # How often each kind of question is drawn, a multinomial number, says all.
        kinds, counts = np.unique(rows, axis=0, return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=resamples) @ kinds
        total[:, :, list(inside)] += drawn.reshape(resamples, 2, len(inside)).transpose(1, 0, 2)
    return total[0] / total[1]


def interval(draws: np.ndarray, level: float = LEVEL) -> list[float]:
    """The percentile interval of bootstrap draws, [low, high]."""
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()


def share_interval(value: float, draws: np.ndarray, questions: float) -> list[float]:
    """The interval of a share of items: of its bootstrap draws, or where all are the same, Wilson's of so many questions."""
    low, high = interval(draws)
    return wilson(value, questions) if high - low < SAME and 0 <= value <= 1 else [low, high]


def calibration(chosen: np.ndarray, rejected: np.ndarray, bins: int = CONFIDENCE_BINS) -> dict:
    """How well the Bradley-Terry probability sigmoid(r_c - r_r) says how often a pair is judged rightly.

    Which answer stands first says nothing, so the confidence of a pair is that of the answer preferred, max(p, 1 - p), and it
    is right where that is the chosen one (a tie, half). Bins divide [0.5, 1] evenly.

    Returns: `ece` = sum over bins of n_b / n |accuracy_b - confidence_b|; `brier` = mean (1 - p)^2; `bins`, the non-empty ones.
    """
    gap = chosen - rejected
    right = (gap > 0) + 0.5 * (gap == 0)
    confidence = expit(np.abs(gap))
    rows = reliability(confidence, right, bins)
    return {"ece": calibration_error(rows), "brier": float(np.mean((1 - expit(gap)) ** 2)), "bins": rows}


def position_bias(orders: np.ndarray) -> dict[str, float]:
    """How much the place of an answer says in comparisons of two.

    Args:
        orders: (n, 2) log-odds that the answer which stands first is better, with one of the two first, then the other.

    Returns: `position_consistency`, the share of pairs whose two orders prefer the same answer; `position_bias`, the mean
        magnitude of (l1 + l2) / 2, which is 0 where the place says nothing.
    """
    same = np.sign(orders[:, 0]) == -np.sign(orders[:, 1])
    return {"position_consistency": float(same.mean()), "position_bias": float(np.abs(orders.mean(1)).mean())}


def length_bias(
    chosen: np.ndarray, rejected: np.ndarray, chosen_length: np.ndarray, rejected_length: np.ndarray, bins: int = GAP_BINS
) -> dict:
    """What the scores of pairs, (n,) each, have to do with the lengths of the answers in characters.

    Returns: `longer_accuracy`, that of preferring the longer answer (strictly); `preferred_longer`, the share of pairs of
        unlike lengths in which the longer one has the higher score; `correlation`, Pearson's of score and length over all
        answers, and `gap_correlation` of their differences within pairs (None where one of the two does not vary);
        `by_gap`, accuracy in bins of about as many pairs each, by how many characters the chosen answer is longer.
    """
    gap, length = chosen - rejected, chosen_length - rejected_length
    unlike = length != 0
    longer = gap[unlike] * length[unlike] > 0
    rows = []
    order = np.argsort(length, kind="stable")
    # Pairs of one gap belong together, whatever the size of their bin.
    cuts = [np.searchsorted(length[order], length[order][len(order) * b // bins]) for b in range(1, bins)]
    for part in np.split(order, sorted(set(cuts))):
        if len(part):
            right = float((gap[part] > 0).mean())
            span = {"low": float(length[part].min()), "high": float(length[part].max())}
            rows.append({**span, "n": len(part), "accuracy": right})
    scores, lengths = np.concatenate([chosen, rejected]), np.concatenate([chosen_length, rejected_length])
    return {
        "longer_accuracy": float((length > 0).mean()),
        "preferred_longer": float(longer.mean()) if unlike.any() else None,
        "correlation": _correlation(scores, lengths),
        "gap_correlation": _correlation(gap, length),
        "by_gap": rows,
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 0 and b.std() > 0 else None
