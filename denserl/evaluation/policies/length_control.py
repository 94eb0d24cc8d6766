"""What a policy's win rate would be were its answers as long as the baseline's (Dubois et al., arXiv 2404.04475).

The variants v1, noreg and minimal are AlpacaEval's; `fixed` is ours, for annotations without AlpacaEval's files.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from denserl.evaluation.policies.clusters import RESAMPLES, times_drawn
from denserl.evaluation.policies.logistic import logistic
from denserl.evaluation.policies.win_rate import standard_error
from denserl.evaluation.statistics import interval

Variant = Literal["fixed", "minimal", "noreg", "v1"]
PENALTIES = np.logspace(-4, 4, 10)  # what the losses may weigh against the sum of the coefficients' magnitudes
FOLDS = 5
# The coefficient of length that brings 56 models, judged by gpt-4-1106-preview, nearest to their published numbers.
LENGTH_WEIGHT = -1.1
# Of the two gamed answers to each question.
GAMED_WEIGHT = 0.2 / 2
# Mean length feature from which a constant and a coefficient of length are told apart badly.
ONE_SIDED = 0.3


class Gamed(NamedTuple):
    """Judgements of the baseline asked to be verbose and concise, of AlpacaEval's `df_gamed.csv`: three (m,)."""

    length: np.ndarray  # difference of lengths, in standard deviations, before tanh
    difficulty: np.ndarray
    credits: np.ndarray


class _Rows(NamedTuple):
    """What is fitted: n rows, gamed ones first; and N rows of the policy at equal lengths."""

    features: np.ndarray  # (n, p)
    labels: np.ndarray  # (n,)
    weights: np.ndarray  # (n,)
    offset: np.ndarray | float
    level: np.ndarray  # (N, p)
    judged: np.ndarray  # (N,) bool: those that are among the n, as the last ones
    lasso: bool


def length_feature(baseline: ArrayLike, policy: ArrayLike) -> np.ndarray:
    """tanh of (baseline's - policy's length) / standard deviation of that difference (n - 1), not centred: (n,).

    Where the difference does not vary, of its sign: the limit. Lengths are in characters, (n,).
    """
    longer = np.asarray(baseline, dtype=np.float64) - np.asarray(policy, dtype=np.float64)
    spread = longer.std(ddof=1) if len(longer) > 1 else 0.0
    return np.tanh(longer / spread) if spread > 0 else np.sign(longer)


