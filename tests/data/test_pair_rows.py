"""Preferences that rows hold otherwise than as chosen and rejected."""

import json

import jinja2
import pytest

from denserl.data.preferences import load_preferences
from denserl.data.prompts import load_prompts
from denserl.data.schemas import BadRow, LeftOut, as_demonstration, as_preference, as_prompt
from denserl.errors import UserError

TURNS = [
    {"role": "user", "content": "Two\n\nlines?\n"},
    {"role": "assistant", "content": " Yes: <turn> user\n"},
    {"role": "user", "content": "Why?"},
]
# Flat contexts are written by a template of these line breaks.
TEMPLATE = "\n{% for turn in turns %}{% if true %}\n\n<turn> {{ turn.role }}\n {{ turn.content }}{% endif %}{% endfor %}\n\n\n"
# As transformers runs templates, and as one would that keeps all line breaks.
ENGINES = {"trimmed": {"trim_blocks": True, "lstrip_blocks": True}, "whole": {"keep_trailing_newline": True}}


def one_text(engine: str = "trimmed", first: str = "good", second: str = "bad", label: str = "A", turns=TURNS) -> dict:
    context = jinja2.Environment(**ENGINES[engine]).from_string(TEMPLATE).render(turns=turns)
    text = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("turns", [TURNS, TURNS[:1]], ids=["three turns", "one turn"])
def test_both_responses_in_one_text(engine, turns):
    expected = {"prompt": turns, "chosen": "good", "rejected": " bad\n ", "margin": 0.0, "p_chosen": 1.0, "weight": 2.0}
    assert as_preference({**one_text(engine, "good", " bad\n ", "A", turns), "weight": 2}) == expected
    row = one_text(engine, " bad\n ", "good", "B", turns)
    assert as_preference({**row, "weight": 2}) == expected
    assert as_prompt(row) == {"prompt": turns}
    # What a language model is trained on is the text itself.
    assert as_demonstration(row)["response"] == "B"


@pytest.mark.parametrize("tag", ["[RESPONSE A]", "[RESPONSE B]", "[CONTEXT]"])
def test_a_tag_inside_a_response_or_the_context_parts_nothing_in_silence(tag):
    for row in (
        one_text(first=f"good {tag} more"),
        one_text(second=f"bad{tag}"),
        one_text(turns=[{"role": "user", "content": f"What is {tag} ?"}]),
    ):
        with pytest.raises(BadRow, match=r"holds \[.*\] more than once: where they part is not certain"):
            as_preference(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (one_text(label="C"), "the answer to both responses is 'C' of the assistant; expected A or B"),
        (one_text(label="A "), "is 'A ' of the assistant"),
        (one_text(turns=TURNS[:2]), "the context of both responses is not of turns"),
        (one_text(turns=TURNS[1:]), "the context of both responses is not of turns of user and assistant by turns"),
        (one_text(second="good"), "chosen and rejected are identical"),
        (one_text(first=" "), "is empty"),
    ],
)
def test_texts_of_two_responses_that_are_bad_rows(row, reason):
    with pytest.raises(BadRow, match=reason):
        as_preference(row)
    unclosed = one_text()
    unclosed["messages"][0]["content"] = unclosed["messages"][0]["content"].rstrip()
    with pytest.raises(BadRow, match="not joined by single spaces and closed by a space and a line break"):
        as_preference(unclosed)


def test_texts_of_two_responses_are_loaded_and_counted(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    rows = [one_text(), one_text(first="x [RESPONSE B] y"), {**one_text(label="B"), "id": 3}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=f"{path}:2: the text of both responses holds"):
        load_preferences([str(path)])
    with caplog.at_level("INFO"):
        found = load_preferences([str(path)], on_bad_row="skip")
    assert found["chosen"][:] == ["good", "bad"] and "not read: id" in caplog.text
    assert len(load_prompts([str(path)], on_bad_row="skip")) == 2


def test_a_conversation_about_tags_is_none_of_both_responses():
    plain = {"messages": [{"role": "user", "content": "[CONTEXT] is a tag"}, {"role": "assistant", "content": "A"}]}
    assert as_prompt(plain) == {"prompt": plain["messages"][:1]}
    with pytest.raises(BadRow, match="'chosen' is missing or null"):
        as_preference(plain)


STRENGTH = {"prompt": "Q", "response_1": "one", "response_2": "two"}


@pytest.mark.parametrize(("strength", "chosen", "margin"), [(-3, "one", 3.0), ("1", "two", 1.0)])
def test_a_strength_between_two_responses(strength, chosen, margin):
    row = as_preference({**STRENGTH, "preference_strength": strength, "preference_statement": "Better."})
    assert (row["chosen"], row["margin"]) == (chosen, margin) and row["rejected"] != chosen


def test_strengths_that_prefer_neither_or_are_none():
    even = {**STRENGTH, "preference_strength": 0}
    with pytest.raises(LeftOut, match="neither response is preferred"):
        as_preference(even)
    assert as_prompt(even)["prompt"][0]["content"] == "Q"
    with pytest.raises(BadRow, match="'preference_strength' is 'much'; expected a number"):
        as_preference({**STRENGTH, "preference_strength": "much"})


def test_turns_that_lines_open():
    text = "One?\n<extra_id_1>Assistant\nYes.\n\n<extra_id_1>User\nTwo?"
    turns = [("user", "One?"), ("assistant", "Yes.\n"), ("user", "Two?")]
    row = as_preference({"prompt": text, "chosen": "a", "rejected": "b"})
    assert [(turn["role"], turn["content"]) for turn in row["prompt"]] == turns
    with pytest.raises(BadRow, match="'prompt' has turns marked <extra_id_1> that are not"):
        as_preference({"prompt": "One?\n<extra_id_1>User\nTwo?", "chosen": "a", "rejected": "b"})
