"""Huber lines against exact lines, least squares and another optimiser; grouping by a loop; constants recovered."""

import math
import re
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from denserl.errors import UserError
from denserl.rewards.normalizer_fit import Groups, fit_lines, group_by_place, huber_line

CONSTANTS = [0.9, 0.4, 1.25, 3.5]


def points(n: int, seed: int):
    generator = np.random.default_rng(seed)
    return np.sort(np.log(generator.uniform(0.01, 1, n))), generator


@given(st.floats(-5, 5), st.floats(-50, 50), st.integers(2, 30))
def test_an_exact_line(slope, intercept, n):
    x = -np.linspace(0, 4, n)
    assert huber_line(x, slope * x + intercept) == pytest.approx((slope, intercept), abs=1e-5 * (1 + abs(slope)))


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_residuals_of_one_size_give_least_squares(unit):
    """At sigma = |r| all z are 1 < 1.35: the quadratic part alone decides, whatever the unit."""
    x = -np.arange(40.0) / 10
    y = unit * (0.7 * x + 2 + np.tile([1.0, -1.0, -1.0, 1.0], 10))
    assert huber_line(x, y) == pytest.approx(np.polyfit(x, y, 1), rel=1e-5)


def test_outliers_are_resisted():
    x, generator = points(60, 0)
    y = 2 * x + 1 + 0.05 * generator.standard_normal(60)
    y[[3, 20, 50]] += [80, -60, 100]
    slope, intercept = huber_line(x, y)
    assert slope == pytest.approx(2, abs=0.05) and intercept == pytest.approx(1, abs=0.05)
    assert np.abs(np.polyfit(x, y, 1) - (2, 1)).max() > 0.5


