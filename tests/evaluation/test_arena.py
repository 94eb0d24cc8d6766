"""Arena-Hard's numbers against vectors, Zermelo's fixed point, regressions by scipy and row-by-row rules."""

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from denserl.evaluation.policies.arena import arena, arena_by_style, battles, ratings, style_features, win_rates
from denserl.evaluation.policies.clusters import mean_of_questions, times_drawn
from denserl.evaluation.policies.logistic import logistic

GAMES = [("A>>B", "B>>A"), ("A=B", "A>B"), ("B>A", "A=B"), ("B>>A", "A>>B"), (None, "A>B"), ("A>B", "B>>A")]
BASELINE = np.array([(120, 1, 4, 3), (300, 0, 0, 2), (80, 2, 6, 0), (200, 0, 3, 5)])
FIRST = np.array([(240, 3, 9, 6), (150, 0, 2, 0), (160, 1, 0, 1), (210, 2, 8, 5)])
SECOND = np.array([(60, 0, 0, 0), (330, 4, 10, 2), (90, 0, 5, 3), (100, 1, 1, 0)])
SCORES, POLICIES = np.array([1, 0, 0.5, 1, 0, 1, 0, 0.5]), np.repeat([0, 1], 4)
COUNTS = np.concatenate([FIRST, SECOND]), np.concatenate([BASELINE, BASELINE])


