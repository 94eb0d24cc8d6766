"""AlpacaEval's files (github.com/tatsu-lab/alpaca_eval): arrays of answers and of annotations, joined by instruction."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.data.messages import unicode_of
from denserl.evaluation.policies.answers import PolicyAnswer, Question
from denserl.evaluation.suites.rows import field

_OF_ANSWERS = ("output", "generator", "truncated")


def question(row: dict, number: int) -> Question:
    """The question of a row, which may be that of an answer."""
    text = field(row, "instruction")
    carried = {key: value for key, value in row.items() if key not in ("instruction", *_OF_ANSWERS)}
    return Question(text, [{"role": "user", "content": text}], category=str(row.get("dataset") or ""), carried=carried)


def answers(row: dict) -> tuple[str | None, list[PolicyAnswer]]:
    """The policy's name and its answer; none where it is null."""
    text = field(row, "instruction")
    found = [] if row.get("output") is None else [PolicyAnswer(text, (field(row, "output"),), truncated=truncated(row))]
    return named(row, "generator"), found


def named(row: dict, key: str) -> str | None:
    """The policy's name, where a row of answers says it. BadRow where it is no text."""
    return None if row.get(key) is None else unicode_of(row[key], key)


def truncated(row: dict) -> tuple[bool, ...] | None:
    """What a row of answers says of their being cut off, turn by turn."""
    value = row.get("truncated")
    return None if value is None else tuple(map(bool, value if isinstance(value, list) else [value]))


def answer_row(question: Question, answer: PolicyAnswer, name: str) -> dict:
    """The answer as a row; what else the question's row holds is carried along."""
    row = {**question.carried, "instruction": question.id, "output": answer.turns[0], "generator": name}
    return row if answer.truncated is None else row | {"truncated": answer.truncated[0]}


class Annotation(NamedTuple):
    """What a judge says of a policy's answer and the baseline's. Fields and their order are the file's.

    preference: from 1, where the baseline's answer (output_1) is better, to 2; None where the judge's text says nothing.
    """

    instruction: str
    dataset: str | None
    output_1: str
    generator_1: str
    output_2: str
    generator_2: str
    annotator: str
    preference: float | None
    raw_completion: Any = None


_TEXTS = ("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator")
_COMPLETION = "preference_raw_completion"  # since version 0.6.6


def annotation(row: dict) -> Annotation:
    """The annotation of a row of any version."""
    texts = {
        name: field(row, name) for name in ("instruction", "output_1", "output_2", "generator_1", "generator_2", "annotator")
    }
    preference = row.get("preference")
    if preference is not None and (isinstance(preference, bool) or not isinstance(preference, (int, float))):
        raise BadRow(f"'preference' is {preference!r}; expected a number or null")
    completion = row.get(_COMPLETION, row.get("raw_completion"))
    return Annotation(**texts, dataset=row.get("dataset"), preference=preference, raw_completion=completion)


def annotation_row(annotation: Annotation, more: Mapping[str, object] = {}) -> dict:
    """The annotation as version 0.6.6 writes it. more: what else is said of it, such as preference_price_per_example."""
    row = {**annotation._asdict(), **more}
    return {(_COMPLETION if key == "raw_completion" else key): value for key, value in row.items()}
