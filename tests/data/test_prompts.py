"""Every row shape that holds a prompt, and the tokenised prompts."""

import functools
import json

import pytest
from templates import build_tokenizer

from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.data.schemas import BadRow, as_prompt
from denserl.errors import UserError

tokenizer_of = functools.lru_cache(build_tokenizer)
USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q"},
        {"prompt": [USER], "chosen": "a", "rejected": "a"},
        {"messages": [USER]},
        {"messages": [USER, ANSWER]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"chosen": [USER, ANSWER]},
    ],
)
def test_every_shape_gives_the_prompt(row):
    assert as_prompt(row) == {"prompt": [USER]}


def test_an_instruction_takes_its_input_along():
    assert as_prompt({"instruction": "Sum up.", "input": "Text."})["prompt"][0]["content"] == "Sum up.\n\nText."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "Q"}, "no 'prompt', 'messages', 'instruction' or 'chosen'"),
        ({"messages": [ANSWER]}, "there is no prompt"),
        ({"prompt": [USER, ANSWER, ANSWER]}, "the prompt does not end with a user turn"),
        ({"instruction": "Q", "input": 5}, "'input' holds a number where text is expected"),
    ],
)
def test_bad_rows(tmp_path, row, reason):
    with pytest.raises(BadRow) as caught:
        as_prompt(row)
    assert reason in str(caught.value)
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError) as stopped:
        load_prompts([str(path)])
    assert f"{path}:1: {caught.value}" in str(stopped.value)


def test_a_long_prompt_loses_tokens_on_its_left(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "Q" * 50}) + "\n" + json.dumps({"prompt": "Q"}))
    prompts, tokenizer = load_prompts([str(path)]), tokenizer_of("chatml")
    long, short = tokenize_prompts(prompts, tokenizer, max_prompt_length=25)
    whole = tokenizer("<|im_start|>user\n" + "Q" * 50 + "<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert long == {"prompt": [{"role": "user", "content": "Q" * 50}], "prompt_ids": whole[-25:]}
    assert short["prompt_ids"] == tokenizer("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n").input_ids
    with pytest.raises(UserError, match="at least 1"):
        tokenize_prompts(prompts, tokenizer, max_prompt_length=0)


def test_sources_blend_by_weight(tmp_path):
    for name, count in (("a", 20), ("b", 40)):
        rows = "\n".join(json.dumps({"prompt": f"{name}{n}"}) for n in range(count))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    drawn = [messages[0]["content"][0] for messages in load_prompts(sources, weights=[1, 4], seed=3)["prompt"]]
    assert (drawn.count("a"), drawn.count("b")) == (10, 40)  # 40 rows are 4/5 of 50


@pytest.mark.parametrize(
    ("source", "good"),
    [("prompts", 500), ("hh-harmless", 1993), ("ultrafeedback-1k", 1000), ("dpo-demo", 300)],
)
def test_real_files(shared_data, source, good):
    prompts = load_prompts([str(shared_data / source)], on_bad_row="skip")
    assert len(prompts) == good
    rows = tokenize_prompts(prompts.select(range(50)), tokenizer_of("llama3"), max_prompt_length=128)
    assert all(0 < len(ids) <= 128 for ids in rows["prompt_ids"])


def test_a_prompt_that_loses_its_left_keeps_its_bos(tmp_path):
    path, tokenizer = tmp_path / "p.jsonl", tokenizer_of("llama3")
    path.write_text(json.dumps({"prompt": "Hello there, what is it?"}))
    whole, cut = (
        tokenize_prompts(load_prompts([str(path)]), tokenizer, max_prompt_length=length)["prompt_ids"][0] for length in (99, 8)
    )
    assert len(whole) > 8 and cut == [tokenizer.bos_token_id, *whole[-7:]]


def test_a_column_may_say_the_right_answer(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "1 + 1", "answer": "two"}, {"prompt": "1 + 2", "answer": 3}, {"prompt": "2 + 2", "answer": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts([str(path)], label="answer", limit=2)
    assert prompts["label"][:] == ["two", "3"]
    assert tokenize_prompts(prompts, tokenizer_of("chatml"), max_prompt_length=99)["label"][:] == ["two", "3"]
    assert "label" not in load_prompts([str(path)]).column_names
    with pytest.raises(UserError, match="'answer', which is to say the right answer, is None"):
        load_prompts([str(path)], label="answer")
