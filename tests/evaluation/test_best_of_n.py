"""Best-of-n against the values of the specification, and against all subsets of the samples, one by one."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denserl.evaluation.best_of_n import (
    estimators_of_pairs,
    first_n_curve,
    kl,
    mean_over_prompts,
    over_optimisation,
    subsets_of,
    unbiased_curve,
)
from denserl.rewards.ranking import RULES, list_scores

# Spec grm, section 9.
KL = {2: 0.1931, 4: 0.6363, 8: 1.2044, 16: 1.8351, 32: 2.4970, 64: 3.1745, 128: 3.8598, 256: 4.5491}
KL |= {402: 4.9989, 403: 5.0014, 405: 5.0064}
scores = st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10)), min_size=1, max_size=7)


def best(subset) -> float:
    """The gold score of the sample with the highest proxy; of equal ones the first."""
    return max(subset, key=lambda sample: sample[0])[1]


def test_kl_of_the_specification():
    for n, value in KL.items():
        assert kl(n) == pytest.approx(value, abs=5e-5)
    assert kl(1) == 0.0 and isinstance(kl(3), float)
    assert kl(np.array([[1, 2], [4, 8]])).tolist() == [[kl(1), kl(2)], [kl(4), kl(8)]]
    with pytest.raises(ValueError, match="n must be at least 1"):
        kl([2, 0])


def test_kl_is_that_of_the_best_of_uniform_samples():
    """The best of n uniform numbers has density n x^(n - 1); its KL from the uniform density, by the midpoint rule."""
    x = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (2, 5, 30):
        density = n * x ** (n - 1)
        assert kl(n) == pytest.approx(np.mean(density * np.log(np.maximum(density, 1e-300))), abs=1e-4)


def test_curves_of_the_specification():
    proxy, gold = [0.1, 0.5, 0.3, 0.9], [1, 2, 5, 0]
    assert unbiased_curve(proxy, gold).tolist() == pytest.approx([2.0, 1.5, 0.5, 0.0])
    assert first_n_curve(proxy, gold).tolist() == [1, 2, 2, 0]


@given(scores)
def test_the_unbiased_curve_is_the_mean_over_all_subsets(samples):
    proxy, gold = zip(*samples, strict=True)
    found = unbiased_curve(proxy, gold)
    for n in range(1, len(samples) + 1):
        subsets = [best(subset) for subset in itertools.combinations(samples, n)]
        assert found[n - 1] == pytest.approx(math.fsum(subsets) / len(subsets), abs=1e-9)


@given(scores)
def test_the_first_n_curve_takes_the_best_so_far(samples):
    proxy, gold = zip(*samples, strict=True)
    assert first_n_curve(proxy, gold).tolist() == [best(samples[:n]) for n in range(1, len(samples) + 1)]


def test_many_samples_stay_in_range():
    """Uniform places in a known order: the best of n of 405 has the mean place n (N + 1) / (n + 1) of order statistics."""
    count, n = 405, np.arange(1, 406)
    place = np.random.default_rng(0).permutation(count) + 1.0
    np.testing.assert_allclose(unbiased_curve(place, place), n * (count + 1) / (n + 1), rtol=1e-9)
    np.testing.assert_allclose(unbiased_curve(place, np.ones(count)), np.ones(count), rtol=1e-9)


def test_prompts_are_rows():
    rng = np.random.default_rng(1)
    proxy, gold = rng.normal(size=(2, 3, 6))
    for estimator in (unbiased_curve, first_n_curve):
        rows = [estimator(*row) for row in zip(proxy, gold, strict=True)]
        np.testing.assert_allclose(estimator(proxy, gold), rows)


@pytest.mark.parametrize(
    ("proxy", "gold", "message"),
    [([1, 2], [1], "want the same"), ([], [], "N at least 1"), ([[[1]]], [[[1]]], "want"), ([1, math.nan], [1, 2], "finite")],
)
def test_scores_of_no_use_are_refused(proxy, gold, message):
    for estimator in (unbiased_curve, first_n_curve):
        with pytest.raises(ValueError, match=message):
            estimator(proxy, gold)


def test_the_interval_is_students():
    """Three values 1, 2, 6: mean 3, standard deviation sqrt(7), and t of 2 degrees of freedom at 0.975 is 4.302653."""
    found = mean_over_prompts(np.array([[1.0], [2.0], [6.0]]))
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert [float(bound[0]) for bound in found] == pytest.approx([3, 3 - half, 3 + half], rel=1e-6)
    alone = mean_over_prompts(np.array([[1.0, 2.0]]))
    assert alone.mean.tolist() == [1.0, 2.0] and np.isnan(alone.low).all() and np.isnan(alone.high).all()


def test_what_is_reported():
    rng = random.Random(2)
    proxy, gold = (np.array([[rng.random() for _ in range(5)] for _ in range(3)]) for _ in range(2))
    found = over_optimisation(proxy, gold)
    assert json.loads(json.dumps(found)) == found
    assert found["n"] == [1, 2, 3, 4, 5] and found["kl"] == [kl(n) for n in found["n"]]
    by_hand = [[best(list(zip(p, g, strict=True))[:n]) for n in found["n"]] for p, g in zip(proxy, gold, strict=True)]
    assert found["first_n"]["gold"]["mean"] == pytest.approx([sum(of_n) / 3 for of_n in zip(*by_hand, strict=True)])
    gains = [[value - curve[0] for value in curve] for curve in by_hand]
    assert found["first_n"]["gold_gain"]["mean"] == pytest.approx([sum(of_n) / 3 for of_n in zip(*gains, strict=True)])
    assert found["first_n"]["gold_gain"]["low"][0] == found["first_n"]["gold_gain"]["high"][0] == 0
    # All samples in, both estimators have the same best; one sample in, the unbiased one has the mean of all.
    assert found["gold"] == found["unbiased"]["gold"]["mean"]
    assert found["gold"][-1] == pytest.approx(found["first_n"]["gold"]["mean"][-1])
    assert (found["proxy"][0], found["gold"][0]) == pytest.approx((proxy.mean(), gold.mean()))
    assert found["proxy"][-1] == pytest.approx(proxy.max(1).mean())
    assert found["gold_best"] == max(found["gold"]) == found["gold"][found["best_n"] - 1]


def test_bounds_that_are_not_known_are_null():
    found = over_optimisation(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]))
    assert found["unbiased"]["gold"] == {"mean": [0.5, 1.0], "low": [None, None], "high": [None, None]}


def compared(count: int, seed: int) -> np.ndarray:
    """Probabilities that one of `count` samples beats another, in circles and not."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((count, count)), 1)
    return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(count)


