"""Rated responses: every shape of row, scales, what is missing or wrong, and the ids."""

import json
import logging
import math
import re
from pathlib import Path

import pytest
from templates import build_tokenizer

from denserl.data.columns import Rating, parse_ratings
from denserl.data.published import ARMO, PUBLISHED, published_ratings
from denserl.data.rated_rows import as_rated, load_ratings, tokenize_ratings
from denserl.data.schemas import BadRow, LeftOut
from denserl.errors import UserError

ASKED = [{"role": "user", "content": "Q"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "A"}]
NAN = math.nan


def rated(row: dict, *words: str) -> list[tuple]:
    return [(found["prompt"], found["response"], found["attributes"]) for found in as_rated(row, parse_ratings(words))]


PLAIN = {
    "prompt and response": {"prompt": "Q", "response": "A", "attributes": {"good": 0.5}},
    "messages": {"messages": ANSWERED, "attributes": {"good": 0.5}},
    "instruction and output": {"instruction": "Q", "output": "A", "good": 0.5},
    "a column of text": {"prompt": "Q", "completion": "A", "good": " 0.5 "},
    "an object in an object": {"prompt": ASKED, "response": ANSWERED[1:], "good": 7, "attributes": {"good": 0.5}},
}


@pytest.mark.parametrize("row", PLAIN.values(), ids=PLAIN)
def test_one_response_with_its_ratings(row):
    assert rated(row, "good") == [(ASKED, "A", [0.5])]


def test_a_rating_may_stand_in_another_column_and_on_another_scale():
    row = {"prompt": "Q", "response": "A", "scores": {"help": {"mean": 4}}, "unsafe": True, "long": -3}
    words = ("good=scores.help.mean:1..5", "safe=unsafe:1..0", "long", "short=long:-5..5", "none")
    ((_, _, (*numbers, missing)),) = rated(row, *words)
    assert numbers == [0.75, 0.0, -3.0, pytest.approx(0.2)] and math.isnan(missing)


@pytest.mark.parametrize("nothing", [None, "", "N/A", "None", NAN])
def test_what_says_nothing_is_no_rating(nothing):
    ((_, _, (good, other)),) = rated(
        {"prompt": "Q", "response": "A", "attributes": {"good": nothing, "other": 1}}, "good", "other"
    )
    assert math.isnan(good) and other == 1
    with pytest.raises(LeftOut, match="no rating is given, of good"):
        rated({"prompt": "Q", "response": "A", "good": nothing}, "good")


@pytest.mark.parametrize(
    ("row", "word", "reason"),
    [
        ({"prompt": "Q", "response": "A", "good": "fine"}, "good", "the rating 'good' is 'fine'; expected a number"),
        ({"prompt": "Q", "response": "A", "good": [1]}, "good", r"the rating 'good' is \[1\]; expected a number"),
        ({"prompt": "Q", "response": "A", "good": 6}, "good:1..5", "the rating 'good' is 6; expected 1 to 5"),
        ({"prompt": "Q", "response": "A", "good": -1}, "good:5..0", "the rating 'good' is -1; expected 0 to 5"),
        ({"prompt": "Q", "response": "", "good": 1}, "good", "'response' is empty"),
        ({"text": "Once.", "good": 1}, "good", "there is no prompt; the row has text, good"),
        ({"good": 1}, "good", "no 'messages', 'response'"),
        ({"completions": ["a"], "instruction": "Q"}, "good", "'completions' is no list of objects"),
        ([1], "good", "the row is not an object but a list"),
    ],
)
def test_bad_rows(row, word, reason):
    with pytest.raises(BadRow, match=reason):
        as_rated(row, parse_ratings([word]))


@pytest.mark.parametrize("word", ["", "=x", "a=", "a:1", "a:1..1", "a=b:x..y", "a b", ":1..2"])
def test_ratings_that_are_written_wrongly(word):
    with pytest.raises(UserError, match="`rating_columns` has"):
        parse_ratings([word])
    with pytest.raises(UserError, match="`rating_columns` has 'a=c'"):
        parse_ratings(["a=b", "a=c"])


