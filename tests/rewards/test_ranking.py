"""Rules that choose among n responses by probabilities of pairs: vectors, loops, and a fixed point by another way."""

import itertools
import math

import numpy as np
import pytest

from denserl.rewards.ranking import LEAST, RULES, bradley_terry, chances, knockouts, list_scores, log_odds

MATRIX = np.array([[0.5, 0.70, 0.40, 0.65], [0.30, 0.5, 0.80, 0.55], [0.60, 0.20, 0.5, 0.90], [0.35, 0.45, 0.10, 0.5]])
KNOWN = {
    "win_rate": [0.58333333, 0.55, 0.56666667, 0.3],
    "logit": [0.35362399, 0.24655573, 0.40546511, -1.00564483],
    "wins": [2, 2, 2, 0],
    "bt": [0.26406874, 0.15984050, 0.21183574, -0.63574498],
    "knockout": [0, 0, 1, 0],
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_matrix(n: int, seed: int, spread: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    p = np.full((n, n), 0.5)
    for i, j in itertools.combinations(range(n), 2):
        p[i, j] = sigmoid(rng.normal(0, spread))
        p[j, i] = 1 - p[i, j]
    return p


def test_both_orders_make_one_probability():
    found = chances([[2 - 1, 0.5 - 0.8], [0.3, 0.3], [-4.0, 2.5], [800.0, -800.0], [0.0, 0.0]])
    by_hand = [(sigmoid(1) + sigmoid(0.3)) / 2, 0.5, (sigmoid(-4.0) + sigmoid(-2.5)) / 2, 1.0, 0.5]
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert found[0] == pytest.approx(0.65275055, abs=1e-8)


def test_exchanged_responses_have_the_other_probability_to_the_bit():
    both = np.random.default_rng(0).normal(0, 6, (20000, 2))
    one, other = chances(both), chances(both[:, ::-1])
    assert (one + other == 1).all() and (other == 1 - one).all() and ((one == 0.5) == (both[:, 0] == both[:, 1])).all()
    assert one == pytest.approx([(sigmoid(a) + sigmoid(-b)) / 2 for a, b in both], abs=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_rules_on_known_probabilities(rule):
    assert list_scores(MATRIX, rule) == pytest.approx(KNOWN[rule], abs=1e-6)
    # Of several lists at once, each as by itself; what stands on the diagonal is nothing.
    several = np.stack([MATRIX, random_matrix(4, 1), 1 - MATRIX])
    several[:, np.arange(4), np.arange(4)] = np.nan
    expected = [list_scores(np.where(np.eye(4, dtype=bool), 0.5, each), rule) for each in several]
    assert list_scores(several, rule) == pytest.approx(np.array(expected), abs=1e-9)
    assert list_scores(np.array([[0.5]]), rule) == pytest.approx([1 if rule == "knockout" else 0])


@pytest.mark.parametrize("n", [2, 3, 7])
def test_scores_of_maximum_likelihood_fulfil_their_equation(n):
    p = random_matrix(n, seed=n)
    scores = bradley_terry(p)
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        assert sum(sigmoid(scores[i] - scores[j]) for j in others) == pytest.approx(sum(p[i, j] for j in others), abs=1e-7)
    # Zermelo's fixed point, which takes no derivative.
    strength = np.ones(n)
    for _ in range(20000):
        for i in range(n):
            others = [j for j in range(n) if j != i]
            strength[i] = sum(p[i, j] for j in others) / sum(1 / (strength[i] + strength[j]) for j in others)
    by_fixed_point = np.log(strength) - np.log(strength).mean()
    assert scores == pytest.approx(by_fixed_point, abs=1e-6)


def test_of_two_that_met_often_the_difference_is_the_log_odds_of_wins():
    wins = np.array([[np.nan, 7.5], [2.5, np.nan]])
    assert bradley_terry(wins) == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-9)
    # A third that met the second alone.
    wins = np.array([[0, 7.5, 0], [2.5, 0, 1], [0, 4, 0]])
    scores = bradley_terry(wins)
    assert scores - scores[1] == pytest.approx([math.log(3), 0, math.log(4)], abs=1e-7)


def test_certain_probabilities_have_finite_scores_in_order():
    certain = np.triu(np.ones((4, 4)), 1)
    for rule in ("win_rate", "logit", "wins", "bt"):
        scores = list_scores(certain, rule)
        assert np.isfinite(scores).all() and (np.diff(scores) < 0).all(), rule
    assert log_odds([0.0, 1.0, 0.5]) == pytest.approx([math.log(LEAST), -math.log(LEAST), 0.0])
    assert log_odds([0.3]) == pytest.approx([math.log(0.3 / 0.7)], abs=1e-14)


def test_equal_responses_tie_wherever_they_stand():
    """Their rows hold the same numbers in another order."""
    base = random_matrix(7, 5)
    for copy in range(1, 7):
        p = base.copy()
        p[copy], p[:, copy] = base[0], base[:, 0]
        p[copy, copy] = p[copy, 0] = p[0, copy] = 0.5
        for rule in ("win_rate", "logit", "wins", "bt"):
            scores = list_scores(p, rule)
            assert scores[0] == scores[copy], (rule, copy)


def test_a_knockout_is_a_seat_that_the_next_one_contends_for():
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2], [1, 2]]
    asked = []

    def judge(meetings):
        asked.append(list(meetings))
        return [MATRIX[best, other] for _, best, other in meetings]

    found = knockouts(orders, judge)
    for order, winner in zip(orders, found):
        best = order[0]
        for other in order[1:]:
            best = best if MATRIX[best, other] >= 0.5 else other
        assert winner == best
    # The order decides where preferences go in circles.
    assert found[0] != found[1] and sum(map(len, asked)) == sum(len(order) - 1 for order in orders) and len(asked) == 3
    assert knockouts([[4, 5]], lambda meetings: [0.5]) == [4] and knockouts([], judge) == []


@pytest.mark.parametrize(
    ("matrix", "rule", "found"),
    [
        (MATRIX, "borda", "unknown rule 'borda'"),
        (MATRIX[:3], "bt", "shape"),
        (MATRIX + 0.3, "wins", "add"),
        (np.where(MATRIX == 0.7, np.nan, MATRIX), "logit", "in \\[0, 1\\]"),
        (np.zeros((0, 0)), "wins", "at least 1"),
    ],
)
def test_what_is_no_such_matrix_is_refused(matrix, rule, found):
    with pytest.raises(ValueError, match=found):
        list_scores(matrix, rule)
