"""Rated attributes of responses as pure functions: loss, linear fit in closed form, and rewards freed of one of them.

After ArmoRM (arXiv 2406.12845). Training is not here, nor where features and ratings come from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ALPHAS = tuple(10.0**power for power in range(-4, 5))
# What may be taken of the attribute that the others are freed of.
LAMBDAS = (0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, *(step / 20 for step in range(4, 20)))


def squared_errors(predictions: Tensor, ratings: Tensor) -> Tensor:
    """(prediction - rating)^2, 0 where there is no rating.

    Args: of any shape; a rating that is NaN is none. Returns: in the wider precision of the two.
    """
    return torch.where(ratings.isnan(), 0.0, predictions - ratings.nan_to_num(0.0)) ** 2


def masked_mse(predictions: Tensor, ratings: Tensor) -> Tensor:
    """The mean of the squared errors over all entries that have a rating, not over attributes of means: 0-d, 0 where none has.

    Args: as of `squared_errors`.
    """
    return squared_errors(predictions, ratings).sum() / (~ratings.isnan()).sum().clamp(min=1)


def rated_together(ratings: Tensor) -> list[list[int]]:
    """The attributes in sets, each of those that the same rows have, in order. ratings: (N, K), NaN: none."""
    sets: dict[bytes, list[int]] = {}
    for k, has in enumerate(~ratings.T.isnan().cpu()):
        sets.setdefault(has.numpy().tobytes(), []).append(k)
    return list(sets.values())


class FitSums(NamedTuple):
    """All that a linear fit without intercept takes of N rows, each with features z and ratings y of some of K attributes.

    Those of attribute k are over the rows that have it. Rows are added as they come, and the sums of ranks add up.
    """

    sets: list[list[int]]  # S sets of attributes that the same rows have, as `rated_together` gives them of all rows
    inner: Tensor  # (S, H, H) fp64, Z'Z
    cross: Tensor  # (K, H), Z'y
    square: Tensor  # (K,), y'y
    count: Tensor  # (K,), rows

    @classmethod
    def empty(cls, hidden: int, sets: list[list[int]], device: torch.device | str = "cpu") -> "FitSums":
        """Of no rows."""
        many = sum(map(len, sets))
        shapes = ((len(sets), hidden, hidden), (many, hidden), (many,), (many,))
        return cls(sets, *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def sums(self) -> tuple[Tensor, ...]:
        """All that adds up."""
        return self.inner, self.cross, self.square, self.count

    def add(self, features: Tensor, ratings: Tensor) -> None:
        """Add rows, in place. features: (N, H). ratings: (N, K), NaN: none; N may be 0."""
        rated = ~ratings.isnan()
        z, y = features.double(), ratings.double().nan_to_num(0.0)
        # A set at a time: copies of the features for all would not fit.
        for inner, (first, *_) in zip(self.inner, self.sets, strict=True):
            has = rated[:, first]
            inner.addmm_(z[has].T, z[has])
        for sums, more in zip(self.sums()[1:], (y.T @ z, y.square().sum(0), rated.sum(0)), strict=True):
            sums += more


class RidgeFit(NamedTuple):
    """Weights of K attributes, and how they were chosen."""

    weights: Tensor  # (K, H) fp64
    alphas: Tensor  # (K,), of the weights
    errors: Tensor  # (K, A), mean squared error on the rows that choose, at each of the alphas that were tried


def ridge(fit: FitSums, choice: FitSums, alphas: Sequence[float] = ALPHAS) -> RidgeFit:
    """w_k = (Z'Z + alpha I)^-1 Z'y on the rows of `fit`, with the alpha of least squared error on those of `choice`.

    No intercept; each attribute has its own alpha. Of equal errors the smaller alpha counts.

    Raises:
        ValueError: an attribute without rows in one of the two.
    """
    lacking = [k for k, counts in enumerate(zip(fit.count.tolist(), choice.count.tolist())) if 0 in counts]
    if lacking:
        raise ValueError(f"attributes {lacking} have no rated rows to fit, or none to choose alpha by")
    weights, errors = torch.empty_like(fit.cross), fit.cross.new_empty(len(fit.cross), len(alphas))
    for own, inner, other in zip(fit.sets, fit.inner, choice.inner, strict=True):
        tried = ridge_path(inner, fit.cross[own], alphas)
        # y'y - 2 w'Z'y + w'Z'Z w, over the rows.
        squares = choice.square[own] - 2 * (tried * choice.cross[own]).sum(-1) + ((tried @ other) * tried).sum(-1)
        errors[own] = (squares / choice.count[own]).T
        best = errors[own].argmin(1)
        weights[own] = tried[best, range(len(own))]
    return RidgeFit(weights, torch.tensor(alphas, dtype=torch.float64)[errors.argmin(1).cpu()], errors)


def ridge_path(inner: Tensor, cross: Tensor, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """(Z'Z + alpha I)^-1 Z'y for each alpha > 0, by one eigendecomposition: (A, ..., H) fp64.

    Args:
        inner: (H, H), Z'Z. cross: (..., H), Z'y.
    """
    values, vectors = torch.linalg.eigh(inner.double())
    turned = cross.double() @ vectors
    # Rounding makes eigenvalues that are 0 negative.
    return torch.stack([(turned / (values.clamp(min=0) + alpha)) @ vectors.T for alpha in alphas])


def pearson(a: Tensor, b: Tensor) -> float:
    """The correlation of (N,) with (N,), 0 where one of the two does not vary."""
    a, b = (x.double() - x.double().mean() for x in (a, b))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float(a @ b / scale) if scale > 0 else 0.0


def spearman(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of ranks, those of ties being averaged, 0 where one of the two does not vary."""
    return pearson(*map(_ranks, (a, b)))


def debias(rewards: Tensor, biased: int, rho: float = 0.03) -> Tensor:
    """The matrix T that frees all attributes of one, v: r T has r_k - lambda_k r_v for r_k, and 0 for r_v (arXiv 2406.12845).

    lambda_k is the smallest of LAMBDAS with Spearman(r_k - lambda r_v, r_v) <= rho, and 1 where there is none. The bound is
    signed: an attribute that falls where v rises stays as it is.

    Args:
        rewards: (N, K), of the responses by which v is judged. biased: the index v.

    Returns: (K, K) fp64: the identity, less lambda in row v, so that column v is 0.
    """
    rewards = rewards.double().cpu()
    bias, transform = rewards[:, biased], torch.eye(rewards.shape[1], dtype=torch.float64)
    for k, own in enumerate(rewards.T):
        passing = (step for step in LAMBDAS if k != biased and spearman(own - step * bias, bias) <= rho)
        transform[biased, k] -= next(passing, 1.0)
    return transform


def _ranks(x: Tensor) -> Tensor:
    from scipy.stats import rankdata  # slow to import, and trainings other than of attributes have no use for it

    return torch.from_numpy(np.asarray(rankdata(x.double().cpu().numpy())))
