"""Names that columns have in a user's rows."""

import json

import pytest

from denserl.data.columns import Columns, parse_columns
from denserl.data.config import DataConfig
from denserl.data.demonstrations import load_demonstrations
from denserl.data.preferences import load_preferences
from denserl.data.prompts import load_prompts
from denserl.errors import UserError

ROW = {"question": "Q", "response_j": "A", "response_k": "B", "system": "S", "qid": 3}


def written(tmp_path, *rows: dict) -> list[str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "rows.jsonl")]


def test_words_of_the_option():
    assert parse_columns("prompt=question, chosen = response_j,system=") == {
        "prompt": "question",
        "chosen": "response_j",
        "system": "",
    }
    assert parse_columns(None) == parse_columns("") == {}
    for wrong in ("prompt", "=question", "prompt=a,prompt=b", "prompt=a,,"):
        with pytest.raises(UserError, match="write it as prompt=question"):
            DataConfig(data=["x"], columns=wrong).check()


def test_a_row_under_the_names_that_are_read():
    assert Columns({"prompt": "question", "chosen": "response_j", "system": ""})(ROW) == {
        "prompt": "Q",
        "chosen": "A",
        "response_k": "B",
        "qid": 3,
    }
    # Exchanged, taken twice, and left as it is.
    assert Columns({"chosen": "rejected", "rejected": "chosen"})({"chosen": 1, "rejected": 2}) == {"chosen": 2, "rejected": 1}
    assert Columns({"prompt": "a", "system": "a"})({"a": 1}) == {"prompt": 1, "system": 1}
    assert Columns({"prompt": "question"})({"prompt": "Q"}) == {"prompt": "Q"}
    assert Columns({"prompt": "question"})([1]) == [1]


def test_every_loader_takes_them(tmp_path):
    source, columns = (
        written(tmp_path, ROW),
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k", "system": ""},
    )
    asked = [{"role": "user", "content": "Q"}]
    (pair,) = load_preferences(source, columns=columns)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked, "A", "B")
    assert load_prompts(source, columns={"prompt": "question"})["prompt"][:] == [[{"role": "system", "content": "S"}, *asked]]
    (shown,) = load_demonstrations(source, columns={"prompt": "question", "response": "response_k", "system": ""})
    assert (shown["prompt"], shown["response"]) == (asked, "B")


def test_a_name_that_no_row_has_is_one_error(tmp_path):
    source = written(tmp_path, *[ROW] * 3)
    with pytest.raises(UserError) as caught:
        load_preferences(source, columns={"prompt": "Question", "chosen": "response_j", "images": ""})
    keys = "question, response_j, response_k, system, qid"
    assert caught.value.found == f"`columns` names Question, images, which no row has; the rows have {keys}"
    # Rows that are read beside those of `data` may have their columns under the names that are read.
    (plain,) = load_prompts(written(tmp_path, {"prompt": "Q"}), columns={"prompt": "question"}, columns_needed=False)
    assert plain["prompt"][0]["content"] == "Q"
    # One of several sources is enough.
    (tmp_path / "more.jsonl").write_text(json.dumps({"question": "R"}))
    found = load_prompts([*source, str(tmp_path / "more.jsonl")], columns={"prompt": "question"})
    assert sorted(messages[0]["content"] for messages in found["prompt"]) == ["Q", "R"]


def test_a_rating_of_one_side_can_be_left_unread(tmp_path):
    source = written(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B", "chosen_score": 9})
    with pytest.raises(
        UserError, match="the rating 'rejected_score' is not a number.*\n.*unread with `columns` chosen_score=$"
    ):
        load_preferences(source)
    assert load_preferences(source, columns=parse_columns("chosen_score="))["margin"][:] == [0.0]


def test_what_is_not_read_has_no_name(tmp_path):
    with pytest.raises(UserError, match="sets 'question', which is not read"):
        load_prompts(written(tmp_path, {"prompt": "Q"}), columns={"question": "prompt"})
    assert (
        len(
            load_preferences(
                written(tmp_path, {**ROW, "prompt": "Q", "good": 5}),
                columns={"chosen": "response_j", "rejected": "response_k", "helpful": "good"},
                labels=["helpful"],
            )["helpful"]
        )
        == 1
    )
