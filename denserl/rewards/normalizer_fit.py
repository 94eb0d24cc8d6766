"""Fitting the location-aware normaliser: segment rewards grouped by place, and two straight lines in ln(place).

Where the fitted constants are kept is in denserl/ppo_utils/normalizer.py.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from denserl.errors import UserError

HUBER_EPSILON = 1.35
# Places are rounded to these decimals, and the first of very many segments to the least of them: ln 0 is no number.
DECIMALS = 3
LEAST_PLACE = 10**-DECIMALS


class Groups(NamedTuple):
    """Segment rewards by place p = k / K rounded to 3 decimals, at least 0.001; four arrays of one length, p ascending."""

    place: np.ndarray
    mean: np.ndarray
    std: np.ndarray  # biased
    count: np.ndarray  # type: ignore[assignment]  # it takes the place of tuple's method of this name


class Line(NamedTuple):
    """y = slope ln(p) + intercept, and the coefficient of determination over the groups."""

    slope: float
    intercept: float
    r2: float


def group_by_place(rewards: list[np.ndarray], smallest: int = 2) -> Groups:
    """Mean and standard deviation of segment rewards at each place (arXiv 2501.02790; docs/numerics.md).

    Args:
        rewards: per response, its K segment rewards in order.
        smallest: groups of fewer rewards are left out; one reward has no spread.

    Raises:
        UserError: fewer than two groups remain, so that no line can be fitted.
    """
    if smallest < 2:
        raise ValueError(f"smallest is {smallest}; a standard deviation needs at least 2 rewards")
    places = [np.maximum(np.round(np.arange(1, len(r) + 1) / len(r), DECIMALS), LEAST_PLACE) for r in rewards if len(r)]
    place, index, count = np.unique(np.concatenate([*places, np.zeros(0)]), return_inverse=True, return_counts=True)
    values = np.concatenate([*rewards, np.zeros(0)]).astype(np.float64)
    mean = np.bincount(index, values, len(place)) / count
    std = np.sqrt(np.bincount(index, (values - mean[index]) ** 2, len(place)) / count)
    kept = count >= smallest
    if kept.sum() < 2:
        raise UserError(
            f"{len(rewards)} responses give segment rewards at {int(kept.sum())} place(s) with {smallest} or more rewards; "
            "a line needs 2 places",
            "lower `entropy_threshold` so that responses have several segments, or score more pairs (`pairs`). The "
            "bandit level (threshold 1000) needs no fit: its mean and std are in the reward model's config",
        )
    return Groups(place[kept], mean[kept], std[kept], count[kept])


def huber_line(x: np.ndarray, y: np.ndarray, epsilon: float = HUBER_EPSILON) -> tuple[float, float]:
    """Slope and intercept of the Huber regression of y on x with its own scale (Huber 1981, section 7.7; Owen 2007, eq. 6).

    Minimises sum_i [sigma + sigma H(r_i / sigma)] over slope, intercept and sigma, with H(z) = z^2 up to epsilon and
    2 epsilon |z| - epsilon^2 beyond; a convex problem. Each point has weight one.

    Args:
        x, y: (n,) with n >= 2 and at least two different x.
    """
    design = np.stack([x - x.mean(), np.ones_like(x)], 1)
    unit = max(y.std(), 1e-12)
    target = (y - y.mean()) / unit

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        sigma = parameters[2]
        z = (target - design @ parameters[:2]) / sigma
        outside = np.abs(z) > epsilon
        loss = np.where(outside, 2 * epsilon * np.abs(z) - epsilon**2, z**2)
        slope = np.where(outside, 2 * epsilon * np.sign(z), 2 * z)
        gradient = np.append(-design.T @ slope, len(x) + np.sum(loss - z * slope))
        return sigma * (len(x) + loss.sum()), gradient

    start = np.append(np.linalg.lstsq(design, target, rcond=None)[0], 1.0)
    bounds = [(None, None), (None, None), (1e-8, None)]
    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    slope = solution[0] * unit
    return slope, solution[1] * unit + y.mean() - slope * x.mean()


def fit_lines(groups: Groups) -> tuple[Line, Line]:
    """The lines of mean and std in ln(p), each group one point (arXiv 2501.02790; docs/numerics.md).

    Raises:
        UserError: the fitted std at the end of a response (p = 1) is not positive.
    """
    x = np.log(groups.place)
    mean, std = (Line(*(fit := huber_line(x, y)), _r2(y, fit[0] * x + fit[1])) for y in (groups.mean, groups.std))
    if std.intercept <= 0:
        raise UserError(
            f"the fitted standard deviation at the end of a response is {std.intercept:.4g}; it must be positive",
            "score more pairs (`pairs`), or check that the reward model tells responses apart",
        )
    return mean, std


def _r2(y: np.ndarray, fitted: np.ndarray) -> float:
    total = np.sum((y - y.mean()) ** 2)
    return float(1 - np.sum((y - fitted) ** 2) / total) if total > 0 else 1.0
