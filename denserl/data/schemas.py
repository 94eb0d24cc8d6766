"""Converts rows of all known shapes to one: messages, response texts, margin. Pure functions; BadRow says why a row is bad.

No reading (readers.py) and no tokenizer (chat.py) here.
"""

import re
import reprlib
from collections.abc import Sequence
from typing import Any

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
RATING_KEYS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
PROMPT_KEYS = ("prompt", "conversations", "instruction")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Characters of a conversation, some 200 000 tokens: a longer one is an error of an export, and would be tokenised for half a
# minute only to be cut. Plain text, which is split instead, may be longer.
LONGEST = 1_000_000


SUMMARY_REQUEST = "Generate one-sentence summary for the following post: "


class BadRow(ValueError):
    """Why a row of the data cannot be used."""


class LeftOut(Exception):
    """Why a valid row is not used."""


def as_preference(row: Any, rating_keys: Sequence[tuple[str, str]] = RATING_KEYS) -> dict:
    """{prompt, chosen, rejected, margin} of a preference row of any known shape. LeftOut for two conversations rated alike."""
    if _given(row, "conv_A"):
        row = _by_rating(row)
    chosen_prompt, chosen = _side(row, "chosen")
    rejected_prompt, rejected = _side(row, "rejected")
    if chosen_prompt != rejected_prompt:
        raise BadRow("chosen and rejected have different prompts")
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are identical")
    _check_length(chosen_prompt, chosen, rejected)
    return {"prompt": chosen_prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row, rating_keys)}


def as_labels(row: Any, names: Sequence[str]) -> dict[str, float]:
    """The numbers that a row holds under the names. BadRow where one is missing or no number."""
    return {name: _rating(row.get(name), name) for name in names}


def as_prompt(row: Any) -> dict:
    """{prompt} of a row that has `prompt`, `conversations`, `instruction` or `messages`, or is a preference row."""
    if _given(row, "conv_A"):
        row = {"messages": _conversation(row, "A")}
    messages = _explicit_prompt(row)
    if messages is None and _given(row, "messages"):
        messages = _messages(row["messages"], "messages")
    elif messages is None and _given(row, "chosen"):
        messages = _side(row, "chosen")[0]
    elif messages is None:
        raise BadRow("no 'prompt', 'messages', 'instruction' or 'chosen'")
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]  # its answer is not part of the prompt
    _check_length(messages)
    return {"prompt": _checked_prompt(messages)}


def as_demonstration(row: Any) -> dict:
    """{prompt, response} of `messages`, prompt + response or completion, a preference row's chosen side, or `text`.

    The prompt of a plain `text` is empty.
    """
    key = next((key for key in ("response", "completion", "chosen", "messages", "conversations") if _given(row, key)), None)
    if key is not None:
        is_whole = key in ("messages", "conversations")
        prompt, response = _answered(_messages(row[key], key), key) if is_whole else _side(row, key)
        _check_length(prompt, response)
        return {"prompt": _checked_prompt(prompt), "response": response}
    if _given(row, "text"):
        return {"prompt": [], "response": _text(row["text"], "text")}
    raise BadRow("no 'messages', 'response', 'completion', 'chosen' or 'text'")


def _by_rating(row: dict) -> dict:
    """The row of two rated conversations (as in Unified-Feedback) as one with a chosen and a rejected one and their ratings."""
    ratings = [_rating(row.get(f"conv_{side}_rating"), f"conv_{side}_rating") for side in "AB"]
    if ratings[0] == ratings[1]:
        raise LeftOut("both conversations have the same rating")
    better, worse = ("A", "B") if ratings[0] > ratings[1] else ("B", "A")
    sides = {"chosen": _conversation(row, better), "rejected": _conversation(row, worse)}
    return {**sides, "chosen_rating": max(ratings), "rejected_rating": min(ratings)}


def _conversation(row: dict, side: str) -> list[dict]:
    """One of a row's two conversations. Posts of summarisation sets get the missing request to summarise them."""
    first, *others = _messages(row.get(f"conv_{side}"), f"conv_{side}")
    if "summarize" in str(row.get("source", "")):
        first = {**first, "content": SUMMARY_REQUEST + first["content"].strip()}
    return [first, *others]


def _given(row: object, key: str) -> bool:
    if not isinstance(row, dict):
        raise BadRow("the row is not an object")
    return row.get(key) is not None


