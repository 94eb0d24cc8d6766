"""Rows that hold a preference otherwise than as chosen and rejected: both responses in one text, or a strength between them.

Pure functions; what rows of the usual shapes mean is in schemas.py.
"""

import math
import re
from typing import Any

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.messages import as_messages, number_of

_TAGS = ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]")
_ONE_TEXT = re.compile(r"\[CONTEXT\] (.*) \[RESPONSE A\] (.*) \[RESPONSE B\] (.*) \n", re.DOTALL)
_OF_STRENGTH = ("response_1", "response_2", "preference_strength")


def two_sided(row: Any) -> Any:
    """The row with its preference as prompt, chosen and rejected; one of another shape as it is.

    BadRow where the preference cannot be told for certain. LeftOut where neither response is the better one.
    """
    if not isinstance(row, dict) or row.get("chosen") is not None:
        return row
    if all(row.get(key) is not None for key in _OF_STRENGTH):
        return _by_strength(row)
    return from_one_text(row)


def from_one_text(row: Any) -> Any:
    """The same of a row that has both responses in one text alone (arXiv 2405.07863)."""
    is_so = isinstance(row, dict) and row.get("chosen") is None and _is_one_text(row.get("messages"))
    return _of_one_text(row) if is_so else row


def _by_strength(row: dict) -> dict:
    """Of HelpSteer2: below 0 the first response is preferred, above it the second; how much is the margin."""
    strength = number_of(row["preference_strength"])
    if not math.isfinite(strength):
        raise BadRow(f"'preference_strength' is {row['preference_strength']!r}; expected a number")
    if strength == 0:
        raise LeftOut("neither response is preferred")
    first, second = row["response_1"], row["response_2"]
    sides = {"chosen": first, "rejected": second} if strength < 0 else {"chosen": second, "rejected": first}
    others = {key: value for key, value in row.items() if key not in _OF_STRENGTH}
    return {"margin": abs(strength), **others, **sides}


def _is_one_text(messages: object) -> bool:
    if not isinstance(messages, list) or len(messages) != 2 or not isinstance(messages[0], dict):
        return False
    text = messages[0].get("content")
    return isinstance(text, str) and text.startswith(_TAGS[0]) and all(tag in text for tag in _TAGS)


def _of_one_text(row: dict) -> dict:
    """A user's turn with context and both responses, answered by A or B, as pairwise models are trained on.

    A tag that stands in the text more than once parts it at an unknown place.
    """
    question, answer = as_messages(row["messages"], "messages")
    if (twice := next((tag for tag in _TAGS if question["content"].count(tag) > 1), None)) is not None:
        raise BadRow(f"the text of both responses holds {twice} more than once: where they part is not certain")
    parts = _ONE_TEXT.fullmatch(question["content"])
    if parts is None:
        raise BadRow("the text of both responses is not joined by single spaces and closed by a space and a line break")
    context, first, second = parts.groups()
    if (question["role"], answer["role"]) != ("user", "assistant") or answer["content"] not in ("A", "B"):
        raise BadRow(f"the answer to both responses is {answer['content']!r} of the {answer['role']}; expected A or B")
    better, worse = (first, second) if answer["content"] == "A" else (second, first)
    others = {key: value for key, value in row.items() if key != "messages"}
    return {**others, "prompt": _turns_of(context), "chosen": better, "rejected": worse}


def _turns_of(context: str) -> list[dict]:
    """The turns of a flat context: a line break; `<turn> ROLE`, a line break, a space and the content of each; line breaks.

    Published texts have one line break before each turn and at the end, of the two and three that their template is written
    with: template engines drop those behind a block.
    """
    before, end = ("\n\n", "\n\n\n") if context.startswith("\n\n\n") else ("\n", "\n")
    opening, *turns = re.split(rf"{before}<turn> (user|assistant)\n ", context.removesuffix(end))
    roles = ["user", "assistant"] * (len(turns) // 4) + ["user"]
    if opening != "\n" or turns[::2] != roles or not context.endswith(end):
        raise BadRow("the context of both responses is not of turns of user and assistant by turns, the user's first and last")
    return [{"role": role, "content": content} for role, content in zip(turns[::2], turns[1::2])]