def many(seed: int, count: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of battles of three policies, whose they are, and two features of style that matter."""
    generator = np.random.default_rng(seed)
    policies, style = generator.integers(0, 3, count), generator.normal(0, 1, (count, 2))
    chance = 1 / (1 + np.exp(-(np.array([-1, 0, 0.5])[policies] + style @ [0.8, -0.3])))
    scores = np.where(generator.random(count) < 0.1, 0.5, generator.random(count) < chance)
    return scores, policies, style


def test_battles_are_counted_by_hand():
    scores, questions = battles(GAMES)
    assert scores.tolist() == [0] * 6 + [0.5, 1] + [1, 0.5] + [1] * 6 + [1] + [0] * 4
    assert questions.tolist() == [0] * 6 + [1] * 2 + [2] * 2 + [3] * 6 + [4] + [5] * 4
    newer = battles(GAMES, "newer")
    assert newer.questions.tolist() == [q for q in questions.tolist() if q != 4] and newer.scores.sum() == 9


def test_one_policy_against_the_baseline_has_its_mean_score():
    scores, questions = battles(GAMES)
    (row,) = arena(scores, np.zeros(21, dtype=int), rounds=2000)
    assert (len(scores), scores.sum()) == (21, 10)
    assert row["win_rate"] == pytest.approx(47.61904762, abs=5e-8) and row["rating"] == pytest.approx(983.44292594, abs=1e-6)
    estimate = mean_of_questions(100 * scores, questions)
    assert estimate.standard_error == pytest.approx(24.76726164, abs=5e-9)
    assert 100 * scores.std(ddof=1) / math.sqrt(21) == pytest.approx(10.62128956, abs=5e-8)
    # Battles drawn one by one: 21 of them give steps of 2.4.
    generator, scores = random.Random(0), scores.tolist()
    means = [100 * sum(generator.choices(scores, k=21)) / 21 for _ in range(2000)]
    assert row["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=2.5)


def test_the_newer_headline_is_the_mean_of_its_rounds(monkeypatch):
    scores, _ = battles(GAMES, "newer")
    (row,) = arena(scores, np.zeros(20, dtype=int), "newer", rounds=20000)
    # Standard error of a mean of 20000 rounds: 0.08.
    assert 100 * scores.mean() == 45 and row["win_rate"] == pytest.approx(45, abs=0.3) and "rating" not in row
    scores, _, _ = many(4)
    (row,) = arena(scores, np.zeros(600, dtype=int), "newer", rounds=4000)
    error = 100 * scores.std() / math.sqrt(600)
    assert row["interval"] == pytest.approx([100 * scores.mean() + z * error for z in (-1.645, 1.645)], abs=0.15 * error)
    rounds = np.array([[3, 0, 0], [0, 2, 1], [0, 1, 2]])
    monkeypatch.setattr("denserl.evaluation.policies.arena._drawn", lambda count, many, rng: rounds)
    (row,) = arena(np.array([1, 0, 0.5]), np.zeros(3, dtype=int), "newer")
    assert row["win_rate"] == pytest.approx(100 * (1 + 0.5 / 3 + 1 / 3) / 3)


def test_policies_that_meet_the_baseline_alone_are_rated_each_alone():
    scores, policies, _ = many(0)
    both = arena(scores, policies)
    for number, row in enumerate(both):
        assert row["win_rate"] == pytest.approx(100 * scores[policies == number].mean(), abs=1e-6)
        odds = scores[policies == number].mean() / (1 - scores[policies == number].mean())
        assert row["rating"] == pytest.approx(1000 + 400 * math.log10(odds), abs=1e-6)
        assert row["interval"][0] < row["win_rate"] < row["interval"][1]
    assert [row["win_rate"] for row in arena(scores, policies, "newer")] != [row["win_rate"] for row in both]
    assert arena(scores, policies) == both  # of one seed


def test_three_models_have_the_ratings_of_zermelo():
    wins = np.array([[0, 7, 8], [3, 0, 6.5], [2, 4.5, 0]])
    strength = np.ones(3)
    for _ in range(2000):
        strength = np.array(
            [
                wins[i].sum() / sum((wins[i, j] + wins[j, i]) / (strength[i] + strength[j]) for j in range(3) if j != i)
                for i in range(3)
            ]
        )
        strength /= strength[0]
    found = ratings(wins)
    assert found == pytest.approx(1000 + 400 * np.log10(strength), abs=1e-6)
    # Of a solver that stops earlier than both.
    assert found == pytest.approx([1000, 843.06844947, 771.55101556], abs=5e-6)
    assert win_rates(found) / 100 == pytest.approx([0.5, 0.28835833, 0.21164168], abs=1e-8)
    assert ratings(np.stack([wins, 2 * wins]))[1] == pytest.approx(found, abs=1e-6)


def test_a_model_without_a_battle_has_no_rating_and_one_that_always_wins_a_high_one():
    found = ratings(np.array([[0, 2, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]]))
    assert np.isnan(found).tolist() == [False, False, True, False]
    assert found[1] == pytest.approx(1000 + 400 * math.log10(2), abs=1e-5)
    assert win_rates(found)[3] == pytest.approx(100, abs=1e-6)


def test_style_is_measured_as_by_hand():
    old, new = style_features(*COUNTS, "v0.1"), style_features(*COUNTS, "newer")
    assert old[0] == pytest.approx([-1.36046166, -0.54397024, -0.53103750, -0.68734434], abs=5e-9)
    assert new[0] == pytest.approx([1.27169755, 0.44082604, 0.33657228, 0.13565550], abs=5e-9)
    assert old.std(axis=0) == pytest.approx(np.ones(4)) and new.std(axis=0, ddof=1) == pytest.approx(np.ones(4))
    same = np.ones((3, 4)) * [9, 0, 1, 0]
    assert np.abs(style_features(same, same + 1, "newer")).max() < 1e-9  # not of rounding
    assert style_features(*(counts[:1] for counts in COUNTS), "newer").tolist() == [[0] * 4]
    assert style_features(same, same, "newer").tolist() == style_features(same, same, "v0.1").tolist() == [[0] * 4] * 3
    empty = np.zeros((2, 4))
    assert style_features(empty, empty, "newer").tolist() == [[0] * 4] * 2


def test_style_control_of_2024_gives_the_solved_ratings():
    rows, style = arena_by_style(SCORES, POLICIES, style_features(*COUNTS, "v0.1"), np.arange(8) % 4)
    assert [row["rating"] for row in rows] == pytest.approx([1123.1283, 1093.2686], abs=1e-4)
    assert [row["win_rate"] for row in rows] == pytest.approx([51.31337, 47.02004], abs=5e-6)
    assert style == pytest.approx([0.76776622, 1.42512065, 0.16200342, 0.17273055], abs=2e-8)
    assert [row["win_rate"] for row in arena(SCORES, POLICIES)] == pytest.approx([62.5, 37.5], abs=1e-6)


def test_style_control_of_2025_gives_the_solved_win_rates(monkeypatch):
    """Of all battles once: rounds that draw each battle once."""
    everything = np.ones((100, len(SCORES)))
    monkeypatch.setattr("denserl.evaluation.policies.arena._drawn", lambda count, rounds, rng: everything)
    rows, style = arena_by_style(SCORES, POLICIES, style_features(*COUNTS, "newer")[:, :1], np.arange(8) % 4, "newer")
    assert [row["win_rate"] for row in rows] == pytest.approx([53.77417, 46.76526], abs=5e-6)
    assert style == pytest.approx([1.12786903], abs=5e-9)
    logits = [math.log(row["win_rate"] / (100 - row["win_rate"])) for row in rows]
    assert logits == pytest.approx([0.15125444, -0.12957075], abs=5e-9)


def test_style_control_is_the_regression_of_scipy():
    """v0.1 as it is written: twice the battles, a tie as a win each, the baseline's wins, coefficients of ln 10."""
    scores, policies, style = many(1, 120)
    ln = math.log(10)
    rows = [([ln, *(-ln * (k == own) for k in range(3)), *more], 1 - s) for s, own, more in zip(scores, policies, style)]
    features = np.array([x for x, _ in rows] * 2)
    won = np.array([won if won != 0.5 else copy for copy in (0, 1) for _, won in rows])

    def loss(t):
        z = features @ t
        return (np.logaddexp(0, z) - won * z).sum() + t @ t / 2

    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-8}).x
    found, coefficients = arena_by_style(scores, policies, style, np.arange(120), resamples=5)
    assert coefficients == pytest.approx(best[4:], abs=1e-6)
    assert [row["rating"] for row in found] == pytest.approx(1114 + 400 * (best[1:4] - best[0]), abs=1e-3)


