"""Responses of a policy: from the file that bon writes, and from rows with a list; which prompts have too few."""

import json

import pytest
import tiny_models

from denserl.data.policy_samples import load_samples, tokenize_samples
from denserl.data.responses import encode
from denserl.errors import UserError
from denserl.evaluation.samples import Sample, SampleFile
from denserl.models.tokenizers import load_tokenizer


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(tiny_models.save_language_model(tmp_path_factory.mktemp("lm") / "lm")))


@pytest.fixture
def files(tmp_path):
    """Two samples of each of two prompts, as bon writes them, and a row with three more of one of these."""
    sampled = SampleFile(tmp_path / "samples.jsonl", {})
    said = [(0, "old boat", True), (0, "", True), (1, "rain falls", False), (1, "stone", True)]
    sampled.append([Sample(i, k % 2, messages(f"Prompt {i}"), text, end, [1], [2]) for k, (i, text, end) in enumerate(said)])
    row = {"prompt": "Prompt 1", "responses": ["one", {"role": "assistant", "content": "two"}, "three"]}
    (tmp_path / "lists.jsonl").write_text(json.dumps(row) + "\n")
    return [str(tmp_path / "samples.jsonl"), str(tmp_path / "lists.jsonl")]


def test_rows_of_a_prompt_are_found_together(files, tokenizer):
    rows = tokenize_samples(load_samples(files), tokenizer, many=2, max_length=64)
    assert sorted(rows["group"]) == rows["group"] and sorted(map(rows["group"].count, {*rows["group"]})) == [2, 5]
    texts = [("Prompt 0", "old boat", True), ("Prompt 0", "", True), ("Prompt 1", "rain falls", False)]
    texts += [("Prompt 1", text, True) for text in ("stone", "one", "two", "three")]
    # As they are scored: cut off where they were.
    wanted = [encode(tokenizer, messages(prompt), text, 64, ended) for prompt, text, ended in texts]
    found = {(*row["prompt_ids"], -1, *row["response_ids"]) for row in rows}
    assert found == {(*one.prompt_ids, -1, *one.response_ids) for one in wanted}


def test_a_prompt_with_too_few_responses_is_a_bad_row(files, tokenizer):
    rows = load_samples(files)
    with pytest.raises(UserError, match=r"its prompt has 2 responses, of which 3 are to be compared") as error:
        tokenize_samples(rows, tokenizer, many=3, max_length=64)
    assert "meta_samples" in str(error.value)
    kept = tokenize_samples(rows, tokenizer, many=3, max_length=64, on_bad_row="skip")
    assert len(kept) == 5 and len({*kept["group"]}) == 1


@pytest.mark.parametrize(
    "row, found",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "there is no 'response' or 'responses'"),
        ({"prompt": "a", "response": "b", "responses": ["b", "c"]}, "both 'response' and 'responses'"),
        ({"prompt": "a", "responses": "b"}, "'responses' is no list"),
        ({"prompt": "a", "responses": ["b", None]}, "'response' holds"),
        ({"prompt": "a", "response": "b", "ended": "yes"}, "'ended' is 'yes'"),
        ({"prompt": "a", "responses": [{"role": "user", "content": "b"}]}, "a message of the user"),
        ({"response": "b"}, "no 'prompt'"),
        ([1], "there is no 'response'"),
    ],
)
def test_rows_that_are_none(row, found, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=found):
        load_samples([str(tmp_path / "rows.jsonl")])
