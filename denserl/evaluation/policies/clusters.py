"""Means of judgements that share questions, and how surely they are known. Pure functions of arrays.

Games, copies, samples and turns of one question are no independent evidence: a question, with all of them, is one cluster.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from denserl.evaluation.statistics import bootstrap_means, bootstrap_parts, interval
from denserl.intervals import LEVEL

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean over questions; errors and intervals are None where fewer than two questions say nothing of them."""

    mean: float | None
    standard_error: float | None
    interval: list[float] | None  # mean +- t of questions - 1 degrees of freedom x standard_error
    bootstrap: list[float] | None  # percentiles of means of questions drawn anew
    questions: int


def mean_of_questions(credits: ArrayLike, questions: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """m = sum_q s_q / sum_q n_q, and SE^2 = Q / (Q - 1) sum_q (s_q - m n_q)^2 / (sum_q n_q)^2 (Liang and Zeger 1986).

    Args:
        credits: (n,), NaN: no judgement, which counts nowhere. questions: (n,) what question each is of, numbers or names.
    """
    values, numbers, count = _judged(credits, questions)
    if not count:
        return Estimate(None, None, None, None, 0)
    shares = (values - values.mean()) / len(values)
    draws = bootstrap_means(values, numbers, resamples, np.random.default_rng(seed))
    return _estimate(values.mean(), np.bincount(numbers, shares), draws)


def difference_of_means(
    first: ArrayLike,
    first_questions: ArrayLike,
    second: ArrayLike,
    second_questions: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of the first's credits less that of the second's, over the questions in which both have some; questions are paired.

    Its standard error is `mean_of_questions`'s, of each question's share in the first mean less its share in the second.

    Args: as of `mean_of_questions`, of each of two policies.
    """
    credits = np.concatenate([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    part = np.repeat([0, 1], [np.size(first), np.size(second)])
    asked = np.concatenate([np.asarray(first_questions), np.asarray(second_questions)])
    there = ~np.isnan(credits)
    there &= np.isin(asked, np.intersect1d(asked[there & (part == 0)], asked[there & (part == 1)]))
    values, numbers, count = _judged(np.where(there, credits, np.nan), asked)
    if not count:
        return Estimate(None, None, None, None, 0)
    part = part[there]
    sizes = np.bincount(part)
    means = np.bincount(part, values) / sizes
    shares = (values - means[part]) / sizes[part] * (1 - 2 * part)
    draws = bootstrap_parts(values, numbers, part, resamples, np.random.default_rng(seed))
    return _estimate(means[0] - means[1], np.bincount(numbers, shares), draws[:, 0] - draws[:, 1])


def times_drawn(questions: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each item is there when questions are drawn anew, each with all its items: (resamples, n).

    For what has to be fitted anew; means have `mean_of_questions`. questions: (n,) numbers or names.
    """
    found, numbers = np.unique(np.asarray(questions), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(found), np.full(len(found), 1 / len(found)), size=resamples)
    return drawn[:, numbers]


def _judged(credits: ArrayLike, questions: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
    """Credits that are there, the numbers of their questions from 0 on, and how many questions these are."""
    values = np.asarray(credits, dtype=np.float64)
    there = ~np.isnan(values)
    found, numbers = np.unique(np.asarray(questions)[there], return_inverse=True)
    return values[there], numbers, len(found)


def _estimate(mean: float, shares: np.ndarray, draws: np.ndarray) -> Estimate:
    """Of questions' shares in the deviation of a mean, (Q,), and of the means in which questions were drawn anew."""
    count = len(shares)
    if count < 2:
        return Estimate(float(mean), None, None, None, count)
    error = float(np.sqrt(count / (count - 1) * (shares**2).sum()))
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    return Estimate(float(mean), error, [float(mean) - reach, float(mean) + reach], interval(draws), count)
