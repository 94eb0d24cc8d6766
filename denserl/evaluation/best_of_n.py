"""Best-of-n: the reward of the best of n samples against n and its KL, for all n at once (docs/numerics.md).

The best is chosen by `proxy` and judged by `gold`. Sampling and scoring are done elsewhere.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from denserl.rewards.ranking import list_scores

SUBSETS = 64  # of n among N, over which is averaged where there are more
Estimator = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (P, N) proxy and gold -> (P, N), n = 1..N along the last axis


def kl(n: ArrayLike):
    """KL (nats) of best-of-n from one sample: ln n - (n - 1) / n, of a number or of an array. ValueError for n below 1."""
    n = np.asarray(n, dtype=np.float64)
    if not (n >= 1).all():
        raise ValueError(f"best of {n}: n must be at least 1")
    found = np.log(n) - (n - 1) / n
    return float(found) if found.ndim == 0 else found


def unbiased_curve(proxy: ArrayLike, gold: ArrayLike) -> np.ndarray:
    """The mean gold score of the best-of-n over all subsets of n of the N samples, for n = 1..N.

    With the samples in ascending order of proxy, sum over i >= n of C(i - 1, n - 1) / C(N, n) gold_(i). Of samples with equal
    proxies the earlier counts as the better.

    Args:
        proxy, gold: (N,), or (P, N) for P prompts.

    Returns: the same shape; n = 1..N along the last axis.

    Raises:
        ValueError: the shapes differ, or a score is not finite.
    """
    proxy, gold = _checked(proxy, gold)
    ascending = np.argsort(-proxy, axis=-1, kind="stable")[..., ::-1]
    return np.take_along_axis(gold, ascending, -1) @ _place_chances(proxy.shape[-1]).T


def first_n_curve(proxy: ArrayLike, gold: ArrayLike) -> np.ndarray:
    """The gold score of the best by proxy among the first n samples, for n = 1..N; arguments and shapes as `unbiased_curve`.

    One nested draw, which depends on the order of the samples: for comparison with work that reports it.
    """
    proxy, gold = _checked(proxy, gold)
    before = np.maximum.accumulate(proxy, axis=-1)[..., :-1]
    is_best_yet = np.concatenate([np.ones_like(proxy[..., :1], dtype=bool), proxy[..., 1:] > before], axis=-1)
    best = np.maximum.accumulate(np.where(is_best_yet, np.arange(proxy.shape[-1]), 0), axis=-1)
    return np.take_along_axis(gold, best, -1)


ESTIMATORS: Mapping[str, Estimator] = {"unbiased": unbiased_curve, "first_n": first_n_curve}


def subsets_of(count: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """(S, n) ascending numbers below `count`: all subsets where they are at most SUBSETS or `count`, else some drawn evenly."""
    if math.comb(count, n) <= max(SUBSETS, count):
        return np.array([*itertools.combinations(range(count), n)])
    return np.sort(np.argsort(rng.random((SUBSETS, count)), axis=1)[:, :n], axis=1)


def best_shares(probabilities: np.ndarray, rule: str, subsets: np.ndarray) -> np.ndarray:
    """(N,): in which share of some subsets of n of N samples each is the best, compared with those of the subset alone.

    Args:
        probabilities: (N, N), that sample i beats sample j. rule: one of `ranking.RULES`; of equal ones the earlier is best,
            and a knockout takes the samples as they come. subsets: (S, n) ascending numbers of samples.
    """
    scores = list_scores(probabilities[subsets[:, :, None], subsets[:, None, :]], rule)
    best = subsets[np.arange(len(subsets)), scores.argmax(1)]
    return np.bincount(best, minlength=len(probabilities)) / len(subsets)


def estimators_of_pairs(probabilities: np.ndarray, rule: str, rng: np.random.Generator) -> dict[str, Estimator]:
    """ESTIMATORS of samples that are compared with one another, so that which is best depends on those beside it.

    What a sample counts for, as proxy or gold, is what it is given: a proxy that is its score among all N.

    Args:
        probabilities: (P, N, N). rule: as of `best_shares`. rng: of the subsets, where there are too many to take all.
    """
    prompts, count, _ = probabilities.shape
    shares = {name: np.empty((prompts, count, count)) for name in ESTIMATORS}
    for prompt in range(prompts):
        for n in range(1, count + 1):
            drawn = {"unbiased": subsets_of(count, n, rng), "first_n": np.arange(n)[None]}
            for name, subsets in drawn.items():
                shares[name][prompt, n - 1] = best_shares(probabilities[prompt], rule, subsets)
    return {name: _weighted(part) for name, part in shares.items()}


def _weighted(shares: np.ndarray) -> Estimator:
    return lambda proxy, gold: np.einsum("pni,pi->pn", shares, gold)


class Interval(NamedTuple):
    """Means with the bounds of their confidence intervals, each (N,)."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_over_prompts(curves: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of (P, N) curves over prompts, with Student's t interval; the bounds of a single prompt are NaN."""
    from scipy.stats import t

    prompts, mean = len(curves), curves.mean(0)
    if prompts == 1:
        return Interval(mean, *np.full((2, len(mean)), np.nan))
    half = t.ppf((1 + confidence) / 2, prompts - 1) * curves.std(0, ddof=1) / np.sqrt(prompts)
    return Interval(mean, mean - half, mean + half)