def test_the_newer_style_control_has_medians_of_its_rounds(monkeypatch):
    """Each round by scipy, of the battles that it draws, the baseline at 0."""
    scores, policies, style = many(3, 90)
    rounds = np.random.default_rng(0).multinomial(90, np.full(90, 1 / 90), size=5)
    monkeypatch.setattr("denserl.evaluation.policies.arena._drawn", lambda count, many, rng: rounds)
    features = np.concatenate([np.eye(3)[policies], style], axis=1)
    fits = []
    for drawn in rounds:
        x, y = np.repeat(features, drawn, axis=0), np.repeat(scores, drawn)

        def loss(t, x=x, y=y):
            return (np.logaddexp(0, x @ t) - y * (x @ t)).sum()

        fits.append(minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7}).x)
    rates = 100 / (1 + np.exp(-np.array(fits)[:, :3]))
    rows, coefficients = arena_by_style(scores, policies, style, np.arange(90), "newer", rounds=5, resamples=5)
    assert [row["win_rate"] for row in rows] == pytest.approx(np.median(rates, axis=0).tolist(), abs=1e-4)
    assert [row["interval"] for row in rows] == [pytest.approx(b, abs=1e-4) for b in np.percentile(rates, [5, 95], axis=0).T]
    assert coefficients == pytest.approx(np.median(np.array(fits)[:, 3:], axis=0).tolist(), abs=1e-5)


@pytest.mark.parametrize("rule", ["v0.1", "newer"])
def test_style_is_taken_out_again(rule):
    """Policies of known strength, of many battles: standard errors are about 2."""
    scores, policies, style = many(2, 6000)
    found, coefficients = arena_by_style(
        scores, policies, style if rule == "newer" else -style, np.arange(6000), rule, 50, resamples=5
    )
    expected = [100 / (1 + math.exp(-logit)) for logit in (-1, 0, 0.5)]
    # Ties of a tenth pull a little to the middle.
    assert [row["win_rate"] for row in found] == pytest.approx(expected, abs=4)
    assert [row["interval"][0] < row["win_rate"] < row["interval"][1] for row in found] == [True] * 3
    assert coefficients == pytest.approx([0.75, -0.28], abs=0.08)


@pytest.mark.parametrize("rule", ["v0.1", "newer"])
def test_questions_are_drawn_with_the_battles_of_all_policies(rule):
    """Each draw fitted alone, of battles as often as their question is drawn; five in a row are of one question."""
    scores, policies, style = many(5, 60)
    questions = np.array(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"])[np.arange(60) // 5]
    rows, _ = arena_by_style(scores, policies, style, questions, rule, rounds=3, seed=9, resamples=20)
    rates = []
    for drawn in times_drawn(questions, 20, 9):
        picked = np.repeat(np.arange(60), drawn)
        if rule == "newer":
            found = logistic(np.concatenate([np.eye(3)[policies], style], axis=1)[picked], scores[picked])[:3]
            rates.append(100 / (1 + np.exp(-found)))
        else:
            alone, _ = arena_by_style(scores[picked], policies[picked], style[picked], picked, rounds=1, resamples=1)
            rates.append([row["win_rate"] for row in alone])
    bounds = np.percentile(rates, [2.5, 97.5], axis=0).T
    assert [row["question_interval"] for row in rows] == [pytest.approx(own.tolist(), abs=1e-5) for own in bounds]


def test_draws_without_a_policy_say_nothing_of_it(monkeypatch):
    rounds = np.array([[1, 1, 1, 1, 1], [1, 2, 0, 2, 0]])
    monkeypatch.setattr("denserl.evaluation.policies.arena._drawn", lambda count, many, rng: rounds)
    scores, policies, style = np.array([1.0, 0.5, 0.0, 1.0, 1.0]), np.array([0, 0, 0, 0, 1]), np.arange(5.0)[:, None] / 5 - 0.4
    first, second = arena_by_style(scores, policies, style, np.arange(5), rounds=2)[0]
    assert second["interval"] == pytest.approx([second["win_rate"]] * 2, abs=1e-6)
    assert first["interval"][1] - first["interval"][0] > 1
    assert np.isfinite(first["question_interval"] + second["question_interval"]).all()


def test_the_newer_code_reads_marks_turned_round():
    turned = [("A<<B", "B<<A"), ("B=A", "B<A"), ("A<B", "A=B")]
    plain = [("B>>A", "A>>B"), ("A=B", "A>B"), ("B>A", "A=B")]
    for own, other in zip(battles(turned, "newer"), battles(plain, "newer"), strict=True):
        assert own.tolist() == other.tolist()
    with pytest.raises(ValueError, match="unknown mark 'A'; known: A>>B"):
        battles([("A", None)])
