"""Tokens of labels: those that stand in a chat, whatever the label is by itself; and labels that are none."""

import pytest
from templates import build_tokenizer, published_tokenizer
from tokenizers import AddedToken

from denserl.data.labels import label_ids, place_labels
from denserl.errors import UserError

# What the templates write around an answer, by hand.
ANSWERS = {
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "mistral": "<s>[INST] Question [/INST] {}</s>",
    "gemma": "<start_of_turn>model\n{}<end_of_turn>",
    "chatml": "<|im_start|>assistant\n{}<|im_end|>",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_they_are_the_tokens_before_the_end_of_turn(name):
    tokenizer = build_tokenizer(name)
    texts = [ANSWERS[name].format(label) for label in "+-"]
    closed = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    at = -2 if name != "chatml" else [*closed[0]].index(tokenizer.convert_tokens_to_ids("<|im_end|>")) - 1
    assert label_ids(tokenizer, ("+", "-")) == tuple(ids[at] for ids in closed)
    assert label_ids(tokenizer, ("-", "+")) == tuple(ids[at] for ids in closed[::-1])


def test_a_token_with_the_space_that_a_template_writes_is_another():
    """As in vocabularies with a token for a space and a sign."""
    tokenizer = published_tokenizer("deepseek_v2")
    alone = tuple(tokenizer.encode(label, add_special_tokens=False)[-1] for label in "+-")
    assert label_ids(tokenizer, ("+", "-")) == alone
    tokenizer.add_tokens([AddedToken(" +", normalized=False), AddedToken(" -", normalized=False)])
    with_space = tuple(tokenizer.convert_tokens_to_ids([" +", " -"]))
    assert label_ids(tokenizer, ("+", "-")) == with_space != alone


def test_thoughts_that_a_template_writes_before_an_answer_are_no_label():
    """Qwen3's template writes an empty thought before the last answer, and none before those in earlier turns."""
    tokenizer = published_tokenizer("qwen3")
    assert label_ids(tokenizer, ("+", "-")) == tuple(tokenizer.convert_tokens_to_ids(["+", "-"]))


def test_there_may_be_three():
    tokenizer = build_tokenizer("llama3")
    assert label_ids(tokenizer, ("A", "B", "C")) == tuple(tokenizer.convert_tokens_to_ids(list("ABC")))


@pytest.mark.parametrize("labels, chosen", [(None, ("A", "B")), (["1", "2", "0"], ("1", "2", "0"))])
def test_labels_of_two_places_and_a_tie(labels, chosen):
    assert place_labels(labels) == chosen


@pytest.mark.parametrize("labels", [["A"], list("ABCD")])
def test_labels_of_two_places_are_two_or_three(labels):
    with pytest.raises(UserError, match=f"{len(labels)} given"):
        place_labels(labels)


@pytest.mark.parametrize(
    "labels, found",
    [
        (("A", "B", "Same"), "answers of one token each that differ are needed"),
        (("A", "B", "A"), "answers of one token each that differ are needed"),
        (("+", "+"), "answers of one token each that differ are needed"),
        (("good", "bad"), "answers of one token each that differ are needed"),
        (("+", "--"), "answers of one token each that differ are needed"),
        (("x+", "x-"), "read '+' and '-'"),
    ],
)
def test_what_is_no_pair_of_tokens_is_refused(labels, found):
    with pytest.raises(UserError) as error:
        label_ids(build_tokenizer("llama3"), labels)
    assert "`labels`" in error.value.found and found in error.value.found


def test_another_token_in_an_earlier_turn_is_refused():
    tokenizer = build_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken(" +", normalized=False), AddedToken(" -", normalized=False)])
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' and not loop.last %}{{ ' ' }}{% endif %}{{ message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(UserError, match="in the last turn, and .* in a turn before it"):
        label_ids(tokenizer, ("+", "-"))
