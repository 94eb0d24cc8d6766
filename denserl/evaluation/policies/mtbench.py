"""MT-Bench's judgements (github.com/lm-sys/FastChat, fastchat/llm_judge). Its questions and answers are read in arenahard.py,
which has their shape; the votes of people that were published are a suite of reward models (evaluation/suites/mtbench.py)."""

from typing import Any, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.evaluation.policies.answers import Id
from denserl.evaluation.policies.arenahard import id_of
from denserl.evaluation.suites.rows import field


class Grade(NamedTuple):
    """What a judge says of one answer (<judge>_single.jsonl). Fields and their order are the file's.

    judge: its name and its template's. score: -1 where its text says none. turn: 1 or 2.
    """

    question_id: Id
    model: str
    judge: tuple[str, str]
    user_prompt: str
    judgment: str
    score: float
    turn: int
    tstamp: float = 0.0


class Vote(NamedTuple):
    """What a judge says of two answers, shown in both orders (<judge>_pair.jsonl). Fields and their order are the file's.

    g1_winner, g2_winner: model_1, model_2, tie or error.
    """

    question_id: Id
    model_1: str
    model_2: str
    g1_winner: str
    g2_winner: str
    judge: tuple[str, str]
    g1_user_prompt: str
    g1_judgment: str
    g2_user_prompt: str
    g2_judgment: str
    turn: int
    tstamp: float = 0.0


def grade(row: dict) -> Grade:
    """The grade of a row."""
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise BadRow(f"'score' is {score!r}; expected a number")
    texts = {name: field(row, name) for name in ("model", "user_prompt", "judgment")}
    return Grade(id_of(row), judge=_judge(row), score=score, turn=field(row, "turn", int), **texts, tstamp=_time(row))


def vote(row: dict) -> Vote:
    """The vote of a row."""
    names = [name for name in Vote._fields if name not in ("question_id", "judge", "turn", "tstamp")]
    texts = {name: field(row, name) for name in names}
    for key in ("g1_winner", "g2_winner"):
        if texts[key] not in ("model_1", "model_2", "tie", "error"):
            raise BadRow(f"{key!r} is {texts[key]!r}; expected model_1, model_2, tie or error")
    return Vote(id_of(row), judge=_judge(row), turn=field(row, "turn", int), **texts, tstamp=_time(row))


def judgement_row(judgement: Grade | Vote) -> dict:
    """The judgement as a row."""
    return judgement._asdict()


def _judge(row: dict) -> tuple[str, str]:
    value: Any = row.get("judge")
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(name, str) for name in value):
        raise BadRow(f"'judge' is {value!r}; expected its name and that of its template")
    return value[0], value[1]


def _time(row: dict) -> float:
    return row.get("tstamp") or 0.0
