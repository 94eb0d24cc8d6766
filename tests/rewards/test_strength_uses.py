"""What pairs of known strength are learned as, to the losses of worked examples; parts by rank and by sign."""

import math

import numpy as np
import pytest
import torch

from denserl.errors import UserError
from denserl.rewards.objectives import BradleyTerry, Groups
from denserl.rewards.strength_uses import check_part, in_part, learned_as

# Of three pairs: differences of the scores that are trained, and mean differences of those that measured strength.
D, MU = np.array([2.0, -1.0, 0.3]), np.array([1.5, -0.8, 0.05])
VOTES = np.array([1.0, 0.2, 0.5])


def mean_loss(use=None, smoothing=0.0, **how) -> float:
    """By the objective that trains: the mean over the pairs as they are learned."""
    learned = learned_as(use, MU, VOTES, **how)
    first, second = D / 2, -D / 2
    scores = np.where(learned.turned, [second, first], [first, second]).T
    labels = {"margin": learned.margin, "p_chosen": learned.p_chosen}
    labels = {name: torch.from_numpy(values) for name, values in labels.items() if values is not None}
    groups = Groups(torch.from_numpy(scores), torch.ones(3, dtype=torch.bool), labels, torch.ones(3, 2), None, None)
    losses, _ = BradleyTerry(use_margin="margin" in labels, label_smoothing=smoothing)(groups)
    return losses.mean().item()


@pytest.mark.parametrize(
    ("use", "how", "expected"),
    [
        (None, {}, 0.66484831),
        (None, {"smoothing": 0.1}, 0.70818165),
        ("margin", {}, 0.61605176),
        ("flip", {"low": "negative"}, 0.33151498),
        ("flip_margin", {"low": "negative"}, 0.54938509),
        ("soft_margin", {"low": "negative"}, 0.60938509),
        ("sigmoid", {}, 0.60522410),
        ("margin", {"scale": 0.5, "clip": 0.5}, 0.60132397),
    ],
)
def test_losses_are_those_of_the_worked_examples(use, how, expected):
    assert mean_loss(use, **how) == pytest.approx(expected, abs=1e-8)


def test_a_share_of_votes_is_a_soft_label_and_a_part_by_rank_is_turned_like_one_by_sign():
    def s(x):
        return -math.log1p(math.exp(-x))

    by_hand = -np.mean([p * s(d) + (1 - p) * s(-d) for d, p in zip(D, VOTES)])
    assert mean_loss("votes") == pytest.approx(by_hand, abs=1e-12)
    assert mean_loss("flip", low="0.34") == mean_loss("flip", low="negative") == mean_loss("flip", low="0-0.34")
    soft = -np.mean([s(2.0), 0.9 * s(-1.0) + 0.1 * s(1.0), s(0.3)])
    assert mean_loss("soft", low="negative") == pytest.approx(soft, abs=1e-12)
    more = -np.mean([s(2.0), 0.7 * s(-1.0) + 0.3 * s(1.0), s(0.3)])
    found = learned_as("soft", MU, VOTES, "negative", smoothing=0.3)
    assert found.p_chosen.tolist() == [1.0, 0.7, 1.0] and not found.turned.any() and found.margin is None
    assert -np.mean([p * s(d) + (1 - p) * s(-d) for d, p in zip(D, found.p_chosen)]) == pytest.approx(more, abs=1e-12)


TEN = np.array([-2, -1.1, -0.4, -0.05, 0.1, 0.3, 0.8, 1.2, 2, 3.5])[[3, 9, 0, 5, 7, 1, 2, 8, 4, 6]]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("incorrect", [-2, -1.1]),
        ("0.2", [-2, -1.1]),
        ("ambiguous", [-0.4, -0.05]),
        ("normal", [0.1, 0.3, 0.8, 1.2, 2]),
        ("strong", [3.5]),
        ("0.9-1", [3.5]),
        ("0.1-0.2", [-1.1]),
        ("negative", [-2, -1.1, -0.4, -0.05]),
        ("positive", [0.1, 0.3, 0.8, 1.2, 2, 3.5]),
        ("1", sorted(TEN)),
        ("0.01", []),
    ],
)
def test_parts_are_of_the_mean_whatever_the_order_and_leave_out_what_is_not_known(part, expected):
    assert sorted(TEN[in_part(TEN, part)]) == expected
    some = np.insert(TEN, [0, 4, 10], np.nan)
    assert sorted(some[in_part(some, part)]) == expected


def test_no_difference_is_positive_and_equal_ones_are_parted_in_their_order():
    assert in_part(np.zeros(3), "positive").all()
    assert in_part(np.array([0.0, 0, 0, 0]), "0.5").tolist() == [True, True, False, False]


@pytest.mark.parametrize("part", ["0", "0.2-0.2", "0.4-0.2", "1.1", "-0.2", "0.1-", "weak", "", "nan", "0.1-nan", "0.2,0.3"])
def test_what_is_no_part_is_refused(part):
    with pytest.raises(UserError, match="`strength_keep` .*is no part of the pairs; there are negative, positive, incorrect"):
        check_part("strength_keep", part)