@pytest.mark.parametrize("rule", RULES)
def test_compared_samples_are_chosen_by_those_beside_them_alone(rule):
    """Against all subsets, in each of which the best is the one of the highest score among these, the first of equals."""
    count, gold = 5, np.array([[3.0, -1.0, 4.0, 1.5, -5.0], [0.5, 2.0, -3.0, 7.0, 1.0]])
    matrices = np.stack([compared(count, 1), compared(count, 2)])
    estimators = estimators_of_pairs(matrices, rule, np.random.default_rng(0))

    def best_of(prompt: int, subset: tuple) -> float:
        found = list_scores(matrices[prompt][np.ix_(subset, subset)], rule)
        return gold[prompt, subset[int(np.argmax(found))]]

    unbiased = [
        [np.mean([best_of(p, subset) for subset in itertools.combinations(range(count), n)]) for n in range(1, count + 1)]
        for p in range(2)
    ]
    proxy = np.stack([list_scores(each, rule) for each in matrices])
    assert estimators["unbiased"](proxy, gold) == pytest.approx(np.array(unbiased))
    nested = [[best_of(p, tuple(range(n))) for n in range(1, count + 1)] for p in range(2)]
    assert estimators["first_n"](proxy, gold) == pytest.approx(np.array(nested))
    found = over_optimisation(proxy, gold, estimators)
    assert found["gold"] == pytest.approx(np.mean(unbiased, 0)) and found["proxy"][0] == pytest.approx(proxy.mean())


def test_where_comparisons_agree_with_scores_the_curves_are_those_of_scores():
    rng = np.random.default_rng(3)
    worth, gold = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    matrices = 1 / (1 + np.exp(worth[:, None, :] - worth[:, :, None]))
    for rule in ("win_rate", "logit", "wins", "bt"):
        estimators = estimators_of_pairs(matrices, rule, rng)
        assert estimators["unbiased"](worth, gold) == pytest.approx(unbiased_curve(worth, gold))
        assert estimators["first_n"](worth, gold) == pytest.approx(first_n_curve(worth, gold))


def test_many_subsets_are_drawn_and_few_are_all():
    rng = np.random.default_rng(0)
    assert len(subsets_of(8, 2, rng)) == 28 and len(subsets_of(100, 1, rng)) == 100 and len(subsets_of(100, 100, rng)) == 1
    drawn = subsets_of(20, 10, rng)
    assert drawn.shape == (64, 10) and (np.diff(drawn) > 0).all() and len(np.unique(drawn)) == 20
