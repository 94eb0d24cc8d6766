"""Files of AlpacaEval, Arena-Hard, MT-Bench and own prompts: rows as the originals publish them, read and written again."""

import json
from pathlib import Path

import pytest

from denserl.errors import UserError
from denserl.evaluation.policies import alpacaeval, arenahard, mtbench
from denserl.evaluation.policies.answers import Answers, PolicyAnswer, Question, gaps
from denserl.evaluation.policies.files import (
    MANIFEST,
    read_annotations,
    read_answers,
    read_grades,
    read_judgments,
    read_questions,
    read_votes,
    write_answers,
    write_rows,
)
from denserl.evaluation.policies.markup import Counts, count_marks

MARKED = (
    "# One\n##Two\n## Three **b** __c__\n  1. x\n- y\n* z\n10. w\n```\n# code\n- code **d**\n```\n####### seven\n**not\nbold**"
)
COUNTS = Counts(
    7,
    {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
    {"ordered": 2, "unordered": 2},
    {"**": 1, "__": 1},
)
METADATA = {"token_len": 7, "header_count": COUNTS.headers, "list_count": COUNTS.lists, "bold_count": COUNTS.bold}
ALPACA = {"dataset": "koala", "instruction": "Say hi", "output": "Hi", "generator": "m"}
NEWER = {
    "uid": "a1",
    "ans_id": "x",
    "model": "m",
    "messages": [{"role": "user", "content": "Sort it."}, {"role": "assistant", "content": {"answer": MARKED}}],
    "tstamp": 1.5,
    "metadata": METADATA,
}
OLDER = {
    "question_id": "a1",
    "answer_id": "x",
    "model_id": "m",
    "choices": [{"index": 0, "turns": [{"content": MARKED}]}],
    "tstamp": 1.5,
    "conv_metadata": METADATA,
}
TURNS = {
    "question_id": 81,
    "answer_id": "x",
    "model_id": "m",
    "choices": [{"index": 0, "turns": ["Aloha", "And bye"]}],
    "tstamp": 1.5,
}
OWN = {"id": 3, "messages": [{"role": "user", "content": "Hm?"}], "response": "Well.", "sample": 0, "truncated": True}
ASKED = {
    "alpacaeval": {key: ALPACA[key] for key in ("dataset", "instruction")},
    "arenahard": {"uid": "a1", "category": "arena-hard-v0.1", "cluster": "Sorting", "prompt": "Sort it."},
    "mtbench": {"question_id": 81, "category": "writing", "turns": ["Greet.", "Once more."], "reference": ["Hi", None]},
    "prompts": {"id": 3, "prompt": "Hm?"},
}
READ = {
    "alpacaeval": (ALPACA, PolicyAnswer("Say hi", ("Hi",))),
    "arenahard": (NEWER, PolicyAnswer("a1", (MARKED,), counts=COUNTS)),
    "mtbench": (TURNS, PolicyAnswer(81, ("Aloha", "And bye"))),
    "prompts": (OWN, PolicyAnswer(3, ("Well.",), truncated=(True,))),
}


def write(path: Path, *rows: dict) -> str:
    """JSON lines, which every reader takes as well as an array."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_marks_are_counted_outside_of_code():
    assert count_marks(MARKED, 7) == COUNTS


@pytest.mark.parametrize("suite", READ)
def test_answers_are_read_and_written_as_the_originals_have_them(suite, tmp_path):
    row, answer = READ[suite]
    questions = read_questions(suite, write(tmp_path / "questions.jsonl", ASKED[suite]))
    found = read_answers(suite, write(tmp_path / "m.jsonl", row))
    assert found == Answers("m", {answer.question: [answer]})
    (name,) = write_answers(suite, tmp_path / "", "again", questions, found)
    written = (tmp_path / name).read_text()
    (again,) = json.loads(written) if name.endswith(".json") else map(json.loads, written.splitlines())
    # What names the policy, an answer and a moment is not the same.
    own = {"generator", "model", "model_id", "ans_id", "answer_id", "tstamp"}
    assert again.keys() == row.keys() and {key for key in row if again[key] != row[key]} <= own
    assert read_answers(suite, str(tmp_path / name)) == found._replace(name="again")


def test_questions_are_read_with_what_goes_with_them(tmp_path):
    found = {}
    for suite, row in ASKED.items():
        (found[suite],) = read_questions(suite, write(tmp_path / f"{suite}.jsonl", row))
    said = {suite: [{"role": "user", "content": text}] for suite, text in zip(ASKED, ("Say hi", "Sort it.", "Greet.", "Hm?"))}
    assert found == {
        "alpacaeval": Question("Say hi", said["alpacaeval"], category="koala", carried={"dataset": "koala"}),
        "arenahard": Question("a1", said["arenahard"], category="arena-hard-v0.1", carried={"cluster": "Sorting"}),
        "mtbench": Question(81, said["mtbench"], ("Once more.",), "writing", ("Hi", "")),
        "prompts": Question(3, said["prompts"]),
    }
    assert found["mtbench"].turns == ("Greet.", "Once more.")
    assert found["mtbench"].conversation() == said["mtbench"]
    later = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Once more."}]
    assert found["mtbench"].conversation(["Hi"]) == said["mtbench"] + later
    # Arena-Hard's older shape; the folder of an original; answers, which hold their questions.
    older = {"question_id": "a1", "category": "arena-hard-v0.1", "cluster": "Sorting", "turns": [{"content": "Sort it."}]}
    write(tmp_path / "question.jsonl", older)
    assert read_questions("arenahard", str(tmp_path)) == [found["arenahard"]]
    assert read_questions("alpacaeval", write(tmp_path / "a.jsonl", ALPACA)) == [found["alpacaeval"]]
    assert read_questions("prompts", write(tmp_path / "p.jsonl", OWN, OWN | {"sample": 1})) == [found["prompts"]]
    assert [q.id for q in read_questions("prompts", write(tmp_path / "n.jsonl", {"prompt": "a"}, {"prompt": "b"}))] == [0, 1]


def test_answers_of_arena_hard_s_older_shape_have_counts_that_are_there_or_are_counted(tmp_path):
    answer = READ["arenahard"][1]
    found = read_answers("arenahard", write(tmp_path / "m.jsonl", OLDER))
    assert found == Answers("m", {"a1": [answer]})
    question = Question("a1", [{"role": "user", "content": "Sort it."}])
    write_answers("arenahard", tmp_path, "older", [question], found, "v0.1")
    again = json.loads((tmp_path / "older.jsonl").read_text())
    assert {**again, "tstamp": 1.5, "answer_id": "x", "model_id": "m"} == OLDER
    bare = read_answers("arenahard", write(tmp_path / "m.jsonl", {key: OLDER[key] for key in OLDER if key != "conv_metadata"}))
    assert bare.by_question["a1"] == [answer._replace(counts=COUNTS._replace(tokens=None))]


def test_each_sample_has_a_file_and_a_folder_is_read_with_all(tmp_path):
    question = Question(81, [{"role": "user", "content": "Greet."}], ("Once more.",))
    samples = [PolicyAnswer(81, (text, "ok"), number, (False, number == 1)) for number, text in enumerate(("a", "b", "c"))]
    found = Answers("m", {81: samples})
    files = write_answers("mtbench", tmp_path, "m", [question], found)
    assert files == ["m.jsonl", "m-s1.jsonl", "m-s2.jsonl"]
    row = json.loads((tmp_path / "m-s1.jsonl").read_text())
    assert (row["model_id"], row["truncated"]) == ("m-s1", [False, True])
    manifest = {"suite": "mtbench", "name": "m", "files": files}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert read_answers("mtbench", str(tmp_path)) == found
    for wrong, message in (
        (manifest | {"suite": "arenahard"}, "holds answers to 'arenahard'; expected mtbench"),
        (manifest | {"files": ["../m.jsonl"]}, "names no files of a policy"),
        ([], "names no files of a policy"),
    ):
        (tmp_path / MANIFEST).write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=message):
            read_answers("mtbench", str(tmp_path))
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UserError, match="holds no answers.json"):
        read_answers("mtbench", str(tmp_path))


def test_a_folder_of_answers_that_hold_their_questions_is_read_as_these(tmp_path):
    question = Question(3, [{"role": "user", "content": "Greet."}])
    found = Answers("m", {3: [PolicyAnswer(3, (text,), number) for number, text in enumerate(("a", "b"))]})
    files = write_answers("prompts", tmp_path, "m", [question], found)
    (tmp_path / MANIFEST).write_text(json.dumps({"suite": "prompts", "name": "m", "files": files}))
    assert [(asked.id, asked.messages) for asked in read_questions("prompts", str(tmp_path))] == [(3, question.messages)]


def test_missing_empty_and_unknown_answers_are_noticed(tmp_path, caplog):
    questions = [Question(text, [{"role": "user", "content": text}]) for text in ("a", "b", "c", "d")]
    rows = [
        ALPACA | {"instruction": text, "output": output} for text, output in (("a", " "), ("b", None), ("e", "x"), ("d", "y"))
    ]
    found = read_answers("alpacaeval", write(tmp_path / "m.jsonl", *rows))
    assert gaps(questions, found) == (["b", "c"], ["a"], ["e"])
    assert "1 answers are null, and taken for missing" in caplog.text
    one_turn = read_answers("mtbench", write(tmp_path / "t.jsonl", TURNS | {"choices": [{"index": 0, "turns": ["Aloha"]}]}))
    assert gaps(read_questions("mtbench", write(tmp_path / "q.jsonl", ASKED["mtbench"])), one_turn).missing == [81]


@pytest.mark.parametrize(
    ("suite", "rows", "message"),
    [
        ("alpacaeval", [ALPACA, ALPACA], "m.jsonl:2: the question 'Say hi' is answered already"),
        ("alpacaeval", [ALPACA, {**ALPACA, "instruction": "b", "generator": "n"}], "answers of several: 'm', 'n'"),
        ("alpacaeval", [{**ALPACA, "generator": 3}], "m.jsonl:1: 'generator' holds a number where text is expected"),
        ("alpacaeval", [{**ALPACA, "generator": "\ud800"}], "'generator' holds half a surrogate pair"),
        ("arenahard", [{**NEWER, "model": 3}], "'model' holds a number where text is expected"),
        ("mtbench", [{**TURNS, "model_id": 3}], "'model_id' holds a number where text is expected"),
        ("alpacaeval", [{**ALPACA, "output": 3}], "'output' is a int, expected str"),
        ("arenahard", [NEWER, OLDER], "the question 'a1' is answered already"),
        ("arenahard", [{"model": "m"}], "'question_id' is None; expected the id of a question"),
        ("arenahard", [{**NEWER, "messages": []}], "'messages' is empty"),
        ("mtbench", [{**TURNS, "choices": [3]}], "'choices' holds one that is no object"),
        ("mtbench", [3], "the row is not an object"),
        ("prompts", [{**OWN, "id": None}], "'id' is None"),
    ],
)
def test_answers_that_are_none_are_refused(suite, rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_answers(suite, write(tmp_path / "m.jsonl", *rows))


@pytest.mark.parametrize(
    ("reference", "message"),
    [("Hi", "'reference' is a str, expected list"), ([None, 5], "'reference' holds a number where text is expected")],
)
def test_right_answers_that_are_none_are_refused(reference, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_questions("mtbench", write(tmp_path / "q.jsonl", ASKED["mtbench"] | {"reference": reference}))


def test_a_question_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="q.jsonl:2: the question 'Say hi' is there already"):
        read_questions("alpacaeval", write(tmp_path / "q.jsonl", ALPACA, ALPACA))


ANNOTATION = {
    "instruction": "Say hi",
    "dataset": "koala",
    "output_1": "Hello",
    "generator_1": "base",
    "output_2": "Hi",
    "generator_2": "m",
    "annotator": "judge",
    "preference": 1.25,
    "preference_raw_completion": {"text": "m"},
    "preference_price_per_example": 0.01,
}
NEWER_GAMES = {
    "uid": "a1",
    "category": "arena-hard-v0.1",
    "judge": "j",
    "model": "m",
    "baseline": "base",
    "games": [{"score": "A>B", "judgment": {"answer": "So [[A>B]]"}, "prompt": [{"role": "user", "content": "x"}]}, None],
}
OLDER_GAMES = {
    "question_id": "a1",
    "model": "m",
    "judge": "j",
    "games": [
        {"user_prompt": "x", "judgment": "So [[A>B]]", "score": "A>B"},
        {"user_prompt": "", "judgment": "", "score": None},
    ],
}
GRADE = {
    "question_id": 81,
    "model": "m",
    "judge": ["gpt-4", "single-v1"],
    "user_prompt": "x",
    "judgment": "[[7]]",
    "score": 7,
    "turn": 2,
    "tstamp": 1.5,
}
VOTE = {
    "question_id": 81,
    "model_1": "m",
    "model_2": "base",
    "g1_winner": "model_1",
    "g2_winner": "tie",
    "judge": ["gpt-4", "pair-v2"],
    "g1_user_prompt": "x",
    "g1_judgment": "[[A]]",
    "g2_user_prompt": "y",
    "g2_judgment": "[[C]]",
    "turn": 1,
    "tstamp": 1.5,
}


def test_judgements_are_read_and_written_as_the_originals_have_them(tmp_path):
    path = str(tmp_path / "annotations.json")
    write_rows(Path(path), [ANNOTATION])
    (found,) = read_annotations(path)
    assert (found.instruction, found.generator_2, found.preference, found.raw_completion) == (
        "Say hi",
        "m",
        1.25,
        {"text": "m"},
    )
    assert alpacaeval.annotation_row(found, {"preference_price_per_example": 0.01}) == ANNOTATION
    (newer,) = read_judgments(write(tmp_path / "newer.jsonl", NEWER_GAMES))
    assert newer.games == (arenahard.Game("A>B", "So [[A>B]]", [{"role": "user", "content": "x"}]), None)
    assert arenahard.judgment_row(newer, "newer") == NEWER_GAMES
    assert arenahard.judgment_row(newer, "v0.1") == OLDER_GAMES
    (older,) = read_judgments(write(tmp_path / "older.jsonl", OLDER_GAMES))
    assert arenahard.judgment_row(older, "v0.1") == OLDER_GAMES and older.games[1].score is None
    (grade,) = read_grades(write(tmp_path / "single.jsonl", GRADE))
    assert (grade.score, grade.turn) == (7, 2) and json.loads(json.dumps(mtbench.judgement_row(grade))) == GRADE
    (vote,) = read_votes(write(tmp_path / "pair.jsonl", VOTE))
    assert vote.g2_winner == "tie" and json.loads(json.dumps(mtbench.judgement_row(vote))) == VOTE
    with pytest.raises(UserError, match="'g1_winner' is 'model_3'; expected model_1"):
        read_votes(write(tmp_path / "pair.jsonl", VOTE | {"g1_winner": "model_3"}))
