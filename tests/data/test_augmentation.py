"""Pairs that are made across prompts: which there are, of whom, and when there are none."""

import collections
import itertools

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denserl.data.augmentation import augment_pairs, draw_share, group_numbers, is_unknown, partners
from denserl.data.features import MESSAGES, NUMBER, RESPONSE, TEXT, build_dataset
from denserl.errors import UserError

WITH_REASONS = {"role": "assistant", "reasoning_content": "so"}
TEXTS = {"prompt": MESSAGES, "chosen": RESPONSE, "rejected": RESPONSE, "place": TEXT}


def pairs(n, group=None, **columns):
    """n pairs of prompts 0 .. n - 1, whose responses say whose they are. columns: values in the place of these, or beside."""
    own = {
        "prompt": [[{"role": "user", "content": f"prompt {i}"}] for i in range(n)],
        "chosen": [f"w {i}" for i in range(n)],
        "rejected": [WITH_REASONS | {"content": f"l {i}"} if i % 2 else f"l {i}" for i in range(n)],
        "margin": [2.0] * n,
        "p_chosen": [0.9] * n,
        "weight": [1.0 + i for i in range(n)],
        "place": [f"file:{i}" for i in range(n)],
        **({"group": list(map(group, range(n)))} if group else {}),
        **columns,
    }
    texts = {**TEXTS, "group": TEXT}
    features = datasets.Features({name: texts.get(name, NUMBER) for name in own})
    return build_dataset([dict(zip(own, row)) for row in zip(*own.values(), strict=True)], features)


def number(response):
    """(w or l, whose) of a response of `pairs`."""
    side, of = (response["content"] if isinstance(response, dict) else response).split()
    return side, int(of)


def test_every_pair_is_there_once_but_the_original():
    n = 12
    rows = list(augment_pairs(pairs(n), seed=3))
    assert len(rows) == 14 * n
    by_prompt = collections.defaultdict(list)
    for row in rows:
        by_prompt[int(row["prompt"][0]["content"].split()[1])].append(row)
    for i in range(n):
        own = by_prompt[i]
        sides = [(number(row["chosen"]), number(row["rejected"])) for row in own]
        others = {of for pair in sides for _, of in pair} - {i}
        # Three examples, whose six responses make 15 pairs, and the original is not among them.
        assert len(others) == 2
        six = list(itertools.product("wl", (i, *others)))
        expected = {frozenset(pair) for pair in itertools.combinations(six, 2)} - {frozenset({("w", i), ("l", i)})}
        assert collections.Counter(map(frozenset, sides)) == collections.Counter(expected)
        decisive = [row["p_chosen"] == 1 for row in own]
        assert decisive.count(True) == 8 and [row["p_chosen"] for row in own].count(0.5) == 6
        for is_decisive, (chosen, rejected) in zip(decisive, sides, strict=True):
            assert rejected[1] != i and (chosen[1] == i) == is_decisive
        assert all(row["weight"] == 1.0 + i and row["margin"] == 0 for row in own)
        assert all(row["place"].startswith(f"file:{i} beside file:") for row in own)


