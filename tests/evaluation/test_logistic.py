"""Logistic regression of soft labels against scipy's minimisers, optimality conditions and closed forms."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from denserl.evaluation.policies.logistic import logistic


def data(seed: int, n: int = 60, p: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(0, 1, (n, p)), generator.random(n), generator.random(n) * 2


def loss(t, features, labels, weights, offset=0.0, ridge=0.0, lasso=0.0) -> float:
    """Row by row."""
    total = ridge * sum(c * c for c in t) / 2 + lasso * sum(abs(c) for c in t)
    for x, y, w in zip(features.tolist(), labels.tolist(), weights.tolist()):
        z = sum(a * b for a, b in zip(x, t)) + offset
        total += w * (y * math.log1p(math.exp(-z)) + (1 - y) * math.log1p(math.exp(z)))
    return total


@pytest.mark.parametrize("ridge", [1e-9, 0.5])
def test_without_lasso_it_is_scipys_minimum(ridge):
    features, labels, weights = data(0)
    found = logistic(features, labels, weights, 0.3, ridge)
    other = minimize(loss, np.zeros(3), (features, labels, weights, 0.3, ridge), "BFGS", options={"gtol": 1e-6})
    assert found == pytest.approx(other.x, abs=1e-5)


@pytest.mark.parametrize("scale", [0.02, 0.1, 1, 100])
def test_with_lasso_it_is_scipys_minimum_of_positive_parts(scale):
    """|t| = u + v with t = u - v and both at least 0: smooth, with bounds."""
    features, labels, weights = data(1)

    def split(uv):
        return loss(uv[:3] - uv[3:], features, labels, scale * weights) + uv.sum()

    other = minimize(split, np.full(6, 0.1), method="L-BFGS-B", bounds=[(0, None)] * 6, options={"ftol": 1e-13, "gtol": 1e-7})
    found = logistic(features, labels, scale * weights, lasso=True)
    assert found == pytest.approx(other.x[:3] - other.x[3:], abs=2e-4)
    assert loss(found, features, labels, scale * weights, lasso=1.0) <= other.fun + 1e-9


@pytest.mark.parametrize("scale", [0.02, 0.1, 1, 1e4])
def test_a_coefficient_is_zero_where_its_slope_is_below_one_and_else_its_slope_is_one(scale):
    features, labels, weights = data(2)
    features[:, 1] = features[:, 2] + 1e-3 * features[:, 1]  # nearly the same feature twice
    found = logistic(features, labels, scale * weights, lasso=True)
    slope = (scale * weights * (1 / (1 + np.exp(-features @ found)) - labels)) @ features
    for own, coefficient in zip(slope, found):
        assert abs(own) <= 1 + 1e-6 if coefficient == 0 else own == pytest.approx(-math.copysign(1, coefficient), abs=1e-6)
    assert (found == 0).any() or scale > 0.1


def test_many_fits_at_once_are_each_alone():
    features, labels, _ = data(3)
    weights = np.random.default_rng(4).integers(0, 3, (2, 5, 60))
    for lasso in (False, True):
        found = logistic(features, labels, weights, lasso=lasso)
        assert found.shape == (2, 5, 3)
        for row, own in zip(found.reshape(10, 3), weights.reshape(10, 60)):
            assert row == pytest.approx(logistic(np.repeat(features, own, 0), np.repeat(labels, own), lasso=lasso), abs=1e-9)


def test_a_constant_alone_is_the_log_odds_of_the_mean():
    labels = np.array([0.2, 0.9, 0.7])
    assert logistic(np.ones((3, 1)), labels, [1, 2, 1]) == pytest.approx([math.log(2.7 / 1.3)], abs=1e-8)


def test_a_start_where_the_loss_is_nearly_straight_does_not_throw_it_off():
    """There Newton's own step is 1500, beyond which the loss is straight the other way."""
    assert logistic(np.ones((2, 1)), np.array([0.4, 0.6]), offset=-8.0) == pytest.approx([8.0], abs=1e-7)
    assert logistic(np.ones((2, 1)), np.array([0.4, 0.6]), 1e4, offset=-8.0, lasso=True) == pytest.approx([8.0], abs=1e-3)


def test_a_row_of_no_weight_may_be_anywhere():
    features = np.array([[1.0], [1.0], [1e6]])
    assert logistic(features, np.array([0.9, 0.9, 0.0]), [1, 1, 0]) == pytest.approx([math.log(9)], abs=1e-7)


def test_labels_that_are_told_apart_wholly_have_large_but_finite_coefficients():
    found = logistic(np.array([[1.0], [-1.0]]), np.array([1.0, 0.0]))
    # Where the slope of the loss, 2 exp(-t), is that of the ridge, 1e-9 t.
    assert 2 * math.exp(-found[0]) == pytest.approx(1e-9 * found[0], rel=1e-6)
    same = logistic(np.ones((4, 2)), np.full(4, 0.8), lasso=True)
    assert np.isfinite(same).all()
