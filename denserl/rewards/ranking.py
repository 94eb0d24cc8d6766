"""Probabilities that one response beats another, for each two of n -> who is best: five rules. Pure functions in fp64.

Where the probabilities come from is in sources/pair_model.py.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

RULES = ("win_rate", "logit", "wins", "bt", "knockout")

# Probabilities of 0 and 1 count as so far from them, so that their log-odds are finite: 36.04.
LEAST = float(np.finfo(np.float64).eps)
# Weight of the squared scores of `bt`, without which a response that always wins would have an infinite one; then about 20.
RIDGE = 1e-9
NEWTON_STEPS, NEWTON_ENOUGH = 200, 1e-12
# Decimals of scores, below which their sums depend on the order of addition: equal responses tie.
DECIMALS = 10

Judge = Callable[[Sequence[tuple[int, int, int]]], Iterable[float]]


def chances(log_odds: ArrayLike) -> np.ndarray:
    """P(first better) of pairs judged in both orders: (sigmoid(l1) + sigmoid(-l2)) / 2, (n,) (arXiv 2405.07863).

    With first and second exchanged it is 1 - P, and where neither order tells them apart 0.5, to the bit.

    Args:
        log_odds: (n, 2) of the response that is shown first being the better one: as given, and with the second one first.
    """
    halves = np.tanh(np.asarray(log_odds, dtype=np.float64) / 2)
    lead = halves[..., 0] - halves[..., 1]
    # Of the smaller of both probabilities more digits would be known, and they would not add up to 1.
    larger = 0.5 + np.abs(lead) / 4
    return np.where(lead < 0, 1 - larger, larger)


def log_odds(probabilities: ArrayLike) -> np.ndarray:
    """ln(P / (1 - P)), of P held LEAST away from 0 and 1: within +-36.05."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LEAST, 1 - LEAST)
    return np.log(p) - np.log1p(-p)


def list_scores(probabilities: ArrayLike, rule: str) -> np.ndarray:
    """Scores of n responses from the probabilities that each beats each other one: (..., n).

    win_rate: mean of P_ij over j; logit: mean of ln(P_ij / (1 - P_ij)), see `log_odds`; wins: number of j with P_ij > 0.5, a
    tie half (Copeland's rule); bt: see `bradley_terry`; knockout: 1 of the winner in the order given, else 0. A response
    alone has 0.

    Args:
        probabilities: (..., n, n), P_ij + P_ji = 1; what stands on the diagonal is not read.

    Raises:
        ValueError: unknown rule; no such matrix.
    """
    p = _checked(probabilities)
    if rule == "bt":
        return np.round(bradley_terry(p), DECIMALS)
    if rule == "knockout":
        return _knockout_scores(p)
    others = max(p.shape[-1] - 1, 1)
    if rule == "win_rate":
        return np.round(_sum_over_others(p) / others, DECIMALS)
    if rule == "logit":
        return np.round(_sum_over_others(log_odds(p)) / others, DECIMALS)
    if rule == "wins":
        return _sum_over_others((p > 0.5) + 0.5 * (p == 0.5))
    raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")


def bradley_terry(wins: ArrayLike) -> np.ndarray:
    """The scores s, (..., n) of mean 0, with sum_j (W_ij + W_ji) sigmoid(s_i - s_j) = sum_j W_ij: those of maximum likelihood.

    By Newton's method; no step changes a difference of scores by more than 1, which for logistic losses always gains (Bach,
    arXiv 0910.4627, section 2).

    Args:
        wins: (..., n, n), W_ij how often i beats j, a tie half to both, or the probability of it; the diagonal is not read.
    """
    w = np.asarray(wins, dtype=np.float64)
    n = w.shape[-1]
    wanted, scores, identity = _sum_over_others(w), np.zeros(w.shape[:-1]), np.eye(n)
    games = np.where(identity, 0.0, w + np.swapaxes(w, -1, -2))
    for _ in range(NEWTON_STEPS):
        chance = 0.5 + 0.5 * np.tanh((scores[..., :, None] - scores[..., None, :]) / 2)
        slope = games * chance * (1 - chance)
        gradient = wanted - _sum_over_others(games * chance) - RIDGE * scores
        curvature = (slope.sum(-1) + RIDGE)[..., None] * identity - slope
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        step /= np.maximum(np.ptp(step, axis=-1, keepdims=True), 1)
        scores = scores + step
        if np.abs(step).max(initial=0.0) < NEWTON_ENOUGH:
            break
    return scores - scores.mean(-1, keepdims=True)


def knockouts(orders: Sequence[Sequence[int]], judge: Judge) -> list[int]:
    """The winner of each of several lists, in which the best so far meets the next, all lists at once, round by round.

    Args:
        orders: of each list the numbers of its responses, in the order in which they come; at least one. The winner may
            depend on it where preferences go in circles.
        judge: (list, best so far, next one) of each meeting of a round -> the probabilities that the best so far is better;
            at 0.5 it stays.
    """
    best = [order[0] for order in orders]
    for place in range(1, max(map(len, orders), default=0)):
        meetings = [(number, best[number], order[place]) for number, order in enumerate(orders) if place < len(order)]
        for (number, _, challenger), kept in zip(meetings, judge(meetings), strict=True):
            if kept < 0.5:
                best[number] = challenger
    return best


def _knockout_scores(p: np.ndarray) -> np.ndarray:
    flat, n = p.reshape(-1, *p.shape[-2:]), p.shape[-1]
    winners = knockouts([range(n)] * len(flat), lambda meetings: [flat[meeting] for meeting in meetings])
    return np.eye(n)[winners].reshape(p.shape[:-1])


def _sum_over_others(values: np.ndarray) -> np.ndarray:
    return np.where(np.eye(values.shape[-1], dtype=bool), 0.0, values).sum(-1)


def _checked(probabilities: ArrayLike) -> np.ndarray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < 2 or p.shape[-1] != p.shape[-2] or not p.shape[-1]:
        raise ValueError(f"probabilities of shape {p.shape}; expected (..., n, n) with n at least 1")
    p = np.where(np.eye(p.shape[-1], dtype=bool), 0.5, p)
    # NaN is not between 0 and 1 either.
    if not ((p >= 0) & (p <= 1)).all() or not np.allclose(p + np.swapaxes(p, -1, -2), 1, rtol=0, atol=1e-9):
        raise ValueError("probabilities must lie in [0, 1], those of each two responses adding up to 1")
    return p
