"""Solutions with labelled steps: every shape of row gives the same records; what is wrong with a row is told by its line."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.step_records import StepReading, as_steps, load_steps, solution_steps, without_markers
from denserl.errors import UserError
from denserl.steps import StepRule

NAN = math.nan
QUESTION = "What is 2 + 3 - 1?"
USER = {"role": "user", "content": QUESTION}
STEPS = ["Step 1: 2 + 3 = 5", "Step 2: 5 - 1 = 3", "Step 3: so it is 3"]


def record(steps=STEPS, labels=(1, 0, 0), final=NAN, answer="", prompt=(USER,)):
    return {"prompt": list(prompt), "steps": list(steps), "labels": list(labels), "final": final, "answer": answer}


def said(records: Iterable[dict]) -> list[dict]:
    """Records that can be compared: with None for NaN, and without their place."""
    return json.loads(json.dumps(list(records)), parse_constant=lambda _: None, object_hook=lambda o: {**o, "place": None})


def turns(*steps, signs="+--"):
    """A conversation as RLHFlow has it, behind a question."""
    first, *others = steps
    pairs = zip([f"{QUESTION} {first}", *others], signs)
    return [
        turn for step, sign in pairs for turn in ({"role": "user", "content": step}, {"role": "assistant", "content": sign})
    ]


def rating(text, number):
    return {"text": text, "rating": number, "flagged": False}


def rated(*steps, finish_reason="found_error", **question):
    """A row of PRM800K, its steps being (completions, the one chosen, what a person wrote)."""
    names = ("completions", "chosen_completion", "human_completion")
    label = {"steps": [dict(zip(names, step)) for step in steps], "total_time": 3, "finish_reason": finish_reason}
    return {"labeler": "x", "question": {"problem": QUESTION, **question}, "label": label}


def written(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


MARKED = f"{QUESTION} {STEPS[0]} ки\n{STEPS[1]} ки\n{STEPS[2]} ки"
SIGNED = f"{QUESTION} {STEPS[0]} +\n{STEPS[1]} -\n{STEPS[2]} -"
CHOSEN = [([rating(STEPS[0], 1)], 0, None), ([rating(STEPS[1], -1)], 0, None), ([rating(STEPS[2], -1)], None, None)]
SHAPES = {
    "record": {"prompt": QUESTION, "steps": STEPS, "labels": [1.0, 0.0, 0.0]},
    "record of messages": {"prompt": [USER], "steps": STEPS, "labels": [True, False, False]},
    "rlhflow": {"conversations": turns(*STEPS)},
    "rlhflow, with a question": {"question": QUESTION, "messages": turns(*STEPS)},
    "trl": {"prompt": QUESTION, "completions": STEPS, "labels": [True, False, False]},
    "one text": {"prompt": QUESTION, "response": "\n\n\n".join(STEPS) + "\n\n", "labels": [1, 0, 0]},
    "one text with markers": {"question": QUESTION, "answer": MARKED.removeprefix(QUESTION), "labels": [1, 0, 0]},
    "math-shepherd": {"input": MARKED, "label": SIGNED, "task": "GSM8K"},
    "placeholders, signs": {"input": MARKED, "labels": ["+", "-", "-"]},
    "placeholders, numbers": {"input": MARKED, "labels": [1.0, 0.0, 0]},
    "prm800k": rated(*CHOSEN),
}  # fmt: skip


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_means_the_same(row):
    before = json.dumps(row)
    assert said(as_steps(row)) == said([record()])
    assert json.dumps(row) == before


OUTCOMES = {
    "outcome": {"question": QUESTION, "answer": "It is 3.", "label": 0},
    "stored answers": {"prompt": QUESTION, "answers": ["It is 3."], "label": [False]},
    "stored answers, other name": {"prompt": QUESTION, "answers": ["It is 3."], "labels": [0]},
    "one text": {"prompt": QUESTION, "completion": "It is 3.", "label": "-"},
    "one text with a marker": {"prompt": QUESTION, "response": "It is 3. ки\n", "label": False},
    "stored answers with a marker": {"prompt": QUESTION, "answers": ["It is 3. ки"], "label": [False]},
    "rlhflow": {"question": QUESTION, "conversations": turns("It is 3.", signs="-")},
    "record": {"prompt": QUESTION, "steps": ["It is 3."], "labels": [0.0], "final": 0},
}


@pytest.mark.parametrize("row", OUTCOMES.values(), ids=OUTCOMES.keys())
def test_an_outcome_is_a_record_of_one_step(row):
    assert said(as_steps(row)) == said([record(["It is 3."], [0.0], final=0.0)])


def test_a_solution_is_cut_by_markers_or_by_the_rule():
    assert solution_steps("a ки\nb\n\nc ки\n ки\nd ки") == solution_steps("a ки\nb\n\nc ки\nd") == ["a", "b\n\nc", "d"]
    assert solution_steps("\n\nи руки\n\n\nc\n \n") == ["и руки", "c"]  # the end of a word is no marker
    assert solution_steps(";a;b;;c;", StepReading(rule=StepRule((";",)))) == ["a", "b", "c"]
    by_pattern = StepReading(rule=StepRule(pattern=r"(?=Step \d+:)"))
    assert solution_steps("Step 1: a Step 10: b", by_pattern) == ["Step 1: a", "Step 10: b"]
    assert len(solution_steps("a\n\n" * 200)) == 200 and solution_steps(" \n\n ки\n") == []
    assert without_markers("a ки\nb ки") == without_markers("a\n\nb") == "a\n\nb" and without_markers("a ки b\n") == "a ки b\n"
    marked = turns("Step 1: a", "b ки", signs="++")
    assert as_steps({"conversations": marked})[0]["steps"] == ["Step 1: a", "b"]


def test_missing_labels_are_unknown():
    row = {"prompt": QUESTION, "steps": STEPS, "labels": [0.75]}
    assert said(as_steps(row)) == said([record(labels=[0.75, NAN, NAN])])
    assert said(as_steps({**row, "labels": [None, 0.25, NAN]})) == said([record(labels=[NAN, 0.25, NAN])])
    assert said(as_steps({**row, "labels": [], "final": True})) == said([record(labels=[NAN] * 3, final=1.0)])
    unsigned = [turn for turn in turns(*STEPS) if turn["content"] != "+"]
    assert said(as_steps({"conversations": unsigned})) == said([record(labels=[NAN, 0, 0])])
    assert said(as_steps({"conversations": turns(*STEPS)[:-1]})) == said([record(labels=[1, 0, NAN])])
    assert said(as_steps({"input": MARKED, "labels": [0.5]})) == said([record(labels=[0.5, NAN, NAN])])
    assert said(as_steps({"input": MARKED + "\nSo 3.", "label": SIGNED + "\nSo 3."})) == said(
        [record([*STEPS, "So 3."], [1, 0, 0, NAN])]
    )


def test_a_marker_inside_the_question_ends_no_step():
    inside = QUESTION.replace(" + 3", " + 3 ки")
    row = {"input": MARKED.replace(QUESTION, inside), "label": SIGNED.replace(QUESTION, inside.replace("ки", "-"))}
    (made,) = as_steps(row)
    assert said([made]) == said([record(prompt=[{"role": "user", "content": "What is 2 + 3  - 1?"}])])
    (made,) = as_steps({"input": row["input"], "labels": ["-", "+", "-", "-"]})
    assert (made["steps"], made["labels"]) == (STEPS, [1, 0, 0])


def test_other_markers_signs_and_first_steps_are_options():
    reading = StepReading(marker="<step>", first_step="First", signs=("good", "bad"))
    text = "How? First so.<step> Then so, from First.<step>"
    expected = {"steps": ["First so.", "Then so, from First."], "labels": [1, 0]}
    signed = text.replace("<step>", "good", 1).replace("<step>", "bad")
    for row in ({"input": text, "label": signed}, {"input": text, "labels": ["good", "bad"]}):
        (made,) = as_steps(row, reading)
        assert made["prompt"][0]["content"] == "How?" and made.items() >= expected.items()


def test_what_stands_around_a_prompt_is_read():
    tools = [{"function": {"name": "add"}}]
    row = {"system": "Be brief.", "tools": tools, "prompt": QUESTION, "steps": ["3"], "labels": [1], "answer": 3}
    (made,) = as_steps(row)
    assert made["prompt"] == [{"role": "system", "content": "Be brief.", "tools": tools}, USER] and made["answer"] == "3"
    system = {"role": "system", "content": "Be brief."}
    (made,) = as_steps({"conversations": [system, *turns(*STEPS)]})
    assert made["prompt"] == [system, USER] and made["steps"] == STEPS


BRANCHES = rated(
    ([rating("a", 1), rating("b", -1), rating("c", 0), rating("d", None)], 0, None),
    ([rating("e", 0)], None, {"text": "f", "rating": None}),
    ([rating("g", 0), rating("h", 1)], 0, None),
    finish_reason="solution",
    ground_truth_answer="3",
)


@pytest.mark.parametrize(
    ("neutral", "expected"),
    [
        ("bad", {"b": [0], "c": [0], "ae": [1, 0], "afh": [1, 1, 1], "afg": [1, 1, 0]}),
        ("good", {"b": [0], "c": [1], "ae": [1, 1], "afh": [1, 1, 1], "afg": [1, 1, 1]}),
        ("drop", {"b": [0], "afh": [1, 1, 1], "afg": [1, 1, None]}),
    ],
)
def test_rated_alternatives_end_a_solution_each(neutral, expected):
    """What a person wrote is good; a rating of 0 is what `neutral` says; what nobody rated is no end of its own."""
    made = said(as_steps(BRANCHES, StepReading(neutral=neutral)))
    assert {"".join(one["steps"]): one["labels"] for one in made} == expected and len(made) == len(expected)
    assert {one["answer"] for one in made} == {"3"}


def test_what_a_person_wrote_beside_a_chosen_completion_ends_a_solution():
    row = rated(([rating("a", 1)], 0, {"text": "h", "rating": None}), ([rating("b", -1)], None, None))
    assert said(as_steps(row)) == said([record(["h"], [1]), record(["a", "b"], [1, 0])])


def test_the_way_to_unrated_ends_is_not_lost():
    row = rated(([rating("a", 1)], 0, None), ([rating("b", None), rating("c", None)], None, None))
    assert said(as_steps(row)) == said([record(["a"], [1])])
    for row, reason in (
        (rated(([rating("a", None)], 0, None)), "none of its steps has a label"),
        (rated(([], None, None)), "none of its steps has a label"),
        (rated(*CHOSEN, finish_reason="bad_problem"), "its rater calls the problem bad"),
    ):
        with pytest.raises(LeftOut, match=reason):
            as_steps(row)


BAD = [
    ({"prompt": QUESTION, "steps": STEPS, "labels": [1] * 4}, "4 labels for 3 steps"),
    ({"prompt": QUESTION, "steps": STEPS, "labels": [1, 1.5]}, r"'labels' holds the label 1.5; expected a number from 0 to 1"),
    ({"prompt": QUESTION, "steps": STEPS, "labels": [1, -1]}, r"'labels' holds the label -1"),
    ({"prompt": QUESTION, "steps": STEPS, "labels": ["?"]}, r"'labels' holds the label '\?'"),
    ({"prompt": QUESTION, "steps": STEPS, "labels": 1}, "'labels' is no list but a number"),
    ({"prompt": QUESTION, "steps": STEPS}, "no label is given"),
    ({"prompt": QUESTION, "steps": STEPS, "labels": [None]}, "no label is given"),
    ({"prompt": QUESTION, "steps": [], "labels": []}, "there are no steps"),
    ({"prompt": QUESTION, "steps": ["a", " \n"], "labels": [1, 1]}, "step 2 is blank"),
    ({"prompt": QUESTION, "steps": ["a", 7], "labels": [1, 1]}, "'steps' holds a number where text is expected"),
    ({"prompt": " ", "steps": ["a"], "labels": [1]}, "the prompt's last turn is empty"),
    ({"steps": ["a"], "labels": [1]}, "no 'prompt' or 'question'; the row has steps, labels"),
    ({"prompt": QUESTION, "text": "a"}, "no 'steps', 'completions', 'answers', .*; the row has prompt, text"),
    ({"prompt": QUESTION, "steps": ["a"], "labels": [1], "image": "x.png"}, "the row has 'image', which is not read"),
    ({"prompt": QUESTION, "steps": ["a"], "labels": [1], "tool_calls": [{}]}, "the row has 'tool_calls', which is not read"),
    ({"prompt": QUESTION, "answers": ["a", "b"], "label": [1]}, "1 labels for 2 answers"),
    ({"prompt": QUESTION, "answers": [], "label": []}, "there are no answers"),
    ({"question": QUESTION, "answer": "a"}, "no label is given"),
    ({"question": QUESTION, "answer": "a", "label": 2}, "'label' holds the label 2"),
    ({"conversations": turns(*STEPS, signs="+o-")}, "'conversations' holds the label 'o'; expected .* or -"),
    ({"conversations": turns(*STEPS)[1:]}, "'conversations' holds a turn of the assistant"),
    ({"conversations": [*turns(*STEPS)[:2], *turns(*STEPS)[1:]]}, "'conversations' holds a turn of the assistant"),
    ({"conversations": [*turns(*STEPS), {"role": "tool", "content": "x"}]}, "'conversations' holds a turn of the tool"),
    ({"conversations": [turns("Step 2: a")[0]]}, "'conversations' begins .*, and nothing in it matches '.Ss.tep 1:'"),
    ({"question": "Who?", "conversations": turns(*STEPS)}, "'conversations' does not begin with the text in 'question'"),
    ({"conversations": [{**turn, "thinking": "r"} for turn in turns(*STEPS)]}, "'conversations' .* with 'thinking'"),
    ({"input": "no marker", "label": "no marker"}, "'input' holds no 'ки'"),
    ({"input": MARKED, "label": SIGNED.replace("= 3", "= 4")}, "the text of labels differs from 'input' behind marker 1"),
    ({"input": MARKED, "label": SIGNED[:-1] + "x"}, "the text of labels has 'x' in the place of marker 3; expected . or -"),
    ({"input": MARKED, "label": SIGNED + " more"}, "the text of labels goes on where 'input' ends"),
    ({"input": MARKED, "labels": [1] * 4}, "4 labels for 3 steps"),
    (rated(([rating("a", 2)], 0, None)), "a rating is 2; expected -1, 0 or 1"),
    (rated(([rating("a", 1)], 1, None)), "'chosen_completion' is 1, and there are 1 completions"),
    (rated(([rating("a", 1)], None, None), *CHOSEN), "step 2 follows one of which no completion is chosen"),
    ([], "the row is not an object but a list"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason[:50] for _, reason in BAD])
def test_bad_rows(row, reason):
    with pytest.raises(BadRow, match=reason):
        as_steps(row)


def test_bad_rows_are_told_by_line(tmp_path):
    path = written(tmp_path / "rows.jsonl", SHAPES["record"], BAD[0][0], BAD[1][0])
    with pytest.raises(UserError, match=rf"(?s)rows\.jsonl:2: {BAD[0][1]}.*rows\.jsonl:3: {BAD[1][1]}"):
        load_steps([str(path)])
    assert said(load_steps([str(path)], on_bad_row="skip")) == said([record()])


def test_all_shapes_in_one_file_are_read_row_by_row(tmp_path, caplog):
    caplog.set_level("INFO")
    path = written(tmp_path / "rows.jsonl", *SHAPES.values(), BRANCHES)
    rows = load_steps([str(path)])
    assert said(rows) == said([record()] * len(SHAPES) + as_steps(BRANCHES))
    assert rows["place"][:] == [f"{path}:{n + 1}" for n in range(len(SHAPES))] + [f"{path}:{len(SHAPES) + 1}"] * 5
    assert (
        f"{path}: {len(SHAPES) + 1} rows read, 0 of them bad; the others make {len(SHAPES) + 5}; not read: label.total_time, "
        in caplog.text
    )
    assert "labeler, task" in caplog.text and "the rating 0 of a step says that it is bad (`neutral`)" in caplog.text
    assert len(load_steps([str(path)], limit=len(SHAPES) + 2)) == len(SHAPES) + 2


@pytest.mark.parametrize("name", ["record", "record of messages", "rlhflow", "trl", "placeholders, numbers", "prm800k"])
def test_typed_columns_give_the_same(tmp_path, name):
    """Lists of booleans and of numbers, and PRM800K's structs, in which nulls stand where another row has a value."""
    others = {"prm800k": [rated(([rating("a", 1)], None, {"text": "b", "rating": None}), ([], None, None))]}
    rows = [SHAPES[name], *others.get(name, [])]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = load_steps([str(tmp_path / "rows.parquet")])
    assert said(found) == said([record(), *(made for row in rows[1:] for made in as_steps(row))])