def test_how_ratings_are_written():
    assert parse_ratings(["a", "b=c.d:-.5..4.5", "e:1..5"]) == [
        Rating("a"),
        Rating("b", "c.d", (-0.5, 4.5)),
        Rating("e", None, (1, 5)),
    ]


def test_rows_are_loaded_and_made_ids_and_what_is_not_read_is_said(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"question": "Q", "response": "A", "attributes": {"good": 0.5}, "weight": 3},
        {"question": "Q", "response": "B", "attributes": {"long": 0.25}},
        {"question": "Q", "response": "C", "attributes": {}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.INFO):
        found = load_ratings([str(path)], names=["good", "long"], columns={"prompt": "question"})
    assert found["response"][:] == ["A", "B"] and found["place"][:] == [f"{path}:1", f"{path}:2"]
    assert str(found["attributes"][:]) == "[[0.5, nan], [nan, 0.25]]"
    assert "not read: weight" in caplog.text and "1 rows left out: no rating is given, of good, long" in caplog.text
    tokenizer = build_tokenizer("chatml")
    (one, two) = tokenize_ratings(found, tokenizer, max_length=64, max_prompt_length=32)
    assert one["response_ids"] == tokenizer("A<|im_end|>", add_special_tokens=False).input_ids
    assert one["prompt_ids"] == two["prompt_ids"] and two["attributes"][1] == 0.25
    with pytest.raises(UserError, match="no response has the rating god\n.*`rating_columns` NAME=COLUMN"):
        load_ratings([str(path)], names=["good", "god"], columns={"prompt": "question"})
    assert len(load_ratings([str(path)], names=["good", "god"], columns={"prompt": "question"}, columns_needed=False)) == 1


