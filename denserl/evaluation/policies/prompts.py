"""Prompts of one's own, in any shape that the project reads, and answers to them: JSON lines with all samples in one file."""

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.schemas import as_prompt
from denserl.evaluation.policies.alpacaeval import truncated
from denserl.evaluation.policies.answers import PolicyAnswer, Question
from denserl.evaluation.suites.rows import field

_IDS = ("id", "uid", "question_id")


def question(row: dict, number: int) -> Question:
    """The prompt of a row, which may be that of an answer, under its own id, or else its number in the file."""
    if row.get("sample"):
        raise LeftOut("answers to the same prompt")
    given = (row[key] for key in _IDS if isinstance(row.get(key), (str, int)) and not isinstance(row[key], bool))
    return Question(next(given, number), as_prompt(row)["prompt"])


def answers(row: dict) -> tuple[str | None, list[PolicyAnswer]]:
    """The answer of a row, which does not say whose it is; none where it is null."""
    id = row.get("id")
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        raise BadRow(f"'id' is {id!r}; expected that of a prompt")
    if row.get("response") is None:
        return None, []
    return None, [PolicyAnswer(id, (field(row, "response"),), field(row, "sample", int), truncated(row))]


def answer_row(question: Question, answer: PolicyAnswer) -> dict:
    """The answer as a row."""
    row = {"id": question.id, "messages": question.messages, "response": answer.turns[0], "sample": answer.sample}
    return row if answer.truncated is None else row | {"truncated": answer.truncated[0]}
