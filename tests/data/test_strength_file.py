"""The file of preference strengths: what is written is read again, of the very pairs, and what cannot be read is said."""

import gzip
import json

import numpy as np
import pytest

from denserl.data.preferences import load_preferences
from denserl.data.strength_file import MEAN, STD, read_strength, write_strength
from denserl.errors import UserError

CHOSEN = np.array([[1.0, 0.5, -2, 4], [3.0, 0.1, -1, 2]])
REJECTED = np.array([[0.0, 0.5, 0, 1], [1.0, 0.3, 0, np.nan]])


def rows() -> list[dict]:
    talk = "\n\nHuman: Hi\n\nAssistant: Hi\n\nHuman: So?\n\nAssistant: "
    return [
        {"prompt": "One?", "chosen": "Yes\n", "rejected": "No"},
        {"prompt": "Two?", "chosen": "Ünder 2", "rejected": "Over 2"},
        {"system": "Be kind.", "prompt": "Three?", "chosen": "Well", "rejected": "Hm"},
        {"chosen": f"{talk}So", "rejected": f"{talk}No"},
    ]


def load(folder, content: list[dict], name: str = "pairs.jsonl", **how):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return load_preferences([str(folder / name)], **how)


@pytest.fixture
def written(tmp_path):
    """The file of four pairs, and these."""
    pairs = load(tmp_path, rows())
    write_strength(tmp_path / "strength.jsonl", pairs, CHOSEN, REJECTED)
    return tmp_path / "strength.jsonl", pairs


def changed(path, change) -> None:
    content = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(content)))


def test_strengths_are_read_as_they_were_written(written):
    path, pairs = written
    for source in (path, path.parent):  # the file, or its folder
        mean, std, votes = read_strength(source, pairs)
        assert mean == pytest.approx([1.5, -0.1, -1.5, 3]) and std == pytest.approx([0.5, 0.1, 0.5, 0])
        assert votes.tolist() == [1, 0.25, 0, 1]
    one, *_, other = [json.loads(line) for line in path.read_text().splitlines()]
    assert one["chosen score list"] == [1, 3] and other["rejected score list"] == [1]
    # It is data as well.
    again = load_preferences([str(path)])
    assert all(again[name] == pairs[name] for name in ("prompt", "chosen", "rejected"))


def test_some_of_the_rows_are_found(written):
    path, pairs = written
    assert read_strength(path, pairs.select([0, 3])).mean.tolist() == [1.5, 3]
    # Blanks around texts say nothing.
    other = load(path.parent, [{"prompt": " One?", "chosen": "Yes", "rejected": "No  "}], "other.jsonl")
    assert read_strength(path, other).mean.tolist() == [1.5]


def test_published_annotations_are_read(tmp_path):
    turns = [["Hi", "Hi", "So?", "So"], ["Hi", "Hi", "So?", "No"]]
    numbers = {MEAN: -0.5, STD: 0.25, "chosen score list": [1, 2.5], "rejected score list": [1.25, 3.25], "GPT4 label": -1}
    row = dict(zip(("chosen", "rejected"), turns)) | numbers
    with gzip.open(tmp_path / "valid.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    published = str(tmp_path / "valid.jsonl.gz")
    for pairs in (load_preferences([published]), load(tmp_path, rows()[3:])):
        assert [message["role"] for message in pairs[0]["prompt"]] == ["user", "assistant", "user"]
        assert [float(column[0]) for column in read_strength(published, pairs)] == [-0.5, 0.25, 0]


def first(**changed):
    """The rows, with keys of the first one changed, those that are None left out."""
    return lambda rows: [{k: v for k, v in {**rows[0], **changed}.items() if v is not None}, *rows[1:]]


def exchanged(rows: list[dict]) -> list[dict]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows[1:], "no row of the pair at .*pairs.jsonl:1: it is missing"),
        (lambda rows: rows[::-1], "have moved: that of the pair at .*pairs.jsonl:2 is .*strength.jsonl:3, before .*:4"),
        (lambda rows: [rows[0], {**rows[1], "chosen": rows[2]["chosen"], "rejected": rows[2]["rejected"]}], "pairs.jsonl:2"),
        (exchanged, "no row of the pair at .*pairs.jsonl:1"),
        (first(**{MEAN: float("nan")}), "strength.jsonl:1: 'mean preference difference' is nan"),
        (first(**{MEAN: "much"}), "strength.jsonl:1: 'mean preference difference' is 'much'"),
        (first(**{STD: -1}), "'std preference difference' is -1; expected"),
        (first(**{MEAN: None}), "has no 'mean preference difference'"),
        (first(**{"chosen score list": [1]}), "has 1 scores, 'rejected score list' 2"),
        (first(**{"chosen score list": [1, None]}), "no list of finite numbers"),
        (first(**{"chosen score list": None}), "'chosen score list' is no list"),
        (first(rejected=4), "'rejected' is neither text nor"),
        (lambda rows: [[1]], "the row is not an object"),
        (lambda rows: [], "it is empty"),
    ],
)
def test_what_cannot_be_used_is_said(written, change, found):
    path, pairs = written
    changed(path, change)
    with pytest.raises(UserError, match=found):
        read_strength(path, pairs)


def test_bad_rows_of_other_pairs_may_be_skipped(written, caplog):
    path, pairs = written
    changed(path, lambda content: [*content[:3], {**content[3], MEAN: None}])
    assert read_strength(path, pairs.select([0]), on_bad_row="skip").mean.tolist() == [1.5]
    with pytest.raises(UserError, match="no row of the pair at .*pairs.jsonl:4"):
        read_strength(path, pairs, on_bad_row="skip")


def test_scores_that_cannot_be_written_leave_no_file(tmp_path):
    pairs = load(tmp_path, rows())
    for chosen, said in ((CHOSEN[:, :3], "shapes"), (CHOSEN * np.inf, "infinite"), (CHOSEN[:, :1], "shapes")):
        with pytest.raises(ValueError, match=said):
            write_strength(tmp_path / "strength.jsonl", pairs, chosen, REJECTED)
    with pytest.raises(ValueError, match="4 pairs and scores of 3"):
        write_strength(tmp_path / "strength.jsonl", pairs, CHOSEN[:, :3], REJECTED[:, :3])
    assert not list(tmp_path.glob("*strength*"))
