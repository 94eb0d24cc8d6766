"""Statistics of pairs against loops, closed forms and scipy."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from denserl.evaluation.statistics import (
    bootstrap_means,
    bootstrap_parts,
    calibration,
    interval,
    length_bias,
    share_interval,
)


def pairs(n: int, seed: int):
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 1.5, n) for _ in range(2)] + [generator.integers(1, 40, n).astype(float) for _ in range(2)]


def alone(credits, resamples: int, seed: int) -> np.ndarray:
    """Draws where every item asks a question of its own."""
    return bootstrap_means(np.array(credits), np.arange(len(credits)), resamples, np.random.default_rng(seed))


def shared(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Credits, questions and parts of items: one to six a question, whose credits go together, in one or both of two parts."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 7, count)
    easy = generator.random(count)
    questions = np.repeat(np.arange(count), sizes)
    credits = (generator.random(len(questions)) < easy[questions]).astype(float)
    parts = np.where(questions % 3 == 2, generator.integers(0, 2, len(questions)), questions % 3)
    return credits, questions, parts


def test_draws_have_the_mean_and_spread_of_means_of_n():
    draws = alone([1.0] * 30 + [0.0] * 10, 20000, 0)
    # p = 3/4 of n = 40: standard deviation sqrt(p (1 - p) / n); the estimates of both vary by less than a tenth of it.
    spread = math.sqrt(0.75 * 0.25 / 40)
    assert draws.mean() == pytest.approx(0.75, abs=0.05 * spread)
    assert draws.std() == pytest.approx(spread, rel=0.03)


def test_the_interval_is_scipys():
    credits = np.array([1.0] * 55 + [0.5] * 7 + [0.0] * 38)
    found = interval(alone(credits, 9999, 1))
    other = bootstrap((credits,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(2))
    # Means of 100 credits lie 0.005 apart; two runs may end one such step from each other.
    assert found == pytest.approx(list(other.confidence_interval), abs=0.0051)


def test_whole_questions_are_drawn_with_all_their_items():
    """Three questions of 1, 2 and 3 items: of all 27 draws, the chances of each mean."""
    credits, questions = np.array([1.0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 2, 2, 2])
    expected: dict[float, float] = {}
    for drawn in itertools.product(range(3), repeat=3):
        items = [credit for question in drawn for credit, own in zip(credits, questions) if own == question]
        mean = round(sum(items) / len(items), 9)
        expected[mean] = expected.get(mean, 0) + 1 / 27
    draws = bootstrap_means(credits, questions, 20000, np.random.default_rng(0))
    values, counts = np.unique(draws.round(9), return_counts=True)
    assert {*values.tolist()} == {*expected}
    # A share of 20000 draws is known to 0.0035 (one standard error); four of them.
    assert [count / 20000 for count in counts] == pytest.approx([expected[v] for v in values], abs=0.0142)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_shared_questions_are_those_of_a_brute_force_bootstrap(seed):
    credits, questions, _ = shared(150, seed)
    of_each = [credits[questions == question].tolist() for question in range(150)]
    generator, means = random.Random(seed), []
    for _ in range(4000):
        items = [credit for own in generator.choices(of_each, k=150) for credit in own]
        means.append(sum(items) / len(items))
    draws = bootstrap_means(credits, questions, 4000, np.random.default_rng(seed))
    spread = np.std(means)
    # A 2.5 % quantile of 4000 draws has a standard error of 0.042 spreads; two of them differ by less than 0.25.
    assert interval(draws) == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.25 * spread)
    # Of large samples: the linearised ratio of sums, sqrt(sum over questions of (credit - mean size)^2) / items.
    mean = credits.mean()
    linear = math.sqrt(sum((sum(own) - mean * len(own)) ** 2 for own in of_each)) / len(credits)
    assert draws.std() == pytest.approx(linear, rel=0.06)
    low, high = interval(alone(credits, 4000, seed))
    assert np.diff(interval(draws))[0] > 1.2 * (high - low)


@pytest.mark.parametrize("seed", range(2))
def test_parts_that_share_questions_vary_together(seed):
    """Against a loop that draws questions within those of part 0 alone, of part 1 alone, and of both."""
    credits, questions, parts = shared(120, seed)
    inside = {question: tuple(sorted({*parts[questions == question].tolist()})) for question in range(120)}
    cells = {q: list(zip(credits[questions == q], parts[questions == q])) for q in range(120)}
    generator, brute = random.Random(seed), []
    for _ in range(3000):
        drawn = []
        for pattern in {*inside.values()}:
            members = [question for question, own in inside.items() if own == pattern]
            drawn += generator.choices(members, k=len(members))
        sums, sizes = [0.0, 0.0], [0, 0]
        for question in drawn:
            for credit, part in cells[question]:
                sums[part] += credit
                sizes[part] += 1
        brute.append([sums[0] / sizes[0], sums[1] / sizes[1]])
    draws = bootstrap_parts(credits, questions, parts, 3000, np.random.default_rng(seed))
    assert draws.shape == (3000, 2)
    expected, found = np.cov(np.array(brute).T), np.cov(draws.T)
    # Standard errors of variances of 3000 draws are 2.6 % of them.
    assert found == pytest.approx(expected, abs=0.12 * expected.diagonal().max())
    # Independent parts would not covary at all.
    assert found[0, 1] > 0.02 * found.diagonal().max()
    for part in (0, 1):
        assert interval(draws[:, part]) == pytest.approx(
            np.quantile(np.array(brute)[:, part], [0.025, 0.975]).tolist(), abs=0.25 * draws[:, part].std()
        )


def test_a_part_is_never_empty():
    draws = bootstrap_parts(np.array([1.0, 0.0, 1.0]), np.arange(3), np.array([0, 1, 2]), 50, np.random.default_rng(0))
    assert draws.tolist() == [[1.0, 0.0, 1.0]] * 50


def test_where_no_draw_differs_the_interval_is_wilsons():
    assert interval(alone([1.0] * 8, 100, 0)) == [1.0, 1.0]
    assert share_interval(1.0, alone([1.0] * 8, 100, 0), 8) == pytest.approx([8 / (8 + 1.959963984540054**2), 1.0])
    assert share_interval(0.0, alone([0.0] * 8, 100, 0), 8) == pytest.approx([0.0, 1 - 8 / (8 + 1.959963984540054**2)])
    # Many items of one question are one piece of evidence.
    one = bootstrap_means(np.array([1.0, 0.0, 0.0, 1.0]), np.zeros(4, dtype=int), 100, np.random.default_rng(0))
    low, high = share_interval(0.5, one, 1)
    assert low == pytest.approx(1 - high) and 0.05 < low < 0.06
    draws = alone([1.0] * 7 + [0.0], 1000, 0)
    assert share_interval(7 / 8, draws, 8) == interval(draws)
    # A score that is no share is left as it is.
    assert share_interval(1.01, np.full(9, 1.01), 3) == pytest.approx([1.01, 1.01])


def test_the_same_seed_gives_the_same_draws():
    assert alone([0.0, 1.0, 1.0], 50, 7).tolist() == alone([0.0, 1.0, 1.0], 50, 7).tolist()


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


def test_two_pairs_and_small_numbers_correlate_like_any_others():
    """Scores within 0.02 and lengths within half a character; a tie is no preference for the longer answer."""
    found = length_bias(np.array([0.01, 0.03]), np.zeros(2), np.array([0.5, 1.0]), np.array([0.25, 0.25]))
    assert found["gap_correlation"] == pytest.approx(1)
    tied = length_bias(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([5.0, 9.0]), np.array([1.0, 1.0]), bins=1)
    assert tied["preferred_longer"] == 0.5 and [row["accuracy"] for row in tied["by_gap"]] == [0.5]
    assert length_bias(np.ones(1), np.zeros(1), np.ones(1), np.zeros(1))["gap_correlation"] is None


def test_a_confidence_on_an_edge_is_of_the_bin_above():
    """sigmoid(ln 3) = 0.75, in two bins."""
    found = calibration(np.array([math.log(3) + 1e-9]), np.zeros(1), bins=2)["bins"]
    assert [(row["low"], row["high"]) for row in found] == [(0.75, 1.0)]
    assert [row["low"] for row in calibration(np.zeros(1), np.zeros(1), bins=2)["bins"]] == [0.5]
