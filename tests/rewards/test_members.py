"""What a folder of several reward models tells of them, and which of them have not seen a pair."""

import json
from collections import Counter

import numpy as np
import pytest

from denserl.data.folds import folds_of
from denserl.errors import UserError
from denserl.rewards.members import MEMBERS_FILE, read_members

PROMPTS = [[{"role": "user", "content": f"Tell me about boat {i % 300}."}] for i in range(900)]


def test_pairs_of_one_prompt_are_in_one_fold_whatever_stands_beside_them():
    found = folds_of(PROMPTS, 5, seed=3)
    assert (found[:300] == found[300:600]).all() and {*found} == {0, 1, 2, 3, 4}
    assert (folds_of(PROMPTS[7:11], 5, seed=3) == found[7:11]).all()
    assert (folds_of(PROMPTS, 5, seed=4) != found).any()
    # Of 300 prompts 60 are expected in each, with a deviation of 6.9.
    assert all(abs(many / 3 - 60) < 30 for many in Counter(found).values())
    # The order in which a message's keys stand is nothing that it says.
    turned = [[{"content": "Boats", "role": "user"}]]
    assert folds_of(turned, 2**31, 0) == folds_of([[{"role": "user", "content": "Boats"}]], 2**31, 0)


def written(folder, **changes):
    members = [{"seed": 42 + k, "left_out": k % 3, "eval_accuracy": 0.5} for k in range(6)]
    told = {"settings": {}, "asked": 6, "folds": 3, "fold_seed": 42, "members": members} | changes
    (folder / MEMBERS_FILE).write_text(json.dumps(told))
    return folder


def test_each_pair_is_scored_by_those_that_have_not_seen_it(tmp_path):
    found = read_members(written(tmp_path))
    assert [path.name for path in found.folders] == [f"member-{k}" for k in range(6)]
    may = found.may_score(PROMPTS)
    fold = folds_of(PROMPTS, 3, seed=42)
    assert [list(np.flatnonzero(column)) for column in may.T] == [[k, k + 3] for k in fold]
    told = [{"seed": k, "left_out": None} for k in range(6)]
    assert read_members(written(tmp_path, folds=None, members=told)).may_score(PROMPTS).all()


def test_a_folder_without_members_has_none(tmp_path):
    assert read_members(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"asked": 7}, "6 of 7 members are trained"),
        ({"folds": None}, "does not go with folds None"),
        ({"folds": 2}, "does not go with folds 2"),
        ({"members": [{"left_out": 0}]}, r"members.0.seed: Field required"),
        ({"fold_seed": "x"}, "fold_seed"),
    ],
)
def test_what_is_no_such_file_is_refused(changes, found, tmp_path):
    with pytest.raises(UserError, match=found):
        read_members(written(tmp_path, **changes))
    (tmp_path / MEMBERS_FILE).write_text("{")
    with pytest.raises(UserError, match="Invalid JSON"):
        read_members(tmp_path)
