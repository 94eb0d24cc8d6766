"""The look at segments of real text: what begins at a place, and how far two models cut at the same places."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from real_segments import KINDS, Common, Cut, agreement, in_common, kind_at, spearman, where_cuts_fall  # noqa: E402

TEXT = "Well, it hums. It does (often)\nand rarely stops!"


@pytest.mark.parametrize(
    "before, kind",
    [
        ("Wel", "inside a word"),
        ("Well", "a mark"),
        ("Well,", "a clause"),
        ("Well, it", "another word"),
        ("Well, it hums.", "a sentence"),
        ("Well, it hums. It does", "a mark"),
        ("Well, it hums. It does (often)", "a line"),
        ("Well, it hums. It does (often)\nand rarely stops", "a mark"),
    ],
)
def test_what_begins_at_a_place_is_the_first_kind_that_holds(before, kind):
    assert TEXT.startswith(before) and KINDS[kind_at(TEXT, len(before))] == kind


def random_common(count: int, seed: int) -> list[Common]:
    rng = np.random.default_rng(seed)
    first = rng.permutation(count).astype(float)
    second = first + rng.normal(0, count / 3, count)
    kinds = rng.integers(len(KINDS), size=count)
    half = count // 2
    return [Common(*(values[part] for values in (first, second, kinds))) for part in (slice(half), slice(half, None))]


@pytest.mark.parametrize("many", [4, 8])
def test_agreement_is_cohens_of_the_places_that_each_cuts(many):
    common = random_common(80, seed=1)
    found = agreement(common, many)
    first, second, kinds = (np.concatenate(column) for column in zip(*common))
    highest = [{*sorted(range(80), key=lambda i, of=of: -of[i])[: 80 // many]} for of in (first, second)]
    table = np.zeros((2, 2))
    for place in range(80):
        table[int(place in highest[0]), int(place in highest[1])] += 1
    observed = np.trace(table) / 80
    expected = sum(table[i].sum() * table[:, i].sum() for i in (0, 1)) / 80**2
    assert found["kappa"] == pytest.approx((observed - expected) / (1 - expected))
    assert found["f1"] == pytest.approx(2 * table[1, 1] / (table[1].sum() + table[:, 1].sum()))
    # Every pair of one's cuts with a place of the same kind, which is cut by the other as often as any of that kind.
    within = np.mean(
        [np.mean([place in highest[1] for place in range(80) if kinds[place] == kinds[cut]]) for cut in highest[0]]
    )
    assert found["within"] == pytest.approx(within)


def test_places_of_both_models_are_those_at_which_tokens_of_both_begin():
    one = Cut(np.array([5, 3, 3]), np.array([1.0, 2.0, 3.0]), np.array([2, 5, 9]))
    other = Cut(np.array([3, 3]), np.array([4.0, 5.0]), np.array([5, 9]))
    common = in_common(one, other)
    assert common.first.tolist() == [2.0, 3.0] and common.second.tolist() == [4.0, 5.0] and common.kinds.tolist() == [3, 3]


def test_shares_of_cuts_count_the_tokens_above_a_threshold():
    cuts = [
        Cut(np.array([0, 3, 5]), np.array([2.0, 1.5, 4.0]), np.arange(3)),
        Cut(np.array([3]), np.array([3.0]), np.arange(1)),
    ]
    at = {row["threshold"]: row for row in where_cuts_fall(cuts)["at"]}
    assert (at[1.75]["cuts"], at[1.75]["tokens a segment"]) == (3, 6 / 5)
    assert at[1.75]["shares"] == pytest.approx([1 / 3, 0, 0, 1 / 3, 0, 1 / 3])


def test_rank_correlation_is_that_of_all_pairs_of_ranks():
    first, second = np.array([3.0, 1.0, 2.0, 5.0]), np.array([1.0, 0.0, 4.0, 9.0])
    ranks = [[sum(other < value for other in of) for value in of] for of in (first, second)]
    squares = sum((one - other) ** 2 for one, other in zip(*ranks))
    assert spearman(first, second) == pytest.approx(1 - 6 * squares / (4 * (16 - 1)))
    assert all(np.isnan(spearman(np.ones(4), values)) for values in (first, second))
