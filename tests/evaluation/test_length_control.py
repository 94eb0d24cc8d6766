"""Win rates at equal lengths: small sets solved elsewhere, AlpacaEval's numbers of recorded preferences, closed forms."""

import math

import numpy as np
import pytest
from test_win_rate import recorded

from denserl.evaluation.policies.clusters import times_drawn
from denserl.evaluation.policies.length_control import (
    LENGTH_WEIGHT,
    Gamed,
    length_controlled,
    length_controlled_difference,
    length_feature,
    length_remarks,
)
from denserl.evaluation.policies.logistic import logistic

BASELINE = np.array([100, 200, 150, 400, 300, 120, 500, 80, 250, 60])
POLICY = np.array([150, 100, 160, 500, 100, 240, 450, 300, 260, 90])
CREDITS = np.array([0.9, 0.2, 0.5, 0.7, 0.1, 0.8, 0.3, 0.95, 0.6, 0.75])
DIFFICULTY = np.array([0.5, -1, 0, 2, -0.5, 1, -2, 0.3, 0, -0.7])
GAMED = Gamed(
    np.array([1.5, 0.8, 0.3, 2, -1.5, -0.6, -0.2, -1]),
    np.array([0.5, -1, 0, 2, 0.5, -1, 0, 2]),
    np.array([0.2, 0.3, 0.45, 0.1, 0.7, 0.6, 0.55, 0.65]),
)
LENGTH = length_feature(BASELINE, POLICY)
# Of C = 100: coefficients of length, difficulty and policy; win rate; AlpacaEval's standard error.
SOLVED = {
    "minimal": (-2.22431063, None, 0.12072503, 53.01446535, None),
    "noreg": (-2.67371842, -0.28965525, 0.03524950, 51.14949836, 2.48500789),
    "v1": (-2.37619803, -0.19388521, 0.07749526, 52.10978026, 1.68084793),
    "fixed": (-1.1, None, 0.21612369, 55.38215866, None),
}
# Of recorded preferences, made-up difficulties and gamed rows: AlpacaEval's own numbers. Its solver stops earlier, on which the
# choice of the penalty turns.
ORIGINAL = {
    "FuseChat-Llama-3.1-8B-Instruct": {"minimal": 65.0032, "noreg": 65.0053, "v1": 64.9290, "fixed": 65.4502},
    "claude-2.1": {"minimal": 32.4052, "noreg": 32.4313, "v1": 28.4752, "fixed": 24.5477},
}


def controlled(variant: str, **options) -> dict:
    given = {"difficulty": DIFFICULTY, "gamed": GAMED, "resamples": 20, **options}
    return length_controlled(CREDITS, LENGTH, variant, **given)


@pytest.fixture
def weight_of_100(monkeypatch):
    monkeypatch.setattr("denserl.evaluation.policies.length_control.PENALTIES", np.array([100.0]))


def test_lengths_are_measured_in_deviations_that_are_not_centred():
    longer = [a - b for a, b in zip(BASELINE.tolist(), POLICY.tolist())]
    mean = sum(longer) / 10
    spread = math.sqrt(sum((x - mean) ** 2 for x in longer) / 9)
    assert spread == pytest.approx(117.98775831, abs=5e-9)
    assert LENGTH == pytest.approx([math.tanh(x / spread) for x in longer])
    # Differences that do not vary: none, or far from none in their deviations.
    assert length_feature([5, 6], [5, 6]).tolist() == [0, 0] and length_feature([5, 6], [2, 3]).tolist() == [1, 1]
    assert length_feature([3], [9]).tolist() == [-1]


@pytest.mark.parametrize("variant", SOLVED)
def test_small_sets_have_the_solved_coefficients(variant, weight_of_100):
    found = controlled(variant)
    *weights, rate, error = SOLVED[variant]
    for name, value in zip(("length", "difficulty", "policy"), weights, strict=True):
        assert found["weights"][name] == (value if value is None else pytest.approx(value, abs=1e-8))
    assert found["length_controlled_winrate"] == pytest.approx(rate, abs=1e-8)
    assert found["lc_standard_error"] == (error if error is None else pytest.approx(error, abs=1e-8))
    assert found["penalty"] == (None if variant == "fixed" else 100)


def test_a_penalty_that_takes_the_policy_away_leaves_50(monkeypatch):
    monkeypatch.setattr("denserl.evaluation.policies.length_control.PENALTIES", np.array([1.0]))
    found = controlled("minimal")
    assert found["weights"]["policy"] == 0 and found["length_controlled_winrate"] == 50