def test_a_table_of_text_gives_the_same(tmp_path):
    (tmp_path / "o.csv").write_text(f'question,answer,label\n"{QUESTION}","It is 3.",False\n"{QUESTION}","It is 4.",1\n')
    made = [record(["It is 3."], [0], final=0.0), record(["It is 4."], [1], final=1.0)]
    assert said(load_steps([str(tmp_path / "o.csv")])) == said(made)
    path = tmp_path / "s.tsv"
    path.write_text(f'q\tcompletions\tlabels\n"{QUESTION}"\t"[""a"", ""b""]"\t"[true, 0.5]"\n')
    assert said(load_steps([str(path)], columns={"prompt": "q"})) == said([record(["a", "b"], [1, 0.5])])


def test_columns_name_what_steps_are_made_of(tmp_path):
    path = written(tmp_path / "rows.jsonl", {"problem": QUESTION, "solution": "It is 3.", "value": 1})
    names = {"question": "problem", "answer": "solution", "label": "value"}
    assert said(load_steps([str(path)], columns=names)) == said([record(["It is 3."], [1], final=1.0)])
    with pytest.raises(UserError, match="`columns` sets 'chosen', which is not read"):
        load_steps([str(path)], columns={"chosen": "solution"})


def test_the_rows_of_the_page_are_read_alike():
    page = Path(__file__).parents[2] / "docs/step_rows.md"
    shown = re.findall(r"^\| ([^|]+) \| `(\{.*\})` \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    made = {shape: as_steps(json.loads(row)) for shape, row in shown}
    assert [len(records) for records in made.values()] == [1] * 8 + [2]
    *solutions, outcome, stored = made.values()
    assert said(stored[:1]) == said(outcome) == said([record(["It is 3."], [0], final=0.0)])
    for (solution,) in solutions:
        assert [step.removeprefix("Step 1: ") for step in solution["steps"]] == ["2 + 3 = 5", "5 - 1 = 3"]
        assert (solution["prompt"], solution["labels"]) == ([USER], [1, 0])
