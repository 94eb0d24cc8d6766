"""Parts of pairs by strength, and how members agree, against the published shares and vectors worked by hand."""

import numpy as np
import pytest

from denserl.data.strength_file import strength_of
from denserl.rewards.strength import PARTS, agreement, mean_chance, parts

# Four members, three pairs.
DIFFERENCES = np.array([[1, 0, -2], [2, 0.2, -1], [3, -0.2, -3], [2, 0, -2]])


def test_strength_of_three_pairs_by_four_members():
    found = strength_of(DIFFERENCES, np.zeros((4, 3)))
    assert found.mean == pytest.approx([2, 0, -2], abs=1e-12)
    # Of the members there are: a sample's would be .81649658 for the first.
    assert found.std == pytest.approx([0.70710678, 0.14142136, 0.70710678], abs=1e-8)
    assert found.votes.tolist() == [1, 0.5, 0]
    assert mean_chance(DIFFERENCES) == pytest.approx([0.86130672, 0.5, 0.13869328], abs=1e-8)


def test_members_without_a_say_are_passed_over():
    chosen = np.vstack([DIFFERENCES, [np.nan] * 3])
    for own, whole in zip(strength_of(chosen, np.zeros((5, 3))), strength_of(DIFFERENCES, np.zeros((4, 3)))):
        assert own.tolist() == whole.tolist()
    assert mean_chance(chosen).tolist() == mean_chance(DIFFERENCES).tolist()
    chosen[:, 1] = np.nan
    with pytest.raises(ValueError, match="a pair that no member scores"):
        strength_of(chosen, np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(1, 3\)"):
        strength_of(DIFFERENCES, np.zeros((1, 3)))


def test_parts_are_shares_by_rank():
    means = np.array([-2, -1.1, -0.4, -0.05, 0.1, 0.3, 0.8, 1.2, 2, 3.5])
    order = np.random.default_rng(0).permutation(10)
    of = dict(zip(PARTS, ([-2, -1.1], [-0.4, -0.05], [0.1, 0.3, 0.8, 1.2, 2], [3.5])))
    found = parts(means[order])
    for number, members in enumerate(of.values()):
        assert sorted(means[order][found == number]) == members
    # Whatever their number, each pair has one part; of equal means the first are the lowest.
    assert np.bincount(parts(np.zeros(7)), minlength=4).tolist() == [1, 2, 3, 1] and parts(np.zeros(7))[0] == 0
    assert parts(np.zeros(1)).tolist() == [2]


def test_agreement_counts_pairs_that_two_members_order_alike():
    # All agree on the first and the third pair; on the second, 0 and .2 etc. count half, .2 and -.2 none: (5 x 2.5 + 2) / 18.
    assert agreement(DIFFERENCES) == pytest.approx((5 * 2.5 + 2) / 18)
    assert agreement(DIFFERENCES[:1]) is None
    # Members of different folds have no pair in common.
    nan = np.nan
    assert agreement([[1, nan], [nan, 1]]) is None
    assert agreement([[1, nan, 1], [-1, 1, 1]]) == 0.5
