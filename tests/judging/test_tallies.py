"""What a judge's verdicts say of the judge, counted by hand."""

import pytest

from denserl.judging.contract import Judgement
from denserl.judging.tallies import majority, tally


@pytest.mark.parametrize(
    "votes, expected",
    [
        (["first"], "first"),
        (["second", "first", "second"], "second"),
        (["first", "second"], "tie"),
        (["tie", "tie", "first"], "tie"),
        (["tie", "first", "first"], "first"),
        (["first", "tie", "first", "tie", "second"], "tie"),
        (["tie"], "tie"),
        (["cut", "invalid"], None),
        (["cut", "second", "invalid"], "second"),
        ([], None),
    ],
)
def test_the_majority_is_of_valid_votes(votes, expected):
    assert majority(votes) == expected


def test_verdicts_are_counted():
    found = tally(
        [
            Judgement(1.0, (("first",), ("first",))),  # consistent; shown first in one of two
            Judgement(0.5, (("first",), ("second",))),  # follows the place: both times the one shown first
            Judgement(0.5, (("tie",), ("tie",))),  # consistent
            Judgement(0.0, (("second",), ("cut",))),  # one order only; not the one shown first
            Judgement(None, (("invalid",), ("invalid",))),
        ]
    )
    assert found == {
        "comparisons": 5, "undecided": 1, "verdicts": 10, "invalid": 2, "cut": 1, "ties": 2,
        "position_consistency": 2 / 3, "first_share": (0.5 + 0.5 + 0.5 + 0) / 4,
        "first_share_of_verdicts": 3 / 5, "agreement": None,
    }  # fmt: skip


def test_what_one_order_decides_has_a_place():
    shown_first, shown_second = Judgement(1.0, (("first",), ("invalid",))), Judgement(1.0, (("cut",), ("first",)))
    tie, nothing = Judgement(0.5, (("tie",), ())), Judgement(None, ((), ("invalid",)))
    found = tally([shown_first, shown_first, shown_second, tie, nothing])
    assert found["first_share"] == (1 + 1 + 0 + 0.5) / 4 and found["first_share_of_verdicts"] == 2 / 3


def test_agreement_is_of_the_first_two_valid_votes_in_an_order():
    found = tally(
        [
            Judgement(1.0, (("first", "first"), ("first", "invalid", "first"))),  # twice the same
            Judgement(0.5, (("first", "second", "first"), ("second", "first", "second"))),  # twice not
            Judgement(1.0, (("first", "invalid", "invalid"), ())),  # nothing can be told
        ]
    )
    assert found["agreement"] == 0.5
    # Where one order alone was asked there is nothing to be consistent with.
    assert found["position_consistency"] == 0.5 and found["verdicts"] == 14 and found["invalid"] == 3


def test_a_judge_without_verdicts_has_none_to_count():
    found = tally([Judgement(0.7), Judgement(0.2)])
    assert found["verdicts"] == 0 and found["first_share"] is None and found["position_consistency"] is None