def _side(row: Any, key: str) -> tuple[list[dict], str]:
    """The prompt and the answer that the row's `key` gives: its own history, or the row's explicit prompt."""
    if not _given(row, key):
        raise BadRow(f"{key!r} is missing or null")
    explicit = _explicit_prompt(row)
    value = row[key]
    if isinstance(value, str) and explicit is not None:
        return _checked_prompt(explicit), _text(value, key)
    if isinstance(value, str):
        history, answer = _answered(_dialogue(value, key), key)
    else:
        history, answer = _answered(_messages(value, key), key)
    if explicit is not None and history and not _agree(explicit, history):
        raise BadRow(f"the prompt differs from the turns before the answer in {key!r}")
    return _checked_prompt(history or explicit or []), answer


def _explicit_prompt(row: Any) -> list[dict] | None:
    key = next((key for key in PROMPT_KEYS if _given(row, key)), None)
    if key is None:
        return None
    messages = _messages(row[key], key)
    if key == "instruction" and _given(row, "input") and row["input"] != "":
        messages[-1]["content"] += "\n\n" + _text(row["input"], "input")
    return messages


def _agree(explicit: list[dict], history: list[dict]) -> bool:
    """A prompt of one turn may be any of the history's: in published sets it is the first of several, or trimmed."""

    def trimmed(messages: list[dict]) -> list[tuple[str, str]]:
        return [(m["role"], m["content"].strip()) for m in messages]

    return trimmed(explicit) == trimmed(history) or (len(explicit) == 1 and trimmed(explicit)[0] in trimmed(history))


def _answered(messages: list[dict], key: str) -> tuple[list[dict], str]:
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"{key!r} does not end with an assistant turn")
    return messages[:-1], _text(messages[-1]["content"], key)


def _checked_prompt(messages: list[dict]) -> list[dict]:
    if not messages:
        raise BadRow("there is no prompt")
    if messages[-1]["role"] != "user":
        raise BadRow("the prompt does not end with a user turn")
    if not messages[-1]["content"].strip():
        raise BadRow("the prompt's last turn is empty")
    return messages


def _messages(value: object, key: str) -> list[dict]:
    """Messages of a text (one user turn, or a dialogue), of one message, or of a list of them."""
    if isinstance(value, str):
        if _TURN.match(value) is None:
            return [{"role": "user", "content": _text(value, key)}]
        turns = _dialogue(value, key)
        return turns[:-1] if not turns[-1]["content"] and len(turns) > 1 else turns
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key!r} is neither text nor a list of messages")
    return [_message(item, key) for item in value]


def _message(item: object, key: str) -> dict:
    if not isinstance(item, dict):
        raise BadRow(f"{key!r} holds a message that is not an object")
    role, content = (item.get("role"), item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"{key!r} holds a message of role {reprlib.repr(role)}; expected system, user or assistant")
    return {"role": ROLES[role], "content": _unicode(content, key)}


def _dialogue(text: str, key: str) -> list[dict]:
    """Turns of a dialogue string that opens them with "\\n\\nHuman: " and "\\n\\nAssistant: "."""
    _unicode(text, key)
    opening, *turns = _TURN.split(text)
    if opening.strip() or not turns:
        raise BadRow(f"{key!r} is a plain text and there is no prompt beside it")
    return [
        {"role": "user" if who == "Human" else "assistant", "content": content.strip()}
        for who, content in zip(turns[::2], turns[1::2])
    ]


def _check_length(prompt: list[dict], *responses: str) -> None:
    length = sum(len(message["content"]) for message in prompt) + sum(map(len, responses))
    if length > LONGEST:
        raise BadRow(f"the row has {length} characters; at most {LONGEST} are read")


def _text(value: object, key: str) -> str:
    text = _unicode(value, key)
    if not text.strip():
        raise BadRow(f"{key!r} is empty")
    return text


def _unicode(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{key!r} holds a {type(value).__name__} where text is expected")
    if _SURROGATE.search(value):
        raise BadRow(f"{key!r} holds half a surrogate pair, which is no valid Unicode")
    return value


def _margin(row: dict, rating_keys: Sequence[tuple[str, str]]) -> float:
    """The rating difference, 0 without ratings, which may also stand under `metadata`."""
    if isinstance(row.get("metadata"), dict):
        row = {**row["metadata"], **row}
    for keys in rating_keys:
        if any(row.get(key) is not None for key in keys):
            chosen, rejected = (_rating(row.get(key), key) for key in keys)
            return chosen - rejected
    return 0.0


def _rating(value: object, key: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e9 < value < 1e9:
        raise BadRow(f"the rating {key!r} is not a number, or beyond 1e9")
    return float(value)