def over_optimisation(proxy: np.ndarray, gold: np.ndarray, estimators: Mapping[str, Estimator] = ESTIMATORS) -> dict:
    """Both scores of best-of-n against KL, from the (P, N) scores of N samples for each of P prompts; JSON-able.

    Args:
        estimators: of the names of ESTIMATORS.

    Returns: `n`, `kl`, and `proxy` and `gold`, the means over prompts by the unbiased estimator; `gold_best` and `best_n`, the
        highest of these gold means and its n. Of each estimator, `unbiased` and `first_n`: `proxy` and `gold`, and `proxy_gain`
        and `gold_gain` over n = 1, each as mean, low and high; the intervals of gains are of each prompt's own gain.
    """
    n = np.arange(1, proxy.shape[1] + 1)
    estimates = {}
    for name, estimator in estimators.items():
        curves = {"proxy": estimator(proxy, proxy), "gold": estimator(proxy, gold)}
        curves |= {f"{score}_gain": curve - curve[:, :1] for score, curve in curves.items()}
        estimates[name] = {score: _as_lists(mean_over_prompts(curve)) for score, curve in curves.items()}
    means = {score: estimates["unbiased"][score]["mean"] for score in ("proxy", "gold")}
    best = int(np.argmax(means["gold"]))
    return {"gold_best": means["gold"][best], "best_n": best + 1, "n": n.tolist(), "kl": kl(n).tolist(), **means, **estimates}


def _place_chances(count: int) -> np.ndarray:
    """(N, N): the chance that the best of n samples is the one in place i (ascending), at [n - 1, i - 1]."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    place, n = np.arange(1, count + 1)[None, :], np.arange(1, count + 1)[:, None]
    above = np.maximum(place - n, 0)
    # C(i - 1, n - 1) / C(N, n), whose factors alone would leave the range of floating point.
    log_ways = log_factorials[place - 1] - log_factorials[n - 1] - log_factorials[above]
    log_subsets = log_factorials[count] - log_factorials[n] - log_factorials[count - n]
    return np.where(place >= n, np.exp(log_ways - log_subsets), 0.0)


def _checked(proxy: ArrayLike, gold: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    proxy, gold = (np.asarray(scores, dtype=np.float64) for scores in (proxy, gold))
    if proxy.shape != gold.shape or proxy.ndim not in (1, 2) or proxy.shape[-1] < 1:
        raise ValueError(f"proxy {proxy.shape} and gold {gold.shape}: want the same (N,) or (P, N), N at least 1")
    if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
        raise ValueError("proxy and gold must be finite")
    return proxy, gold


def _as_lists(interval: Interval) -> dict[str, list]:
    """An interval as JSON has it: null for a bound that is not known."""
    return {
        name: [None if np.isnan(value) else float(value) for value in values] for name, values in interval._asdict().items()
    }
