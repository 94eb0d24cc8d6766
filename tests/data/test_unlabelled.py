"""Unlabelled pairs: the same whatever their rows call chosen, and what those withhold, read apart."""

import json

import numpy as np
import pytest

from denserl.data.unlabelled import load_unlabelled, load_withheld
from denserl.errors import UserError

PAIRS = [
    {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", "score_chosen": 2.0, "score_rejected": 1.0}
    for i in range(12)
]


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def flipped(row):
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"], "score_chosen": 1.0, "score_rejected": 7.0}


def test_what_a_row_calls_chosen_changes_nothing(write):
    rows = load_unlabelled([write("a.jsonl", PAIRS)], seed=3)
    other = load_unlabelled([write("b.jsonl", map(flipped, PAIRS))], seed=3)
    columns = ["prompt", "first", "second", "source"]
    assert rows.column_names == [*columns, "place"]
    assert rows.select_columns(columns).to_list() == other.select_columns(columns).to_list()
    first_is_chosen = [row["first"].startswith("good") for row in rows]
    assert 0 < sum(first_is_chosen) < len(PAIRS)
    # Which comes first is the seed's to say.
    assert first_is_chosen != [row["first"].startswith("good") for row in load_unlabelled([write("a.jsonl", PAIRS)], seed=4)]


def test_two_responses_without_a_label_are_a_pair_too(write):
    row = {"prompt": "q", "responses": ["one", "two"]}
    (pair,) = load_unlabelled([write("a.jsonl", [row])])
    assert {pair["first"], pair["second"]} == {"one", "two"}
    assert pair["prompt"] == [{"role": "user", "content": "q"}]
    withheld = load_withheld([write("a.jsonl", [row])])
    assert np.isnan(withheld.labels).tolist() == [True]
    assert withheld.turned.tolist() == [pair["first"] == "two"]


def test_withheld_labels_are_those_of_the_order_that_is_read(write):
    soft = [{**row, "p_chosen": 0.7} for row in PAIRS]
    sources = [write("hard.jsonl", PAIRS), write("soft.jsonl", soft)]
    rows, withheld = load_unlabelled(sources, seed=1), load_withheld(sources, seed=1)
    assert rows["source"] == [0] * 12 + [1] * 12
    expected = [float(row["first"].startswith("good")) for row in rows]
    assert withheld.turned.tolist() == [not first for first in expected]
    assert withheld.labels[:12].tolist() == expected[:12]
    assert withheld.labels[12:] == pytest.approx([0.7 if first else 0.3 for first in expected[12:]])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "responses": ["one"]}, "no list of two"),
        ({"prompt": "q", "responses": "one"}, "no list of two"),
        ({"prompt": "q", "responses": ["one", "one"]}, "identical"),
        ({"prompt": "q", "responses": ["one", "two"], "chosen": "one"}, "beside 'chosen'"),
        ({"responses": ["one", "two"]}, "no prompt"),
    ],
)
def test_rows_that_are_no_two_responses_are_refused(row, reason, write):
    with pytest.raises(UserError, match=reason):
        load_unlabelled([write("a.jsonl", [row])])
