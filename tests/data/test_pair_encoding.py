"""Two responses in one text: the text as the template's own rendering has it, the same ids in either place, cuts, refusals."""

import pytest
import tiny_models
from templates import PUBLISHED, published_tokenizer

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_prompt, end_of_turn_id
from denserl.data.pair_encoding import LAYOUTS, PairIds, encode_orders
from denserl.errors import UserError

QUESTION = [{"role": "user", "content": "What is old?"}]
TALK = [
    {"role": "user", "content": "What is old?"},
    {"role": "assistant", "content": "The bridge."},
    {"role": "user", "content": "And what hums?"},
]
FIRST, SECOND = "The kettle hums.", "A quiet river [RESPONSE B] runs.\n"


def encode_two(*what, **how) -> PairIds:
    """Of the order that is given."""
    return encode_orders(*what, **how)[0]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_models.tiny_tokenizer()


def whole(ids) -> list[int]:
    return ids.prompt_ids + ids.response_ids


def test_own_layout_closes_every_text_with_the_end_of_turn(tokenizer):
    prompt = [{"role": "system", "content": "Be brief."}, *TALK]
    ids = encode_two(tokenizer, prompt, FIRST, SECOND, max_length=500)
    assert tokenizer.decode(whole(ids)) == (
        "<|im_start|>user\nsystem\nBe brief.<|im_end|>user\nWhat is old?<|im_end|>assistant\nThe bridge."
        "<|im_end|>user\nAnd what hums?<|im_end|>A\nThe kettle hums.<|im_end|>B\n"
        "A quiet river [RESPONSE B] runs.\n<|im_end|>A or B?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids.prompt_ids).endswith("<|im_end|>A\n")


def test_published_layout_is_one_text_with_the_generation_prompt(tokenizer):
    text = (
        "[CONTEXT] \n\n<turn> user\n What is old?\n<turn> assistant\n The bridge.\n<turn> user\n And what hums?\n"
        " [RESPONSE A] The kettle hums. [RESPONSE B] A quiet river [RESPONSE B] runs.\n \n"
    )
    ids = encode_two(tokenizer, TALK, FIRST, SECOND, "rlhflow", max_length=500)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    assert whole(ids) == tokenizer(rendered, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids.prompt_ids).endswith(" [RESPONSE A]")


def test_published_context_is_what_transformers_writes_of_the_published_template(tokenizer):
    template = "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    template += "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
    context = tokenizer.apply_chat_template(TALK, chat_template=template, tokenize=False)
    text = f"[CONTEXT] {context} [RESPONSE A] {FIRST} [RESPONSE B] {SECOND} \n"
    ids = encode_two(tokenizer, TALK, FIRST, SECOND, "rlhflow", max_length=500)
    assert whole(ids) == encode_prompt(tokenizer, [{"role": "user", "content": text}])


@pytest.mark.parametrize("name", ["tiny", *PUBLISHED])
def test_a_response_has_the_same_ids_in_either_place(tokenizer, name):
    tokenizer = tokenizer if name == "tiny" else published_tokenizer(name)
    try:
        end = [end_of_turn_id(tokenizer)]
    except UserError:
        pytest.skip("the template closes no turn")
    one, other = encode_orders(tokenizer, QUESTION, FIRST, "It is <|im_end|> a river. ", max_length=500)
    assert one.prompt_ids == other.prompt_ids
    at, behind = one.response_ids.index(*end) + 1, other.response_ids.index(*end) + 1
    first, second = one.response_ids[:at], other.response_ids[:behind]
    # What one order has behind its first response, the other has with the other one.
    middle = one.response_ids[at : one.response_ids.index(*end, at) + 1][: -len(second)]
    tail = one.response_ids[at + len(middle) + len(second) :]
    assert one.response_ids == [*first, *middle, *second, *tail]
    assert other.response_ids == [*second, *middle, *first, *tail]
    # A control token that was typed is text.
    assert end[0] not in second[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_context_goes_first_and_then_both_responses_are_cut_to_one_length(tokenizer, layout):
    full = encode_two(tokenizer, TALK, FIRST, SECOND, layout, max_length=500)
    length = len(whole(full))
    assert full[2:] == (0, 0)
    less = encode_two(tokenizer, TALK, FIRST, SECOND, layout, max_length=length - 5)
    assert len(whole(less)) == length - 5 and less[2:] == (5, 0)
    context = 0
    while True:  # until no context is left
        ids = encode_two(tokenizer, TALK, FIRST, SECOND, layout, max_length=length - context)
        if ids.response_cut:
            break
        context += 1
    assert ids[2:] == (context - 1, 1)
    one, other = encode_orders(tokenizer, TALK, FIRST, SECOND, layout, max_length=length - context - 20)
    assert one[2:] == other[2:] == (context - 1, 21)
    shown = tokenizer.decode(one.response_ids)
    kept = shown[: shown.index(" [RESPONSE B] " if layout == "rlhflow" else "B\n")].strip()
    assert FIRST.startswith(kept) and len(kept) > 4


def test_a_short_response_leaves_its_room_to_the_long_one(tokenizer):
    one, _ = encode_orders(tokenizer, QUESTION, "No.", "The boats wait there. " * 9, max_length=70)
    assert "No.<|im_end|>" in tokenizer.decode(one.response_ids) and one.response_cut > 0
    assert len(whole(one)) == 70


def test_a_response_that_did_not_end_is_not_closed(tokenizer):
    ids = encode_two(tokenizer, QUESTION, FIRST, SECOND, max_length=500, ended=(False, True))
    assert "hums.B\n" in tokenizer.decode(ids.response_ids)


def test_all_that_messages_hold_is_written(tokenizer):
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}
    prompt = [{"role": "user", "content": "Look.", "tools": [{"name": "look"}]}]
    answer = {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Hm."}
    text = tokenizer.decode(whole(encode_two(tokenizer, prompt, answer, "No.", max_length=500)))
    assert 'Look.\n[TOOLS]\n[{"name": "look"}]<|im_end|>' in text
    made = '[{"type": "function", "function": {"name": "look", "arguments": {"at": "sea"}}}]'
    assert f"A\n[TOOL_CALLS]\n{made}\n[REASONING_CONTENT]\nHm.<|im_end|>" in text


@pytest.mark.parametrize(
    ("prompt", "second", "words"),
    [
        ([{"role": "system", "content": "Be brief."}, *QUESTION], "No.", "turns of user and assistant"),
        (QUESTION, " ", "no empty messages"),
        (QUESTION, {"role": "assistant", "content": "No.", "tool_calls": [{}]}, "no place for 'tool_calls'"),
    ],
)
def test_published_layout_refuses_what_it_cannot_write(tokenizer, prompt, second, words):
    with pytest.raises(BadRow, match=words):
        encode_two(tokenizer, prompt, FIRST, second, "rlhflow", max_length=500)


def test_no_room_for_two_responses(tokenizer):
    with pytest.raises(BadRow, match="`max_length` 12 leaves no room for two responses"):
        encode_two(tokenizer, QUESTION, FIRST, SECOND, max_length=12)


def test_a_template_that_changes_a_turn_is_refused():
    changed = tiny_models.tiny_tokenizer()
    changed.chat_template = changed.chat_template.replace("message['content']", "message['content'] | upper")
    with pytest.raises(BadRow, match="does not write a user's turn as it is given"):
        encode_two(changed, QUESTION, FIRST, SECOND, max_length=500)
