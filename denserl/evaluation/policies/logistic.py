"""Logistic regression of soft labels with few features, solved to rounding, many at once. Pure functions in fp64.

Libraries fit one set of hard labels at a time; a bootstrap that refits fits a thousand of soft ones.
"""

from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

# The last step changes no z by more; what is left is about its square.
STEPS, ENOUGH = 300, 1e-6
# Weight of squares that every fit has: keeps what data leave open, or would drive to infinity, finite. Moves no shown digit.
RIDGE = 1e-9


def logistic(
    features: np.ndarray,
    labels: np.ndarray,
    weights: ArrayLike = 1.0,
    offset: ArrayLike = 0.0,
    ridge: float = RIDGE,
    lasso: bool = False,
    start: ArrayLike = 0.0,
) -> np.ndarray:
    """Coefficients t that minimise sum_i w_i [-y_i ln s(z_i) - (1 - y_i) ln s(-z_i)] + ridge |t|^2 / 2, with z = X t + offset.

    By Newton's method; no step changes a z by more than 1, which for logistic losses always gains (Bach, arXiv 0910.4627,
    section 2). Where features tell labels apart wholly no coefficients are best; they grow until the ridge, or the number of
    steps, ends it.

    Args:
        features: (n, p), X; no column of ones is added. labels: (n,) in [0, 1]. offset: (n,) or one number.
        weights: (..., n), of one fit or of many; a row of weight 0 is not there.
        start: coefficients, (p,), near which the best ones are thought to be.
        lasso: add the sum of |t|. Each step then tries all signs of the coefficients, 3^p: for a few features.

    Returns: (..., p).
    """
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), labels.shape))
    n, p = features.shape
    squares = (features[:, :, None] * features[:, None, :]).reshape(n, p * p)
    found: np.ndarray = np.zeros((*weights.shape[:-1], p)) + np.asarray(start, dtype=np.float64)
    for _ in range(STEPS):
        chance = expit(found @ features.T + offset)
        slope = (weights * (chance - labels)) @ features + ridge * found
        curvature = ((weights * chance * (1 - chance)) @ squares).reshape(*found.shape, p) + ridge * np.eye(p)
        step = _lasso_step(found, slope, curvature) if lasso else -np.linalg.solve(curvature, slope[..., None])[..., 0]
        # Of a row that is not there nothing is known, and it may be far off.
        change = (np.abs(step @ features.T) * (weights > 0)).max(-1, keepdims=True)
        found = found + step / np.maximum(change, 1)
        if change.max(initial=0.0) < ENOUGH:
            break
    return found


def _lasso_step(at: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """From `at`, (..., p), to where the quadratic of this slope and curvature plus the sum of magnitudes is least.

    It is least where the signs are those of one of the 3^p patterns, and there solves linear equations; of what all
    patterns give, the least is taken.
    """
    signs = np.array(list(product((0, 1, -1), repeat=at.shape[-1])))
    on = signs != 0
    pull = (curvature @ at[..., None])[..., 0] - slope
    matrices = np.where(on[:, :, None] & on[:, None, :], curvature[..., None, :, :], np.eye(at.shape[-1]))
    tried = np.linalg.solve(matrices, np.where(on, pull[..., None, :] - signs, 0.0)[..., None])[..., 0]
    values = ((tried @ curvature) / 2 - pull[..., None, :]) * tried + np.abs(tried)
    best = values.sum(-1).argmin(-1)
    return np.take_along_axis(tried, best[..., None, None], -2)[..., 0, :] - at
