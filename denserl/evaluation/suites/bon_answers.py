"""Stored answers to problems, each with a label, as in RLHFlow's best-of-n sets: `prompt`, `answers`, `label` or `labels`.

Those of PPE have columns `response_1`, `response_2`, ... and `scores`.
"""

import itertools

from denserl.data.bad_rows import BadRow
from denserl.data.step_records import without_markers
from denserl.evaluation.stored_answers import StoredAnswers
from denserl.evaluation.suites.rows import PROMPT_KEYS, field, identity, messages

LABELS = ("label", "labels", "scores")


def item(row: dict, part: str) -> StoredAnswers:
    """A problem with its answers; its subset is what the row calls `subset`, or its file.

    Markers of steps, which some generators write at ends of lines, are no part of an answer.
    """
    name = next((name for name in PROMPT_KEYS if row.get(name) is not None), PROMPT_KEYS[0])
    prompt, texts = messages(row.get(name), name), _columns(row) or field(row, "answers", list)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRow("'answers' is no list of texts")
    key = next((key for key in LABELS if row.get(key) is not None), LABELS[0])
    labels = field(row, key, list)
    if len(labels) != len(texts):
        raise BadRow(f"{key!r} has {len(labels)} entries, and there are {len(texts)} answers")
    if unknown := [label for label in labels if label not in (0, 1)]:
        raise BadRow(f"{key!r} has {unknown[0]!r}; expected 1 or true for a right answer, 0 or false for a wrong one")
    subset = row["subset"] if isinstance(row.get("subset"), str) else part
    return StoredAnswers(identity(row), subset, prompt, list(map(without_markers, texts)), [bool(label) for label in labels])


def _columns(row: dict) -> list:
    """The answers of a row that has a column for each."""
    return [row[key] for key in itertools.takewhile(row.__contains__, (f"response_{n}" for n in itertools.count(1)))]