@pytest.mark.parametrize("name", ORIGINAL)
def test_recorded_preferences_have_the_originals_win_rates(shared_data, name):
    preferences, baseline, policy = recorded(shared_data, name)
    index, length = np.arange(805), length_feature(baseline, policy)
    difficulty = 2 * np.sin(index + 1)
    x, d = np.concatenate([np.cos(index), -1 + np.cos(2 * index) / 2]), np.concatenate([difficulty, difficulty])
    gamed = Gamed(x, d, 1 / (1 + np.exp(1.5 * np.tanh(x) - 0.8 * d)))
    for variant, rate in ORIGINAL[name].items():
        found = length_controlled(np.array(preferences) - 1, length, variant, difficulty, gamed, resamples=10)
        tolerance = 5e-5 if variant == "fixed" else 0.1
        assert found["length_controlled_winrate"] == pytest.approx(rate, abs=tolerance), variant
        assert found["interval"][0] < found["length_controlled_winrate"] < found["interval"][1]
    assert bool(length_remarks(length)) == (name == "claude-2.1")


def test_fixed_solves_its_one_equation(shared_data):
    """The sum of credits is that of chances, found by bisection."""
    preferences, baseline, policy = recorded(shared_data, "claude-2.1")
    credits, length = np.array(preferences) - 1, length_feature(baseline, policy)
    low, high = -9.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = (1 / (1 + np.exp(-LENGTH_WEIGHT * length - middle))).sum()
        low, high = (middle, high) if expected < credits.sum() else (low, middle)
    found = length_controlled(credits, length, resamples=10)
    assert found["length_controlled_winrate"] == pytest.approx(100 / (1 + math.exp(-low)), abs=1e-7)


def test_rows_without_judgement_are_asked_for_but_not_learned_from(weight_of_100):
    credits, more = np.append(CREDITS, np.nan), np.append(LENGTH, 0.9)
    found = length_controlled(credits, more, "noreg", np.append(DIFFICULTY, 4.0), resamples=5)
    alone = controlled("noreg")
    assert found["weights"] == alone["weights"]
    chance = 1 / (1 + math.exp(-(alone["weights"]["difficulty"] * 4 + alone["weights"]["policy"])))
    assert found["length_controlled_winrate"] == pytest.approx((10 * alone["length_controlled_winrate"] + 100 * chance) / 11)
    unjudged = Gamed(*(np.append(part, value) for part, value in zip(GAMED, (0.1, 0.2, np.nan))))
    assert controlled("v1", gamed=unjudged)["weights"] == controlled("v1")["weights"]


def written_out(variant: str, credits, length, difficulty) -> list[tuple[list[float], float, float]]:
    """Rows as they are learned from: features, label and weight."""
    rows = [([math.tanh(x), d, 0.0], y, 0.1) for x, d, y in zip(*GAMED)] if variant == "v1" else []
    rows += [([x, d, 1.0], y, 1.0) for x, d, y in zip(length, difficulty, credits)]
    return [([x, one], y, w) if variant == "minimal" else ([x, d, one], y, w) for (x, d, one), y, w in rows]


def fitted(rows: list, penalty: float) -> np.ndarray:
    features, labels, weights = map(np.array, zip(*rows))
    return logistic(features, labels, penalty * weights, lasso=True)


def chance_of(features: list[float], found: np.ndarray) -> float:
    return 1 / (1 + math.exp(-sum(x * t for x, t in zip(features, found.tolist(), strict=True))))


