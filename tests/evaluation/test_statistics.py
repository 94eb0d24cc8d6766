"""Statistics of pairs against loops, closed forms and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from denserl.evaluation.statistics import bootstrap_means, calibration, interval, length_bias


def pairs(n: int, seed: int):
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 1.5, n) for _ in range(2)] + [generator.integers(1, 40, n).astype(float) for _ in range(2)]


def test_draws_have_the_mean_and_spread_of_means_of_n():
    credits = np.array([1.0] * 30 + [0.0] * 10)
    draws = bootstrap_means(credits, 20000, np.random.default_rng(0))
    # p = 3/4 of n = 40: standard deviation sqrt(p (1 - p) / n); the estimates of both vary by less than a tenth of it.
    spread = math.sqrt(0.75 * 0.25 / 40)
    assert draws.mean() == pytest.approx(0.75, abs=0.05 * spread)
    assert draws.std() == pytest.approx(spread, rel=0.03)


def test_the_interval_is_scipys():
    credits = np.array([1.0] * 55 + [0.5] * 7 + [0.0] * 38)
    found = interval(bootstrap_means(credits, 9999, np.random.default_rng(1)))
    other = bootstrap((credits,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(2))
    # Means of 100 credits lie 0.005 apart; two runs may end one such step from each other.
    assert found == pytest.approx(list(other.confidence_interval), abs=0.0051)


def test_one_credit_for_all_leaves_nothing_open():
    draws = bootstrap_means(np.ones(5), 100, np.random.default_rng(0))
    assert interval(draws) == [1.0, 1.0]


def test_the_same_seed_gives_the_same_draws():
    first, second = (bootstrap_means(np.array([0.0, 1.0, 1.0]), 50, np.random.default_rng(7)) for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_calibration_is_that_of_a_loop(seed):
    chosen, rejected, *_ = pairs(200, seed)
    inside, brier = {}, 0.0
    for c, r in zip(chosen, rejected):
        p = 1 / (1 + math.exp(r - c))
        brier += (1 - p) ** 2 / 200
        inside.setdefault(min(int((max(p, 1 - p) - 0.5) * 20), 9), []).append((max(p, 1 - p), float(p > 0.5)))
    ece = sum(abs(sum(c for c, _ in part) - sum(a for _, a in part)) for part in inside.values()) / 200
    found = calibration(chosen, rejected)
    assert (found["ece"], found["brier"]) == pytest.approx((ece, brier), abs=1e-12)
    assert [row["n"] for row in found["bins"]] == [len(inside[b]) for b in sorted(inside)]
    assert [row["low"] for row in found["bins"]] == pytest.approx([0.5 + b / 20 for b in sorted(inside)])


def test_sure_and_right_is_calibrated_sure_and_wrong_is_not():
    high, low = np.full(3, 800.0), np.zeros(3)
    assert calibration(high, low) == {
        "ece": 0.0,
        "brier": 0.0,
        "bins": [{"low": 0.95, "high": 1.0, "n": 3, "confidence": 1.0, "accuracy": 1.0}],
    }
    assert (calibration(low, high)["ece"], calibration(low, high)["brier"]) == (1.0, 1.0)


def test_a_tie_is_a_coin_and_is_calibrated():
    found = calibration(np.zeros(4), np.zeros(4))
    assert (found["ece"], found["brier"]) == (0.0, 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_length_bias_is_that_of_a_loop(seed):
    chosen, rejected, long, short = pairs(90, seed)
    found = length_bias(chosen, rejected, long, short)
    assert found["longer_accuracy"] == sum(a > b for a, b in zip(long, short)) / 90
    unlike = [(c - r) * (a - b) > 0 for c, r, a, b in zip(chosen, rejected, long, short) if a != b]
    assert found["preferred_longer"] == pytest.approx(sum(unlike) / len(unlike))
    scores, lengths = np.concatenate([chosen, rejected]), np.concatenate([long, short])
    covariance = np.mean([(x - scores.mean()) * (y - lengths.mean()) for x, y in zip(scores, lengths)])
    assert found["correlation"] == pytest.approx(covariance / scores.std() / lengths.std())
    for row in found["by_gap"]:
        inside = [c > r for c, r, a, b in zip(chosen, rejected, long, short) if row["low"] <= a - b <= row["high"]]
        assert (row["n"], row["accuracy"]) == (len(inside), pytest.approx(sum(inside) / len(inside)))
    assert sum(row["n"] for row in found["by_gap"]) == 90


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_bins_of_length_gaps_part_all_pairs_and_no_gap(gaps):
    length = np.array(gaps, dtype=float)
    rows = length_bias(np.ones(len(gaps)), np.zeros(len(gaps)), length, np.zeros(len(gaps)))["by_gap"]
    assert sum(row["n"] for row in rows) == len(gaps) and len(rows) <= 5
    assert all(before["high"] < after["low"] for before, after in zip(rows, rows[1:]))


def test_scores_that_are_lengths_are_all_bias():
    _, _, long, short = pairs(50, 4)
    found = length_bias(long, short, long, short)
    assert found["correlation"] == pytest.approx(1) and found["gap_correlation"] == pytest.approx(1)
    assert found["preferred_longer"] == 1


def test_what_does_not_vary_correlates_with_nothing():
    found = length_bias(np.ones(3), np.zeros(3), np.full(3, 5.0), np.full(3, 5.0))
    assert found["gap_correlation"] is None and found["correlation"] is None and found["preferred_longer"] is None
