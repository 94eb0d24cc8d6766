"""Rated attributes against a direct solve, scipy, and numbers worked out by hand (arXiv 2406.12845 for the formulas)."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from denserl.rewards.attributes import (
    ALPHAS,
    LAMBDAS,
    FitSums,
    debias,
    masked_mse,
    rated_together,
    ridge,
    ridge_path,
    spearman,
    squared_errors,
)

NONE = math.nan
FEATURES = torch.tensor([[1, 0.5], [0, 1], [2, -1], [1, 1]], dtype=torch.float64)
SETS = [[0], [1]]
RATINGS = torch.tensor([[0.9, NONE], [0.1, 0.3], [NONE, 0.8], [0.7, 0.5]], dtype=torch.float64)
REWARDS = torch.tensor(
    [
        [0.62, 0.30, 0.10],
        [0.55, 0.50, 0.35],
        [0.71, 0.45, 0.30],
        [0.80, 0.20, 0.60],
        [0.66, 0.75, 0.55],
        [0.90, 0.35, 0.80],
        [0.58, 0.60, 0.45],
        [0.77, 0.40, 0.70],
    ],
    dtype=torch.float64,
)


def sums_of(*parts: torch.Tensor, sets: list[list[int]] = SETS) -> FitSums:
    """Of features and ratings, and more of both."""
    found = FitSums.empty(parts[0].shape[1], sets)
    for features, ratings in zip(parts[::2], parts[1::2]):
        found.add(features, ratings)
    return found


def test_ridge_of_a_few_rows_is_what_is_worked_out_by_hand():
    sums = sums_of(FEATURES, RATINGS)
    paths = [ridge_path(sums.inner[k], sums.cross[k], (1.0, 10.0)) for k in (0, 1)]
    assert paths[0].tolist() == [pytest.approx(w, abs=1e-8) for w in [(0.44333333, 0.18), (0.12245250, 0.08704663)]]
    assert paths[1].tolist() == [pytest.approx(w, abs=1e-8) for w in [(0.36521739, 0.09130435), (0.14072165, 0.01082474)]]
    predictions = FEATURES @ torch.stack([path[0] for path in paths]).T
    assert masked_mse(predictions, RATINGS).item() == pytest.approx(0.03634091, abs=1e-8)
    each = [masked_mse(predictions[:, k], RATINGS[:, k]).item() for k in (0, 1)]
    assert each == pytest.approx([0.04890741, 0.02377442], abs=1e-8)


def test_attributes_that_the_same_rows_have_are_a_set():
    rated = torch.tensor([[1.0, NONE, 0, NONE, 2], [NONE, 3, NONE, 4, NONE], [5, 6, 7, NONE, 8]])
    assert rated_together(rated) == [[0, 2, 4], [1], [3]]
    assert rated_together(RATINGS) == SETS


@pytest.mark.parametrize("together", [[], [0, 2]], ids=["apart", "together"])
def test_ridge_in_parts_equals_a_direct_solve_with_the_best_alpha(together):
    """Against numpy on rows that stand in memory: the solve of each alpha, and its error on the rows that choose.

    together: attributes that the same rows have.
    """
    draw = np.random.default_rng(0)
    rows, hidden, many = 300, 12, 3
    z = draw.normal(size=(rows, hidden))
    y = z @ draw.normal(size=(hidden, many)) / 4 + draw.normal(size=(rows, many)) * [0.01, 1, 8]
    lacks = draw.random((rows, many)) < 0.3
    lacks[:, together] = lacks[:, together[:1]]
    y[lacks] = np.nan
    sets = rated_together(torch.from_numpy(y))
    assert sets == ([[0, 2], [1]] if together else [[0], [1], [2]])
    chooses = draw.random(rows) < 0.2

    def sums(kept: np.ndarray) -> FitSums:
        parts = np.array_split(np.flatnonzero(kept), 4)
        both = (item for part in parts for item in (torch.from_numpy(z[part]).float(), torch.from_numpy(y[part])))
        return sums_of(*both, sets=sets)

    found = ridge(sums(~chooses), sums(chooses))
    z = z.astype(np.float32).astype(np.float64)
    alphas = set()
    for k in range(many):
        fitted, judged = (z[kept & ~np.isnan(y[:, k])] for kept in (~chooses, chooses))
        ratings, truth = (y[kept & ~np.isnan(y[:, k]), k] for kept in (~chooses, chooses))
        tried = [np.linalg.solve(fitted.T @ fitted + a * np.eye(hidden), fitted.T @ ratings) for a in ALPHAS]
        errors = [np.mean((judged @ w - truth) ** 2) for w in tried]
        best = int(np.argmin(errors))
        np.testing.assert_allclose(found.errors[k], errors, rtol=1e-8)
        np.testing.assert_allclose(found.weights[k], tried[best], rtol=1e-8)
        assert found.alphas[k].item() == pytest.approx(ALPHAS[best])
        alphas.add(best)
    assert len(alphas) > 1


def test_ridge_wants_rows_of_every_attribute_on_both_sides():
    some, none = sums_of(FEATURES, RATINGS), sums_of(FEATURES[:1], RATINGS[:1])
    with pytest.raises(ValueError, match=r"\[1\]"):
        ridge(some, none)


def test_entries_without_a_rating_have_no_error_and_no_gradient():
    predictions = torch.zeros(4, 2, requires_grad=True)
    masked_mse(predictions, RATINGS).backward()
    assert predictions.grad.isfinite().all() and (predictions.grad[RATINGS.isnan()] == 0).all()
    # d/dp of mean (p - y)^2 over six entries.
    assert predictions.grad[1].tolist() == pytest.approx([-2 * 0.1 / 6, -2 * 0.3 / 6])
    assert squared_errors(predictions[:0], RATINGS[:0]).shape == (0, 2)
    assert masked_mse(torch.ones(2), torch.full((2,), NONE)).item() == 0


def test_spearman_is_scipys_with_ties():
    draw = np.random.default_rng(1)
    a, b = draw.integers(0, 6, 50), draw.integers(0, 4, 50)
    assert spearman(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert spearman(torch.ones(5), torch.arange(5)) == 0


def test_debiasing_takes_the_least_of_an_attribute_that_frees_the_others():
    bias = REWARDS[:, 2]
    assert [spearman(REWARDS[:, k], bias) for k in (0, 1)] == pytest.approx([0.71428571, -0.14285714], abs=1e-8)
    transform = debias(REWARDS, 2)
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [-0.4, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(transform, expected, rtol=0, atol=1e-12)
    free = REWARDS @ transform
    assert free[0].tolist() == pytest.approx([0.58, 0.30, 0])
    assert spearman(free[:, 0], bias) == pytest.approx(-0.10778636, abs=1e-8)


def test_what_no_share_frees_loses_all_of_it():
    assert len(LAMBDAS) == 24 and LAMBDAS[8:10] == (0.2, 0.25) and LAMBDAS[-1] == 0.95
    steep = torch.stack([torch.arange(9.0), 10 * torch.arange(9.0)], 1)
    assert debias(steep, 0)[0].tolist() == [0, -1]
    assert debias(steep, 1)[1].tolist() == pytest.approx([-0.1, 0])