def made(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Credits, length features and difficulties of n questions."""
    generator = np.random.default_rng(5)
    length, difficulty = np.tanh(generator.normal(0, 1, n)), generator.normal(0, 1, n)
    return 1 / (1 + np.exp(length - 0.7 * difficulty + generator.normal(0.5, 1, n))), length, difficulty


@pytest.mark.parametrize("variant", ["minimal", "noreg", "v1"])
def test_the_penalty_is_that_of_the_least_loss_on_folds(variant, monkeypatch):
    """By a loop over penalties, folds, dealt from the last row on, and rows; on other folds another penalty has the least."""
    penalties = np.logspace(-1, 2, 25)
    monkeypatch.setattr("denserl.evaluation.policies.length_control.PENALTIES", penalties)
    credits, length, difficulty = made(43)
    rows = written_out(variant, credits, length, difficulty)
    folds: list[list[int]] = [[] for _ in range(5)]
    for place, number in enumerate(reversed(range(len(rows)))):
        folds[place % 5].append(number)
    losses = []
    for penalty in penalties:
        of_folds = []
        for fold in folds:
            found = fitted([row for number, row in enumerate(rows) if number not in fold], penalty)
            held = [(chance_of(rows[number][0], found), *rows[number][1:]) for number in fold]
            of_folds.append(sum(-w * (y * math.log(p) + (1 - y) * math.log(1 - p)) for p, y, w in held) / len(held))
        losses.append(sum(of_folds) / 5)
    found = length_controlled(credits, length, variant, difficulty, GAMED, resamples=5)
    assert found["penalty"] == penalties[int(np.argmin(losses))]


@pytest.mark.parametrize("variant", ["minimal", "noreg", "v1"])
def test_bootstraps_fit_anew_on_the_questions_drawn(variant):
    """With the penalty as it is; gamed rows are drawn each once; a row that was not judged is asked for where it is drawn."""
    credits, length, difficulty = made(24)
    credits[5], questions = np.nan, np.arange(24) // 2
    found = length_controlled(credits, length, variant, difficulty, GAMED, questions, resamples=30, seed=3)
    rates = []
    for drawn in times_drawn(questions, 30, 3):
        copies = np.repeat(np.arange(24), drawn)
        judged = copies[~np.isnan(credits[copies])]
        own = fitted(written_out(variant, credits[judged], length[judged], difficulty[judged]), found["penalty"])
        level = [features for features, *_ in written_out(variant, credits[copies], 0 * length[copies], difficulty[copies])]
        rates.append(100 * np.mean([chance_of(features, own) for features in level[-len(copies) :]]))
    assert found["interval"] == pytest.approx(np.quantile(rates, [0.025, 0.975]).tolist(), abs=1e-6)


def test_two_policies_are_compared_on_the_same_draws_of_questions():
    """One has an answer to each question, the other two."""
    credits, length, difficulty = made(36)
    names = [f"q{number}" for number in range(12)]
    sides = []
    for part, copies in ((slice(0, 12), 1), (slice(12, 36), 2)):
        own = {"credits": credits[part], "length": length[part], "difficulty": difficulty[part]}
        sides.append(own | {"questions": np.repeat(names, copies)})
    found = length_controlled_difference(*sides, "minimal", resamples=30, seed=3)
    rates = []
    for own in sides:
        whole = length_controlled(**own, variant="minimal", resamples=2)
        rates.append([whole["length_controlled_winrate"]])
        for drawn in times_drawn(own["questions"], 30, 3):
            rows = np.repeat(np.arange(len(drawn)), drawn)
            learned = written_out("minimal", *(own[column][rows] for column in ("credits", "length", "difficulty")))
            weights = fitted(learned, whole["penalty"])
            rates[-1].append(100 * chance_of(np.array([0.0, 1.0]), weights))
    differences = np.subtract(*rates)
    assert found["value"] == pytest.approx(differences[0], abs=1e-9)
    assert found["interval"] == pytest.approx(np.quantile(differences[1:], [0.025, 0.975]).tolist(), abs=1e-6)
    assert length_controlled_difference(sides[0], sides[0]) == {"value": 0, "interval": [0, 0]}
    with pytest.raises(ValueError, match="different questions"):
        length_controlled_difference(sides[0], sides[1] | {"questions": np.arange(24)})


def test_intervals_draw_questions_with_all_their_rows():
    twice = length_controlled(np.tile(CREDITS, 2), np.tile(LENGTH, 2), questions=np.tile(np.arange(10), 2), resamples=300)
    once = length_controlled(CREDITS, LENGTH, resamples=300)
    assert twice["interval"] == pytest.approx(once["interval"], abs=1e-6)
    # Of the delta method at rows of their own: the logit's standard error, by the score equation's sandwich.
    chance = 1 / (1 + np.exp(-(LENGTH_WEIGHT * LENGTH + once["weights"]["policy"])))
    error = math.sqrt(((CREDITS - chance) ** 2).sum()) / (chance * (1 - chance)).sum()
    rate = once["length_controlled_winrate"] / 100
    width = 100 * 2 * 1.96 * rate * (1 - rate) * error
    assert once["interval"][1] - once["interval"][0] == pytest.approx(width, rel=0.15)


def test_too_few_rows_have_no_number():
    assert set(length_controlled(CREDITS[:4], LENGTH[:4]).values()) == {None}


def test_all_won_is_100():
    assert length_controlled(np.ones(10), LENGTH, resamples=5)["length_controlled_winrate"] == pytest.approx(100, abs=1e-6)


@pytest.mark.parametrize(
    ("variant", "missing"), [("v2", "unknown variant 'v2'"), ("noreg", "noreg needs"), ("v1", "v1 needs the difficulties")]
)
def test_what_a_variant_needs_is_asked_for(variant, missing):
    with pytest.raises(ValueError, match=missing):
        length_controlled(CREDITS, LENGTH, variant)


def test_only_one_sided_lengths_are_remarked_on():
    assert length_remarks(LENGTH) == []
    (line,) = length_remarks(np.array([0.5, 0.2]))
    assert "nearly all shorter" in line and "0.35" in line
    assert "longer" in length_remarks(np.array([-0.5]))[0]
