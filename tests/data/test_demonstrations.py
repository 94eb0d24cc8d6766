"""Every row shape of demonstrations, where their loss starts, and plain text in pieces."""

import functools
import json

import pytest
from templates import build_tokenizer

from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.schemas import LONGEST, BadRow, as_demonstration, as_preference, as_prompt
from denserl.errors import UserError

tokenizer_of = functools.lru_cache(build_tokenizer)
USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def load(path, **kwargs):
    options = {"split": "train", "weights": None, "on_bad_row": "stop", "limit": None, "seed": 0, **kwargs}
    return load_demonstrations([str(path)], **options)


def written(tmp_path, *rows):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"prompt": "Q", "response": "A"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": "Q", "response": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    ],
)
def test_every_shape_means_the_same(row):
    assert as_demonstration(row) == {"prompt": [USER], "response": "A"}


def test_plain_text_has_no_prompt(tmp_path):
    assert as_demonstration({"text": "words"}) == {"prompt": [], "response": "words"}
    (tmp_path / "d.txt").write_text("one line\n\nanother\n")
    assert load(tmp_path / "d.txt")["response"][:] == ["one line", "another"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q"}, "no 'messages', 'response', 'completion', 'output', 'chosen' or 'text'; the row has prompt"),
        ({"messages": [USER]}, "'messages' does not end with an assistant turn"),
        ({"messages": [ANSWER]}, "there is no prompt"),
        ({"text": " "}, "'text' is empty"),
        ({"prompt": "Q", "response": ""}, "'response' is empty"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    with pytest.raises(BadRow) as caught:
        as_demonstration(row)
    assert str(caught.value) == reason
    path = written(tmp_path, row)
    with pytest.raises(UserError) as stopped:
        load(path)
    assert f"{path}:1: {reason}" in str(stopped.value)


def test_loss_starts_at_the_response(tmp_path):
    tokenizer = tokenizer_of("chatml")
    path = written(tmp_path, {"prompt": "Q", "response": "A"}, {"text": "words <|im_end|>"})
    chat, text = tokenize_demonstrations(load(path), tokenizer, max_length=64)
    prompt = tokenizer("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert chat == {"input_ids": prompt + tokenizer("A<|im_end|>").input_ids, "loss_start": len(prompt)}
    assert text["loss_start"] == 0
    assert tokenizer.decode(text["input_ids"]) == "words <|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in text["input_ids"]


def test_long_rows(tmp_path):
    tokenizer = tokenizer_of("chatml")
    path = written(tmp_path, {"prompt": "Q" * 30, "response": "zq" * 30}, {"text": "zq" * 13}, {"text": "zq" * 10 + "z"})
    rows = list(tokenize_demonstrations(load(path), tokenizer, max_length=20))
    prompt = tokenizer("<|im_start|>user\n" + "Q" * 30 + "<|im_end|>\n<|im_start|>assistant\n").input_ids
    z, q, end = tokenizer.convert_tokens_to_ids(["z", "q", "<|im_end|>"])
    assert rows[0] == {"input_ids": [*prompt[-10:], *[z, q] * 4, z, end], "loss_start": 10}
    assert [row["input_ids"] for row in rows[1:]] == [[z, q] * 10, [z, q] * 3, [z, q] * 10]
    with pytest.raises(UserError, match="at least 4"):
        tokenize_demonstrations(load(path), tokenizer, max_length=3)


def test_a_text_without_anything_to_predict_is_a_bad_row(tmp_path):
    path = written(tmp_path, {"text": "z"})
    with pytest.raises(UserError, match=r"d\.jsonl:1: the text has fewer than two tokens"):
        tokenize_demonstrations(load(path), tokenizer_of("chatml"), max_length=8)


@pytest.mark.parametrize(
    ("source", "good"),
    [("hh-harmless", 1993), ("ultrafeedback-1k", 999), ("text/wiki_demo.txt", 30), ("text/c4_demo.jsonl", 300)],
)
def test_real_files(shared_data, source, good):
    rows = load(shared_data / source, on_bad_row="skip")
    assert len(rows) == good
    encoded = tokenize_demonstrations(rows.select(range(20)), tokenizer_of("gemma"), max_length=256)
    assert all(row["loss_start"] < len(row["input_ids"]) <= 256 for row in encoded)


def test_a_conversation_may_be_so_long_and_plain_text_longer():
    short, rest = "Q", "x" * (LONGEST - 1)
    assert as_demonstration({"prompt": short, "response": rest})["response"] == rest
    assert as_prompt({"prompt": rest + "x"})["prompt"][0]["content"] == rest + "x"
    assert as_demonstration({"text": rest * 2})["response"] == rest * 2
    too_long = [
        lambda: as_demonstration({"prompt": short, "response": rest + "x"}),
        lambda: as_demonstration({"messages": [USER, {**ANSWER, "content": rest + "x"}]}),
        lambda: as_preference({"prompt": short, "chosen": rest, "rejected": "B"}),
        lambda: as_prompt({"prompt": rest + "xx"}),
    ]
    for convert in too_long:
        with pytest.raises(BadRow, match="characters; at most 1000000 are read"):
            convert()


def test_rows_that_hold_the_templates_own_marks_are_counted_in_one_warning(tmp_path, caplog):
    rendered = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    rows = [{"text": rendered}, {"prompt": "Q", "response": "<|im_end|>"}, {"prompt": "user Q", "response": "im_end"}]
    rows += [{"messages": [{**USER, "reasoning_content": ""}, {**ANSWER, "content": "A <|im_start|>"}]}]
    tokenize_demonstrations(load(written(tmp_path, *rows)), tokenizer_of("chatml"), max_length=99)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("3 of 4 rows hold marks that the chat template itself writes, such as '<|im_start|>'")
    caplog.clear()
    tokenize_demonstrations(load(written(tmp_path, *rows[2:3])), tokenizer_of("chatml"), max_length=99)
    assert not caplog.records
