"""Numbers about numbers, against loops and other libraries."""

import statistics

import numpy as np
import pytest
from inspected_rows import pairwise_quantile
from scipy.stats import binomtest

from denserl.inspection.measures import QUANTILES, clustered_share, histogram, repeats, share, spread, turned_round

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_quantiles_lie_between_neighbours(size):
    values = RNG.integers(0, 50, size)
    found = spread(values)
    assert found["n"] == size and found["mean"] == pytest.approx(statistics.fmean(values.tolist()))
    for name, q in QUANTILES.items():
        assert found[name] == pytest.approx(pairwise_quantile(values.tolist(), q))


def test_what_is_not_known_counts_nowhere():
    assert spread(np.array([1.0, np.nan, 3.0]))["mean"] == 2 and spread(np.array([np.nan])) == {"n": 0}
    assert histogram(np.array([1.0, np.nan, 1.0, 0.5])) == {"values": [0.5, 1.0], "counts": [1, 2]}


def test_many_different_numbers_are_counted_in_bins():
    values = RNG.normal(size=500)
    found = histogram(values)
    assert sum(found["counts"]) == 500 and len(found["edges"]) == len(found["counts"]) + 1
    low, high = found["edges"][3:5]
    assert found["counts"][3] == sum(low <= value < high for value in values.tolist())


def test_a_share_of_rows_that_have_nothing_in_common_has_wilsons_interval():
    true, alone = (RNG.random(60) < 0.3).astype(float), np.arange(60)
    stock = binomtest(int(true.sum()), 60).proportion_ci(method="wilson")
    for found in (clustered_share(true, alone), share(int(true.sum()), 60)):
        assert found["share"] == true.mean() and found["interval"] == pytest.approx([stock.low, stock.high])


def test_rows_that_are_copies_count_as_one():
    """40 rows, each four times: as much is known as of 40."""
    true = (RNG.random(40) < 0.5).astype(float)
    found = clustered_share(np.repeat(true, 4), np.repeat(np.arange(40), 4))
    assert found["interval"] == pytest.approx(clustered_share(true, np.arange(40))["interval"])
    alike = clustered_share(np.ones(8), np.repeat([5, 9], 4))
    assert alike["interval"] == pytest.approx(share(2, 2)["interval"])


def test_an_interval_of_clusters_is_as_wide_as_the_share_varies():
    """Over data drawn anew, in which rows of a cluster are mostly alike."""
    shares, widths = [], []
    for _ in range(300):
        cluster = RNG.random(50)
        true = (RNG.random((50, 6)) < (cluster > 0.5)[:, None] * 0.8 + 0.1).astype(float)
        found = clustered_share(true.ravel(), np.repeat(np.arange(50), 6))
        shares.append(found["share"])
        widths.append(np.diff(found["interval"])[0])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(shares), rel=0.12)


def test_repeats_and_turned_pairs_are_those_of_a_loop():
    keys, first = RNG.integers(0, 15, 40).astype(np.uint64), RNG.random(40) < 0.6
    rows = list(zip(keys.tolist(), first.tolist()))
    assert repeats(keys) == sum(key in [other for other, _ in rows[:i]] for i, (key, _) in enumerate(rows))
    assert turned_round(keys, first) == sum((key, not way) in rows for key, way in rows) > 0