# Rows as the published sets hold them, and the ratings of their responses, scaled.
HELPSTEER = {
    "prompt": "Q", "response": "A", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 0,
}  # fmt: skip
ULTRAFEEDBACK = {
    "source": "flan",
    "instruction": "Q",
    "models": ["m", "n"],
    "completions": [
        {
            "model": "m",
            "principle": "honesty",
            "custom_system_prompt": "Be honest.",
            "response": "A",
            "annotations": {
                "helpfulness": {"Rating": "4", "Rationale": "x", "Type": ["1"]},
                "honesty": {"Rating": "N/A", "Rationale": "x"},
                "instruction_following": {"Rating": "5", "Rationale": "x"},
                "truthfulness": {"Rating": "1", "Rationale": "x"},
            },
            "critique": "Good.",
            "fine-grained_score": 3.25,
            "overall_score": 5.5,
        },
        {"model": "n", "response": "B", "annotations": {"honesty": {"Rating": "3"}}, "overall_score": 10},
    ],
}
CODE = {
    "instruction": "Q",
    "preference": "style",
    "responses": [{"model": "m", "response": "A"}, {"model": "n", "response": "B"}, {"model": "o", "response": "C"}],
    "annotations": [
        {"model": "n", "rating": "2", "rationale": "x"},
        {"model": "m", "rating": "5"},
        {"model": "o", "rating": "N/A"},
    ],
}
CAPYBARA = {
    "source": "set",
    "conversation": [{"input": "Q", "output": "A"}],
    "prompt": "Q",
    "chosen": ANSWERED,
    "rejected": [*ASKED, {"role": "assistant", "content": "B"}],
    "rating_chosen": 5,
    "rating_rejected": 2,
    "chosen_model": "m",
}
ORCA = {
    "system": "Be brief.",
    "input": "Q",
    "chosen": "A",
    "rejected": "B",
    "generations": ["A", "B"],
    "rating": [10.0, 1.0],
    "order": ["chosen", "rejected"],
}
PROMETHEUS = {
    "instruction": "Judge Q, A", "output": "Feedback: fine. [RESULT] 2", "orig_instruction": "Q", "orig_response": "A",
    "orig_score": "2", "orig_criteria": "Is it?", "orig_reference_answer": "R",
}  # fmt: skip
BRIEF = [{"role": "system", "content": "Be brief."}, *ASKED]
SETS = {
    "nvidia/HelpSteer2": (HELPSTEER, [(ASKED, "A", [0.7, 0.9, 0.9, 0.5, 0.1])]),
    "openbmb/UltraFeedback": (
        ULTRAFEEDBACK,
        [(ASKED, "A", [0.5, 1.0, 0.0, NAN, 0.75]), (ASKED, "B", [1.0, NAN, NAN, 0.5, NAN])],
    ),
    "coseal/CodeUltraFeedback": (
        CODE,
        [(ASKED, "A", [NAN, 1.0, NAN, NAN, NAN]), (ASKED, "B", [NAN, 0.25, NAN, NAN, NAN])],
    ),
    "PKU-Alignment/BeaverTails": (
        {"prompt": "Q", "response": "A", "category": {"violence": True, "privacy": False}, "is_safe": False},
        [(ASKED, "A", [0.0])],
    ),
    "prometheus-eval/Feedback-Collection": (PROMETHEUS, [(ASKED, "A", [0.25])]),
    "argilla/distilabel-capybara-dpo-7k-binarized": (CAPYBARA, [(ASKED, "A", [1.0]), (ASKED, "B", [0.25])]),
    "argilla/distilabel-intel-orca-dpo-pairs": (ORCA, [(BRIEF, "A", [1.0]), (BRIEF, "B", [0.0])]),
    "RLHFlow/ArmoRM-Multi-Objective-Data-v0.1": (
        {"messages": ANSWERED, **{rating.name: None for rating in ARMO}, "helpsteer-verbosity": 0.3},
        [(ASKED, "A", [*[NAN] * 4, 0.3, *[NAN] * 14])],
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_rows_of_published_sets(name):
    row, expected = SETS[name]
    found = rated(row, *published_ratings([name]))
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    for (*_, got), (*_, want) in zip(found, expected, strict=True):
        assert got == pytest.approx(want, nan_ok=True)


def test_the_ratings_of_published_sets_are_those_of_armo_in_its_order():
    assert len(ARMO) == 19 and ARMO[4].name == "helpsteer-verbosity"
    together = {rating.name for name, known in PUBLISHED.items() if "ArmoRM" not in name for rating in known.ratings}
    assert together == {rating.name for rating in ARMO}
    assert published_ratings(["nvidia/HelpSteer:x", "nvidia/HelpSteer2", "rows.jsonl", "PKU-Alignment/BeaverTails"]) == [
        *(rating.name for rating in ARMO[:5]),
        "beavertails-is_safe",
    ]


def test_what_is_not_read_of_lists_and_sides_is_said(tmp_path, caplog):
    for row, words, left in [
        (
            ULTRAFEEDBACK,
            ["ultrafeedback-overall_score"],
            "completions[].annotations, completions[].critique, completions[].custom_system_prompt, "
            "completions[].fine-grained_score, completions[].model, completions[].principle, models, source",
        ),
        (CAPYBARA, ["argilla-overall_quality"], "chosen_model, conversation, source"),
        (ORCA, ["argilla-judge_lm"], "chosen, order, rejected"),
    ]:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            load_ratings([str(tmp_path / "rows.jsonl")], names=words)
        assert f"not read: {left}\n" in caplog.text


def test_the_shapes_and_published_sets_of_the_page():
    """Every row that the page shows is read as what it says there, and every set in its table is known under that name."""
    page = (Path(__file__).parents[2] / "docs/preference_models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| `(\{.*\})` \|$", page.partition("### Rated responses")[2].partition("###")[0], re.MULTILINE)
    both = [([{"role": "user", "content": "Why?"}], "Because.", [0.5]), ([{"role": "user", "content": "Why?"}], "No.", [0.0])]
    found = [rated(json.loads(row), "helpfulness") for row in rows]
    assert found == [both[:1]] * 3 + [both] * 3
    sets = re.findall(r"^\| `(.*?/.*?)` \|", page.partition("### Published sets")[2].partition("\n## ")[0], re.MULTILINE)
    assert {*sets} == {name for name, known in PUBLISHED.items() if known.ratings or not known.pairs}