def length_controlled(
    credits: ArrayLike,
    length: np.ndarray,
    variant: Variant = "fixed",
    difficulty: ArrayLike | None = None,
    gamed: Gamed | None = None,
    questions: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """The win rate at equal lengths, in percent: 100 mean_i sigmoid(c d_i + b) over all rows, judged or not.

    a, c and b are of the logistic regression of credits on a length_i + c d_i + b, with the sum of their magnitudes as penalty.
    v1: gamed rows, of which b says nothing, at a tenth of the weight. noreg: without them. minimal: without d too. fixed: a is
    `LENGTH_WEIGHT`, no d and no penalty. The penalty is that of the least log loss in five folds, the rows dealt out in
    turn; a bootstrap draws questions anew, and fits anew, with the penalty as it is.

    Args:
        credits: (n,) of one policy, NaN: not judged. length: (n,), see `length_feature`. difficulty: (n,), for v1 and noreg.
        gamed: for v1. questions: (n,) what question each row is of; default one each.

    Returns: `length_controlled_winrate`; `lc_standard_error`, AlpacaEval's, which knows nothing of the fit (None of fixed and
        minimal, where all rows have the same chance); `interval`, of the bootstrap; `weights` of length, difficulty (None where
        not used) and policy; `penalty`, C (None of fixed). All None where fewer than five rows are judged.

    Raises:
        ValueError: unknown variant; what it needs is not given.
    """
    rows = _rows(np.asarray(credits, dtype=np.float64), length, variant, difficulty, gamed)
    names = ("length_controlled_winrate", "lc_standard_error", "interval", "weights", "penalty")
    if rows.judged.sum() < FOLDS:
        return dict.fromkeys(names)
    penalty = _penalty(rows) if rows.lasso else None
    found = _fit(rows, (penalty or 1.0) * rows.weights)
    at_level = expit(rows.level @ found)
    draws = _draws(rows, penalty, questions, resamples, seed)
    error = standard_error(at_level) if rows.level.shape[1] > 2 else None
    values = (100 * at_level.mean().item(), error, interval(draws), _named(found, variant), penalty)
    return dict(zip(names, values, strict=True))


def length_controlled_difference(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    variant: Variant = "fixed",
    gamed: Gamed | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """How much more a policy wins than another one, both at equal lengths, in percent.

    Questions are drawn anew for both alike, and both are fitted anew.

    Args:
        first, second: `credits`, `length`, `difficulty` and `questions` of `length_controlled`; both of the same questions.

    Returns: `value`, and `interval`, of the bootstrap; None where fewer than five rows of a policy are judged.

    Raises:
        ValueError: as of `length_controlled`; the questions are not the same.
    """
    if set(first["questions"]) != set(second["questions"]):
        raise ValueError("the policies answer different questions")
    values, draws = [], []
    for own in (first, second):
        found = length_controlled(**own, variant=variant, gamed=gamed, resamples=1, seed=seed)
        if found["length_controlled_winrate"] is None:
            return {"value": None, "interval": None}
        rows = _rows(np.asarray(own["credits"], dtype=np.float64), own["length"], variant, own.get("difficulty"), gamed)
        values.append(found["length_controlled_winrate"])
        draws.append(_draws(rows, found["penalty"], own["questions"], resamples, seed))
    return {"value": values[0] - values[1], "interval": interval(draws[0] - draws[1])}


def _draws(rows: _Rows, penalty: float | None, questions: ArrayLike | None, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) win rates in percent on questions drawn anew, fitted anew; the same draws for the same set of questions."""
    drawn = times_drawn(np.arange(len(rows.level)) if questions is None else np.asarray(questions), resamples, seed)
    fits = _fit(rows, (penalty or 1.0) * rows.weights * _with_gamed(drawn[:, rows.judged], len(rows.labels)))
    return 100 * (drawn * expit(fits @ rows.level.T)).sum(-1) / drawn.sum(-1)


def length_remarks(length: np.ndarray) -> list[str]:
    """What a reader of a length-controlled win rate has to know, a line each; often nothing. length: see `length_feature`."""
    mean = float(np.mean(length)) if len(length) else 0.0
    if abs(mean) <= ONE_SIDED:
        return []
    way = "shorter" if mean > 0 else "longer"
    return [
        f"the policy's answers are nearly all {way} than the baseline's (mean length feature {mean:.2f}): what their length "
        "does is hardly told from what the policy does, and its win rate at equal lengths is uncertain beyond its interval"
    ]


def _rows(credits: np.ndarray, length: np.ndarray, variant: str, difficulty: ArrayLike | None, gamed: Gamed | None) -> _Rows:
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(get_args(Variant))}")
    if (difficulty is None and variant in ("noreg", "v1")) or (gamed is None and variant == "v1"):
        raise ValueError(f"{variant} needs the difficulties of instructions, and v1 gamed rows: both are AlpacaEval's")
    one, judged = np.ones(len(length)), ~np.isnan(credits)
    if variant == "fixed":
        fixed = LENGTH_WEIGHT * length[judged]
        return _Rows(one[judged, None], credits[judged], one[judged], fixed, one[:, None], judged, lasso=False)
    columns = [length, one] if variant == "minimal" else [length, np.asarray(difficulty, dtype=np.float64), one]
    features = np.stack(columns, axis=1)
    level = features * (np.arange(len(columns)) > 0)
    features, labels, weights = features[judged], credits[judged], one[judged]
    if variant == "v1":
        there = ~np.isnan(gamed.credits)
        first = np.stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(there))], axis=1)[there]
        features, labels = np.concatenate([first, features]), np.concatenate([gamed.credits[there], labels])
        weights = np.concatenate([np.full(len(first), GAMED_WEIGHT), weights])
    return _Rows(features, labels, weights, 0.0, level, judged, lasso=True)


def _fit(rows: _Rows, weights: np.ndarray) -> np.ndarray:
    return logistic(rows.features, rows.labels, weights, rows.offset, lasso=rows.lasso)


def _with_gamed(drawn: np.ndarray, count: int) -> np.ndarray:
    """How often each of `count` rows is there: gamed ones, which stand first, once. drawn: (resamples, judged rows)."""
    return np.pad(drawn, ((0, 0), (count - drawn.shape[1], 0)), constant_values=1)


def _penalty(rows: _Rows) -> float:
    """Of `PENALTIES` the first with the least mean over folds of the mean weighted log loss on a fold, fitted on the others."""
    held = np.arange(len(rows.labels)) % FOLDS == np.arange(FOLDS)[:, None]
    z = _fit(rows, PENALTIES[:, None, None] * rows.weights * ~held) @ rows.features.T
    losses = rows.weights * (np.logaddexp(0, z) - rows.labels * z)
    return float(PENALTIES[((losses * held).sum(-1) / held.sum(-1)).mean(-1).argmin()])


def _named(found: np.ndarray, variant: str) -> dict[str, float | None]:
    length, *difficulty, policy = [LENGTH_WEIGHT, *found] if variant == "fixed" else found
    return {"length": float(length), "difficulty": float(difficulty[0]) if difficulty else None, "policy": float(policy)}