def objective(parameters, x, y, epsilon):
    """sum_i [sigma + sigma H(r_i / sigma)], written as it stands in the paper, with sigma = exp of the third parameter."""
    sigma, total = math.exp(parameters[2]), 0.0
    for xi, yi in zip(x, y, strict=True):
        z = abs(yi - parameters[0] * xi - parameters[1]) / sigma
        total += sigma + sigma * (z * z if z <= epsilon else 2 * epsilon * z - epsilon * epsilon)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_another_optimiser_finds_the_same_line(seed):
    x, generator = points(25, seed)
    y = generator.normal(0, 3) * x + generator.normal(0, 3) + generator.standard_t(2, 25)
    start = [*np.polyfit(x, y, 1), 0.0]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20000, "maxfev": 20000}
    best = minimize(objective, start, args=(x, y, 1.35), method="Nelder-Mead", options=options).x
    assert huber_line(x, y, 1.35) == pytest.approx(best[:2], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_finds_the_same_line(seed):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, generator = points(50, seed)
    y = 1.5 * x - 2 + generator.standard_t(2, 50)
    model = linear_model.HuberRegressor(epsilon=1.35, alpha=0.0, tol=1e-9, max_iter=10000).fit(x[:, None], y)
    assert huber_line(x, y) == pytest.approx((model.coef_[0], model.intercept_), rel=1e-3)


@given(st.lists(st.lists(st.floats(-10, 10), max_size=7), min_size=1, max_size=30), st.integers(2, 3))
def test_groups_are_those_of_a_loop(rewards, smallest):
    places = defaultdict(list)
    for row in rewards:
        for k, reward in enumerate(row, start=1):
            places[round(k / len(row), 3)].append(reward)
    expected = {place: values for place, values in sorted(places.items()) if len(values) >= smallest}
    arrays = [np.array(row) for row in rewards]
    if len(expected) < 2:
        with pytest.raises(UserError, match="a line needs 2 places"):
            group_by_place(arrays, smallest)
        return
    groups = group_by_place(arrays, smallest)
    assert groups.place.tolist() == list(expected)
    assert groups.count.tolist() == [len(values) for values in expected.values()]
    assert groups.mean == pytest.approx([np.mean(values) for values in expected.values()], abs=1e-9)
    assert groups.std == pytest.approx([np.std(values) for values in expected.values()], abs=1e-7)


def test_places_that_round_to_one_are_one_group():
    # 1/3 = 0.3333 of three segments and 333/999 are the same; 2/3 rounds up to 0.667.
    groups = group_by_place([np.arange(3.0), np.arange(3.0)])
    assert groups.place.tolist() == [0.333, 0.667, 1.0]


def test_a_response_of_thousands_of_segments_has_no_place_at_zero():
    """1/2001 rounds to 0.000, whose logarithm is none; the rewards are a line of the place, which the fit recovers."""
    count = 2001
    rewards = [2 + np.log(np.arange(1, count + 1) / count) + sign for sign in (-1.0, 1.0)]
    groups = group_by_place(rewards)
    assert groups.place[0] == 0.001 and groups.place[-1] == 1.0
    # The places that round to less than 0.0015: 1 to 3 of 2001, of two responses.
    assert groups.count[0] == 2 * 3
    mean, std = fit_lines(groups)
    assert (mean.slope, mean.intercept) == pytest.approx((1, 2), abs=0.01)
    assert (std.slope, std.intercept) == pytest.approx((0, 1), abs=0.01)


def test_constants_are_recovered_from_rewards_drawn_with_them():
    w_mu, w_sigma, b_mu, b_sigma = CONSTANTS
    generator, rewards = np.random.default_rng(0), []
    for _ in range(6000):
        p = np.arange(1, (count := generator.integers(1, 13)) + 1) / count
        rewards.append(generator.normal(w_mu * np.log(p) + b_mu, w_sigma * np.log(p) + b_sigma))
    mean, std = fit_lines(group_by_place(rewards))
    # Some 46 groups of about 500 rewards: a group's mean is known to 0.15, a line through all of them to 0.05.
    assert [mean.slope, std.slope, mean.intercept, std.intercept] == pytest.approx(CONSTANTS, abs=0.12)
    assert mean.r2 > 0.9 and 0.5 < std.r2 <= 1


def test_r2_is_that_of_the_points_around_the_line():
    place = np.exp(-np.arange(40.0) / 10)
    x, noise = np.log(place), np.tile([0.1, -0.1, -0.1, 0.1], 10)
    groups = Groups(place, 2 * x + 1 + noise, 3 + 0 * x, np.full(40, 5))
    mean, std = fit_lines(groups)
    assert mean.r2 == pytest.approx(np.corrcoef(x, groups.mean)[0, 1] ** 2, abs=1e-6)
    assert (std.slope, std.intercept, std.r2) == pytest.approx((0, 3, 1), abs=1e-6)


def test_a_spread_that_is_not_positive_is_refused():
    place = np.array([0.25, 0.5, 1.0])
    with pytest.raises(UserError, match="must be positive") as error:
        fit_lines(Groups(place, place, np.zeros(3), np.full(3, 9)))
    assert re.search(r"[-`]+pairs", error.value.fix)


@pytest.mark.parametrize("rewards", [[], [np.zeros(0)], [np.ones(1)] * 9])
def test_too_few_places_say_what_to_do(rewards):
    with pytest.raises(UserError, match="a line needs 2 places") as error:
        group_by_place(rewards)
    assert re.search(r"[-`]+entropy_threshold", error.value.fix) and "bandit" in error.value.fix


def test_a_group_of_one_has_no_spread():
    with pytest.raises(ValueError, match="at least 2"):
        group_by_place([np.arange(4.0)], smallest=1)


def test_a_spread_below_one_is_fitted_and_judged_like_any_other():
    """Means on a line but one, all within 0.1: R^2 is 1 - (what is left) / (what there is), as for any other unit."""
    place = np.array([0.25, 0.5, 0.75, 1.0])
    x = np.log(place)
    deviation = np.array([0.0, 0.004, -0.004, 0.0])
    groups = Groups(place, 0.05 * x + deviation, 0.3 + 0.1 * x, np.full(4, 10))
    mean, std = fit_lines(groups)
    assert (std.slope, std.intercept, std.r2) == pytest.approx((0.1, 0.3, 1.0), abs=1e-6)
    left = groups.mean - mean.slope * x - mean.intercept
    assert mean.r2 == pytest.approx(1 - np.sum(left**2) / np.sum((groups.mean - groups.mean.mean()) ** 2)) and mean.r2 < 0.999


def test_two_places_are_enough_for_a_line():
    groups = group_by_place([np.array([1.0, 2.0]), np.array([3.0, 5.0])])
    assert groups.place.tolist() == [0.5, 1.0] and groups.mean.tolist() == [2.0, 3.5] and groups.std.tolist() == [1.0, 1.5]
    mean, std = fit_lines(groups)
    assert (mean.intercept, std.intercept) == pytest.approx((3.5, 1.5), abs=1e-5)
    assert (mean.slope, std.slope) == pytest.approx((1.5 / math.log(2), 0.5 / math.log(2)), abs=1e-5)