def test_the_seed_says_which_partners():
    found = [list(augment_pairs(pairs(9), seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_messages_stay_whole():
    rows = augment_pairs(pairs(5), seed=0)
    for row in rows:
        for side in ("chosen", "rejected"):
            which, of = number(row[side])
            assert isinstance(row[side], dict) == (which == "l" and of % 2 == 1)
            assert not isinstance(row[side], dict) or row[side]["reasoning_content"] == "so"


def test_without_neutral_rows():
    assert set(augment_pairs(pairs(6), neutrals=False)["p_chosen"]) == {1.0}
    assert len(augment_pairs(pairs(6), neutrals=False)) == 8 * 6


@pytest.mark.parametrize("ratio", [0.5, 0.2, 0.05, 3 / 14])
def test_a_share_of_each_example(ratio):
    n = 300
    rows = augment_pairs(pairs(n), ratio=ratio, seed=1)
    counts = collections.Counter(row["weight"] for row in rows)
    wanted = 14 * ratio
    assert all(abs(counts[1.0 + i] - wanted) < 1 for i in range(n))
    assert abs(len(rows) - n * wanted) < 4 * (n * 0.25) ** 0.5
    # Of all kinds alike: 6 of 14 neutral.
    neutral = list(rows["p_chosen"]).count(0.5)
    assert abs(neutral / len(rows) - 6 / 14) < 4 * (6 / 14 * 8 / 14 / len(rows)) ** 0.5


def test_whole_numbers_are_exact():
    for share in (0, 3 / 14, 1 / 2, 1):
        assert (draw_share(50, 14, share, np.random.default_rng(0)).sum(1) == round(share * 14)).all()


def test_equal_responses_meet_in_no_row():
    """All losers say the same: of each example's 15 pairs of six responses, the 3 of two losers are gone."""
    data = pairs(6, rejected=["I cannot say.", " I cannot say.\n"] * 3)
    rows = list(augment_pairs(data))
    assert len(rows) == 6 * (14 - 3)
    assert all(row["chosen"] != row["rejected"] for row in rows)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_partners_are_of_three_groups_and_each_row_is_taken_once(data):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=8))
    rest = sum(sizes) - max(sizes)
    sizes[sizes.index(max(sizes))] = min(max(sizes), rest // 2)
    groups = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    # 3 m <= n is m <= (n - m) / 2.
    groups = np.unique(groups, return_inverse=True)[1]
    if 3 * np.bincount(groups).max() > len(groups):
        return
    found = partners(groups, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert all(len({groups[i], groups[j], groups[k]}) == 3 for i, (j, k) in enumerate(found))
    assert all(sorted(column) == list(range(len(groups))) for column in found.T)


def test_every_allowed_partner_is_as_likely():
    """Of 5 groups of 300: as many j, and k, from each of the other four, and from all over a group."""
    groups = np.repeat(np.arange(5), 300)
    found = partners(groups, np.random.default_rng(5))
    for column in found.T:
        counts = np.zeros((5, 5))
        np.add.at(counts, (groups, groups[column]), 1)
        assert (np.diag(counts) == 0).all()
        assert np.abs(counts[~np.eye(5, dtype=bool)] - 75).max() < 4.5 * 75**0.5
        places = np.sort(column[:300] % 300)
        # As evenly spread as numbers drawn at random (Kolmogorov-Smirnov, at 1 in 10 000).
        assert np.abs((places + 0.5) / 300 - (np.arange(300) + 0.5) / 300).max() < 2.2 / 300**0.5


def test_groups_by_prompt_or_by_column():
    assert group_numbers(pairs(4)).tolist() == [0, 1, 2, 3]
    assert group_numbers(pairs(4, group=lambda i: "ab"[i % 2])).tolist() == [0, 1, 0, 1]


def test_a_column_keeps_groups_apart():
    group = {i: i % 4 for i in range(20)}
    rows = augment_pairs(pairs(20, group=lambda i: f"group {group[i]}"), seed=2)
    for row in rows:
        i = int(row["prompt"][0]["content"].split()[1])
        foreign = {group[of] for _, of in (number(row["chosen"]), number(row["rejected"])) if of != i}
        assert group[i] not in foreign and row["group"] == f"group {group[i]}"


@pytest.mark.parametrize(
    ("n", "group", "found"),
    [
        (2, None, "the 2 pairs are of 2 groups; each needs partners of two others"),
        (9, lambda i: "ab"[i % 2], "the 9 pairs are of 2 groups"),
        (
            11,
            lambda i: str(max(i - 3, 0)),
            "the 11 pairs are of 8 groups, of which that of file:0 has 4; with more than a third",
        ),
    ],
)
def test_what_is_impossible(n, group, found):
    with pytest.raises(UserError, match=found) as told:
        augment_pairs(pairs(n, group))
    assert "`augment_group`" in told.value.fix
    if n == 11:
        augment_pairs(pairs(12, group))


def test_numbers_of_one_pair_are_not_made_up_for_others():
    data = pairs(5, confidence=[1.0] * 5)
    with pytest.raises(UserError, match="reads confidence, which augmented rows do not have"):
        augment_pairs(data)


def test_what_a_model_does_not_know_is_kept():
    """The vector of the paper's rule at 0.2."""
    chances, labels = np.array([0.95, 0.60, 0.30, 0.52, 0.75, 0.31]), np.array([1, 1, 1, 0.5, 0.5, 0.5])
    assert is_unknown(chances, labels, 0.2).tolist() == [False, True, True, False, True, False]
