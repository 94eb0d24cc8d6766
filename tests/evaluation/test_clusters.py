"""Means over questions against closed forms, loops, ordinary t intervals and simulated judgements."""

import math

import numpy as np
import pytest
from scipy import stats

from denserl.evaluation.policies.clusters import difference_of_means, mean_of_questions, times_drawn

CREDITS = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 0.0, np.nan, 1.0])
QUESTIONS = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])


def test_the_error_is_that_of_a_loop_over_questions():
    found = mean_of_questions(CREDITS, QUESTIONS)
    sums = {"a": (1.0, 2), "b": (1.0, 1), "c": (1.5, 3), "e": (1.0, 1)}
    mean = 4.5 / 7
    square = sum((s - mean * n) ** 2 for s, n in sums.values()) * 4 / 3 / 7**2
    assert found[:2] == pytest.approx((mean, math.sqrt(square))) and found.questions == 4
    # Quantile of t with 3 degrees of freedom, of a table.
    assert found.interval == pytest.approx([mean - 3.182446 * square**0.5, mean + 3.182446 * square**0.5], abs=1e-6)


def test_of_one_item_each_it_is_the_t_interval_and_the_bootstrap_is_scipys():
    credits = np.random.default_rng(0).random(80)
    found = mean_of_questions(credits, np.arange(80), resamples=9999)
    assert found.standard_error == pytest.approx(stats.sem(credits))
    assert found.interval == pytest.approx(list(stats.t.interval(0.95, 79, credits.mean(), stats.sem(credits))))
    other = stats.bootstrap((credits,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(1))
    # Quantiles of 9999 draws have standard errors of 0.027 spreads each.
    assert found.bootstrap == pytest.approx(list(other.confidence_interval), abs=0.12 * found.standard_error)


def test_copies_of_judgements_are_no_further_evidence():
    once = mean_of_questions([1.0, 0.0, 0.0, 1.0, 1.0], np.arange(5))
    thrice = mean_of_questions([1.0, 0.0, 0.0, 1.0, 1.0] * 3, [0, 1, 2, 3, 4] * 3)
    assert thrice[:2] == pytest.approx(once[:2]) and thrice.interval == pytest.approx(once.interval)


def test_two_policies_on_the_same_questions_differ_by_the_paired_t_interval():
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 1, 40)
    first, second = hard + generator.normal(0, 0.1, 40), hard + generator.normal(0.2, 0.1, 40)
    order = generator.permutation(40)
    found = difference_of_means(first, np.arange(40), second[order], order)
    gap = first - second
    assert found[:2] == pytest.approx((gap.mean(), stats.sem(gap)))
    assert found.interval == pytest.approx(list(stats.t.interval(0.95, 39, gap.mean(), stats.sem(gap))))
    spread = found.bootstrap[1] - found.bootstrap[0]
    assert spread == pytest.approx(2 * 1.96 * stats.sem(gap), rel=0.15)


def test_questions_of_one_policy_alone_are_in_no_difference():
    found = difference_of_means([1.0, 0.0, 1.0, np.nan], [0, 0, 1, 2], [0.0, 1.0, 0.5, 1.0], [1, 3, 0, 2])
    # Question 0: half of the first's 1 + 0 against 0.5; question 1: 1 against 0. Means 2/3 of three and 1/4 of two.
    assert found.mean == pytest.approx(2 / 3 - 1 / 4) and found.questions == 2
    shares = [(1 - 4 / 3) / 3 - 0.25 / 2, (1 / 3) / 3 + 0.25 / 2]
    assert found.standard_error == pytest.approx(math.sqrt(2 * sum(s**2 for s in shares)))
    assert difference_of_means([1.0], [0], [1.0], [1]).mean is None


def test_of_one_question_nothing_is_said_about_others():
    assert mean_of_questions([1.0, 0.0], ["q", "q"]) == (0.5, None, None, None, 1)
    assert mean_of_questions([np.nan], ["q"]) == (None, None, None, None, 0)


def test_items_of_a_question_are_drawn_together():
    drawn = times_drawn(["b", "a", "b", "c"], 500, 0)
    assert drawn.shape == (500, 4) and (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3]].sum(1) == 3).all()
    assert drawn[:, 1].mean() == pytest.approx(1, abs=0.15) and drawn[:, 1].var() == pytest.approx(2 / 3, abs=0.15)


def simulated(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Battles of questions with 3 samples and 2 games each: answers to a question are alike, and most verdicts strong."""
    easy = generator.normal(0.3, 1.5, (count, 1, 1))
    said = easy + generator.normal(0, 0.5, (count, 3, 1)) + generator.normal(0, 0.5, (count, 3, 2))
    copies = np.where(np.abs(said) > 0.5, 3, 1).ravel()
    return np.repeat((said > 0).ravel().astype(float), copies), np.repeat(np.repeat(np.arange(count), 6), copies)


@pytest.mark.long
def test_intervals_hold_what_they_say_where_battles_are_copies_of_one_another():
    """Of 300 sets of 200 questions; 95 % of 300 are known to 1.3 %. Intervals over single battles hold half as often."""
    generator = np.random.default_rng(0)
    truth = simulated(generator, 300_000)[0].mean()
    held = {"t": 0, "bootstrap": 0, "battles": 0}
    for seed in range(300):
        scores, questions = simulated(generator, 200)
        found = mean_of_questions(scores, questions, 300, seed)
        held["t"] += found.interval[0] <= truth <= found.interval[1]
        held["bootstrap"] += found.bootstrap[0] <= truth <= found.bootstrap[1]
        held["battles"] += abs(found.mean - truth) <= 1.96 * scores.std() / len(scores) ** 0.5
    assert 0.91 <= held["t"] / 300 <= 0.98 and 0.91 <= held["bootstrap"] / 300 <= 0.98
    assert held["battles"] / 300 < 0.6
