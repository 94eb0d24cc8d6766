"""The record of responses, and texts as they are scored, against the template's own words."""

import pytest
import tiny_models
import torch
from templates import build_tokenizer

from denserl.data.responses import Encoded, Responses, encode, shortened
from denserl.data.schemas import BadRow

TOKENIZER = tiny_models.tiny_tokenizer()
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
START = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", ["Rain.", "", "A quiet river runs."])
def test_a_text_is_closed_unless_it_was_cut_off(text):
    start, answer = ids(START), ids(text)
    assert encode(TOKENIZER, PROMPT, text, 99) == Encoded(start, [*answer, TOKENIZER.eos_token_id], True)
    # An empty one is closed in any case: there is no other token to read.
    assert encode(TOKENIZER, PROMPT, text, 99, ended=False) == Encoded(start, answer or [TOKENIZER.eos_token_id], False)
    assert encode(TOKENIZER, PROMPT, text, 99, prompt_ids=start) == encode(TOKENIZER, PROMPT, text, 99)


def test_a_long_prompt_loses_its_left_and_a_long_text_its_right():
    start, answer = ids(START), ids("A quiet river runs under the stone bridge.")
    closed = [*answer, TOKENIZER.eos_token_id]
    text = "A quiet river runs under the stone bridge."
    room = len(closed) + 3
    lost = len(start) - 3, len(start) - 1, len(closed) - 5
    assert encode(TOKENIZER, PROMPT, text, room) == Encoded(start[-3:], closed, prompt_cut=lost[0])
    both = Encoded(start[-1:], [*answer[:4], TOKENIZER.eos_token_id], prompt_cut=lost[1], response_cut=lost[2])
    assert encode(TOKENIZER, PROMPT, text, 6) == both
    # Nothing closes one that was cut off, wherever it is cut here.
    found = encode(TOKENIZER, PROMPT, text, 6, ended=False)
    assert found.prompt_ids == start[-1:] and found.response_ids == answer[: len(found.response_ids)]
    assert 4 <= len(found.response_ids) <= 5


def test_cut_rows_are_counted():
    rows = [
        Encoded([1] * 3, [2]),  # short from the start
        Encoded([1] * 15, [2], prompt_cut=1),
        Encoded([1] * 16, [2], prompt_cut=900),
        Encoded([1], [2] * 50, prompt_cut=4, response_cut=7),
    ]
    assert shortened(rows) == {"answers": 4, "prompts": 3, "prompts_almost_gone": 2, "responses": 1}
    assert shortened([]) == {"answers": 0, "prompts": 0, "prompts_almost_gone": 0, "responses": 0}


def test_what_the_template_refuses_is_a_bad_row():
    with pytest.raises(BadRow, match="unknown role"):
        encode(TOKENIZER, [{"role": "tool", "content": "x"}], "y", 99)


def test_a_record_row_by_row_and_padded():
    prompts = [[{"role": "user", "content": text}] for text in "abc"]
    record = Responses(prompts, ["x", "y", "z"], [[4, 5], [6], [4, 5]], [[7], [8, 9, 10], [11, 12]], [True, False, True])
    assert record.rows([2, 0]) == Responses(
        [prompts[2], prompts[0]], ["z", "x"], [[4, 5], [4, 5]], [[11, 12], [7]], [True, True]
    )
    batch = record.padded(0, "cpu")
    assert batch.input_ids.tolist() == [[4, 5, 7, 0], [6, 8, 9, 10], [4, 5, 11, 12]]
    assert batch.response_mask.tolist() == [[True, False, False], [True] * 3, [True, True, False]]
    assert batch.response_start.tolist() == [2, 1, 2] and batch.prompt_row.tolist() == [0, 1, 0]
    assert torch.equal(batch.response_ids[batch.response_mask], torch.tensor([7, 8, 9, 10, 11, 12]))


def test_a_prompt_that_loses_its_left_keeps_its_bos():
    tokenizer = build_tokenizer("llama3")
    whole = encode(tokenizer, PROMPT, "Yes.", 999)
    length = len(whole.prompt_ids) + len(whole.response_ids) - 5
    cut = encode(tokenizer, PROMPT, "Yes.", length)
    assert cut.prompt_ids == [tokenizer.bos_token_id, *whole.prompt_ids[6:]] and cut.response_ids == whole.response_ids
