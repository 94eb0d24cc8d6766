"""What strengths come to in a summary, and accuracy by strength, on scores worked by hand."""

import re

import numpy as np
import pytest

from denserl.evaluation.items import Answer, Item, Judged
from denserl.evaluation.results import format_summary, summarise
from denserl.evaluation.strength import by_strength, strength_lines, strength_summary
from denserl.evaluation.suites.registry import SUITES
from denserl.rewards.voting import Voter, Votes

# Two members, of which the second has no say of the last pair.
CHOSEN = np.array([[-2, -1.1, -0.4, -0.05, 0.1, 0.3, 0.8, 1.2, 2, 3.5]] * 2) + np.array([[0.5], [-0.5]])
CHOSEN[:, -1] = 3.5, np.nan


def votes() -> Votes:
    voters = [Voter(name, ~np.isnan(row)) for name, row in zip("ab", CHOSEN)]
    return Votes(CHOSEN, np.where(np.isnan(CHOSEN), np.nan, 0.0), voters, [2.0, 4.0], [True, False], 3.0)


def test_the_summary_of_pairs():
    strength, found = strength_summary(votes())
    assert strength.mean == pytest.approx([-2, -1.1, -0.4, -0.05, 0.1, 0.3, 0.8, 1.2, 2, 3.5])
    assert found["pairs"] == 10 and found["members"] == 2 and found["members_per_pair"] == 1.9
    assert found["below_zero"] == 0.4 and found["quantiles"]["0.5"] == pytest.approx(0.2)
    # The members differ by 1, so that those between -.5 and .5 are told otherwise by the two: -.4, -.05, .1, .3.
    assert found["agreement"] == pytest.approx(5 / 9)
    assert [part["n"] for part in found["parts"].values()] == [2, 2, 5, 1]
    assert found["parts"]["incorrect"]["mean"] == pytest.approx(-1.55) and found["parts"]["ambiguous"]["votes"] == 0.5
    assert found["parts"]["strong"]["std"] == 0 and found["parts"]["normal"]["std"] == pytest.approx(0.5)
    assert [row["mean"] for row in found["deciles"]] == pytest.approx(sorted(strength.mean))
    assert [(each["pairs"], each["accuracy"]) for each in found["each"]] == [(10, 0.8), (9, pytest.approx(3 / 9))]
    said = "\n".join(strength_lines(found))
    assert "10 pairs by 2 members (1.9 a pair), two of them agree on 55.6%" in said and "below 0 in 40.0%" in said
    few = votes()
    few = few._replace(chosen=few.chosen[:, :3], rejected=few.rejected[:, :3])
    assert [row["n"] for row in strength_summary(few)[1]["deciles"]] == [1, 1, 1]


def judged(place: str, right: bool) -> Judged:
    turns = [{"role": "user", "content": place}]
    item = Item(place, "all", [Answer(turns, "a")], [Answer(turns, "bb")], place)
    return Judged(item, np.array([float(right)]), np.array([0.5]))


def test_accuracy_by_strength():
    means = {f"d:{number}": float(mean) for number, mean in enumerate([3, -1, 2, -3, 0, 1, -2, 4, 5, 6])}
    entries = [judged(place, means[place] > -0.5) for place in means]
    found = summarise(SUITES["pairs"]._replace(strength=means), entries, 50, 0)
    groups = {name: (group["n"], group["accuracy"]) for name, group in found["groups"].items()}
    # -3 -2 | -1 0 | 1 ... 5 | 6
    assert groups["strength incorrect"] == (2, 0) and groups["strength ambiguous"] == (2, 0.5)
    assert groups["strength normal"] == (5, 1) and groups["strength strong"] == (1, 1)
    assert [groups[f"strength decile {n}"] for n in range(1, 11)] == [(1, 0)] * 3 + [(1, 1)] * 7
    assert re.search(r"\n  strength ambiguous +0.5000 +n 2 +\[0.0000, 1.0000\]", format_summary(found))
    assert not summarise(SUITES["pairs"], entries, 50, 0)["groups"]


def test_parts_are_of_all_pairs_where_some_are_not_judged():
    means = {"d:0": 3.0, "d:1": 1.0, "d:2": 2.0, "d:3": 0.0, "d:4": 4.0}
    found = by_strength(means, ["d:0", "d:3"])
    assert found["strength incorrect"] == [1] and found["strength normal"] == [0] and "strength ambiguous" not in found
