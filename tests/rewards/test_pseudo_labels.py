"""Chances of pairs, the temperature that makes them true, and which are learned from: by hand, by brute force, by vectors."""

import logging

import numpy as np
import pytest

from denserl.errors import UserError
from denserl.rewards.pair_chances import (
    FLATTEST,
    SHARPEST,
    calibration_error,
    chances_at,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from denserl.rewards.pseudo_labels import balanced, confident, pseudo_labelled, surest

D = np.array([2, -1, 3, 0.5, -0.2, 1.5, -2])
LABELS = np.array([1, 1, 1, 0, 1, 1, 0.0])
CHANCES = np.array([0.93, 0.15, 0.81, 0.80, 0.50, 0.05])


def both_orders(d):
    return np.stack([d, -d], axis=1)


def test_the_temperature_is_the_likeliest():
    found = fit_temperature(D, LABELS)
    assert found == pytest.approx(1.146032, abs=1e-6)
    p = chances_at(found, both_orders(D))
    assert p == pytest.approx([0.85134, 0.29472, 0.93199, 0.60737, 0.45648, 0.78732, 0.14866], abs=1e-5)
    assert negative_log_likelihood(p, LABELS) == pytest.approx(0.51032457, abs=1e-8)
    assert negative_log_likelihood(chances_at(1.0, both_orders(D)), LABELS) == pytest.approx(0.51276203, abs=1e-8)


def test_the_temperature_of_soft_labels_is_that_of_counted_ones():
    """A label of 3/4 is three pairs won and one lost."""
    d, soft = np.array([1.0, -0.5, 2.0]), np.array([0.75, 0.25, 1.0])
    counted = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1.0])
    assert fit_temperature(d, soft) == pytest.approx(fit_temperature(np.repeat(d, 4), counted), rel=1e-9)


def test_a_pair_of_weight_two_is_two_pairs():
    weights, p = np.arange(1, len(D) + 1), chances_at(1.3, both_orders(D))
    twice = [np.repeat(numbers, weights) for numbers in (D, LABELS, p)]
    assert fit_temperature(D, LABELS, weights / 7) == pytest.approx(fit_temperature(*twice[:2]), rel=1e-9)
    assert negative_log_likelihood(p, LABELS, weights / 7) == pytest.approx(negative_log_likelihood(twice[2], twice[1]))
    weighed = reliability(np.maximum(p, 1 - p), LABELS, weights=weights)
    assert calibration_error(weighed) == pytest.approx(
        calibration_error(reliability(np.maximum(twice[2], 1 - twice[2]), twice[1]))
    )


@pytest.mark.parametrize(("labels", "bound"), [(D > 0, SHARPEST), (D < 0, FLATTEST)])
def test_a_temperature_that_has_no_end_stops_at_a_bound(labels, bound, caplog):
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(D, labels) == pytest.approx(bound * np.sqrt((D**2).mean()))
    assert "held-out pairs" in caplog.text


@pytest.mark.parametrize("d", [np.zeros(3), np.zeros(0)])
def test_scores_that_do_not_differ_have_no_temperature(d):
    with pytest.raises(UserError, match="differ"):
        fit_temperature(d, np.ones(len(d)))


def test_sure_pairs_are_kept_and_the_winner_is_the_likelier():
    assert confident(CHANCES, 0.8).tolist() == [True, True, True, False, False, True]
    row = {"prompt": [{"role": "user", "content": "q"}], "first": "one", "second": "two"}
    won = [pseudo_labelled(row, p, "hard")["chosen"] for p in CHANCES[[0, 1, 2, 5]]]
    assert won == ["one", "two", "one", "two"]


def test_a_planted_pair_is_turned_round():
    """Whichever response the data calls chosen: at p = .05 the other one is learned."""
    row = {"prompt": [], "first": "gold", "second": "other"}
    turned = pseudo_labelled(row, 0.05, "soft")
    assert turned == {"prompt": [], "chosen": "other", "rejected": "gold", "p_chosen": 0.95}
    assert pseudo_labelled(row, 0.05, "hard")["p_chosen"] == 1


def test_one_half_is_no_label():
    assert not confident(np.array([0.5, np.nan]), 0.0).any()
    with pytest.raises(ValueError, match="half"):
        pseudo_labelled({"prompt": [], "first": "a", "second": "b"}, 0.5, "hard")


def test_the_surest_share_is_of_each_source():
    p = np.array([0.9, 0.6, 0.2, 0.55, 0.99, 0.5, np.nan, 0.51])
    sources = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    # Of four a half is two; of the three that were judged 1.5, rounded to 2, and one half is never among them.
    assert surest(p, sources, 0.5).tolist() == [True, False, True, False, True, False, False, True]
    assert surest(p, sources, 1.0).tolist() == [True, True, True, True, True, False, False, True]


def test_the_longer_response_wins_as_often_as_the_shorter():
    p = np.array([0.9, 0.95, 0.85, 0.1, 0.99, 0.93, 0.88])
    #    won by: longer longer longer shorter shorter(dropped) equal longer
    longer = np.array([3, 1, 2, 4, -5, 0, 9])
    kept = np.array([True, True, True, True, False, True, True])
    assert balanced(p, kept, longer).tolist() == [False, True, False, True, False, True, False]


def test_calibration_is_that_of_bins_by_hand():
    confidence, right = np.array([0.52, 0.54, 0.91, 0.93, 1.0]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    rows = reliability(confidence, right)
    assert [row["n"] for row in rows] == [2, 2, 1]
    assert calibration_error(rows) == pytest.approx((2 * abs(0.5 - 0.53) + 2 * abs(1 - 0.92) + abs(0 - 1)) / 5)
