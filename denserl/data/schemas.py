"""Converts rows of all known shapes to one: messages, responses, labels. Pure functions; BadRow says why a row is bad.

A response is its text, or its whole message where that holds more: reasoning, tool calls. What a row holds beside its messages
becomes part of them: system text and earlier turns come first, and `tools` and `documents` stand in the first message, where
chat.py finds them.

No reading (readers.py) and no tokenizer (chat.py) here; single messages are in messages.py.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.messages import (
    BESIDE,
    MEDIA,
    WHOLE,
    as_messages,
    by_turns,
    content_of,
    dialogue,
    is_filled,
    kind_of,
    number_of,
    plain_value,
    refuse,
    response_of,
    text_of,
    unicode_of,
    unread_in,
    unread_in_parts,
    written_messages,
)
from denserl.data.pair_rows import from_one_text, two_sided

__all__ = ["BadRow", "LeftOut", "as_demonstration", "as_labels", "as_preference", "as_prompt", "as_text_label", "unread"]

# The responses of a pair, the better one first.
SIDES = ("chosen", "rejected")
MARGIN = "margin"
P_CHOSEN, WEIGHT = "p_chosen", "weight"
# Labels of a pair; 0 and 1 in a row that does not say.
PAIR_LABELS = (MARGIN, P_CHOSEN)
RATING_KEYS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)
_RATINGS = tuple(key for keys in RATING_KEYS for key in keys)
PROMPT_KEYS = ("prompt", "conversations", "instruction")
ANSWER_KEYS = ("response", "completion", "chosen", "messages", "conversations", "output", "text")
SYSTEM_KEYS = ("system", "system_prompt")
INPUT_KEYS = ("input", "context")
CONTEXT = (*SYSTEM_KEYS, "history", *BESIDE)
_BESIDE_CONV_A = ("conv_B", "conv_A_rating", "conv_B_rating")
# Answers, which are not what prompts are for.
_BESIDE_PROMPTS = ("chosen", "rejected", "response", "completion", "output", *_BESIDE_CONV_A)
_OF_MESSAGES = {*PROMPT_KEYS, *ANSWER_KEYS, "rejected", "history", "conv_A", "conv_B"}
# All that is read in rows of some shape.
READ_KEYS = {
    *PROMPT_KEYS, *ANSWER_KEYS, "rejected", *INPUT_KEYS, *CONTEXT, MARGIN, P_CHOSEN, WEIGHT, "metadata", *_RATINGS,
}  # fmt: skip
_OF_ROWS = ((P_CHOSEN, 1.0), (WEIGHT, math.inf))  # numbers from 0 up to that
# Content that no shape has a place for. Of an answer, in a row that has it as a text: it is read in the answer's message.
REFUSED = (*MEDIA, "functions", "chat_template_kwargs")
OF_ANSWERS = ("reasoning_content", "thinking", "tool_calls")
# Why a pair is bad whose responses say the same.
IDENTICAL = "chosen and rejected are identical"
# Characters of a conversation, some 200 000 tokens: a longer one is an error of an export, and would be tokenised for half a
# minute only to be cut. Plain text, which is split instead, may be longer.
LONGEST = 1_000_000


SUMMARY_REQUEST = "Generate one-sentence summary for the following post: "


def as_preference(row: Any, rating_keys: Sequence[tuple[str, str]] = RATING_KEYS, as_is: bool = False) -> dict:
    """{prompt, chosen, rejected, margin, p_chosen, weight} of a preference row of any known shape.

    p_chosen is the probability that the chosen response is the better one, weight what its loss is multiplied by; both are 1
    in a row that does not say. LeftOut for two conversations rated alike.

    as_is: answers may be empty or equal, from which nothing could be learned, and the last question may be empty.
    """
    row = _by_rating(row) if _given(row, "conv_A") else two_sided(row)
    refuse(row, (*REFUSED, *OF_ANSWERS), "the row has")
    if not _given(row, "chosen") and (_given(row, "steps") or _given(row, "completions")):
        raise BadRow("the row has labelled steps, and no preference", "train a reward model on them with `input` steps")
    chosen_prompt, chosen = _side(row, "chosen")
    rejected_prompt, rejected = _side(row, "rejected")
    if chosen_prompt != rejected_prompt:
        raise BadRow("chosen and rejected have different prompts")
    if not as_is:
        check_filled(chosen_prompt, chosen=chosen, rejected=rejected)
        if same_response(chosen, rejected):
            raise BadRow(IDENTICAL)
    check_length(chosen_prompt, chosen, rejected)
    labels = {"margin": _margin(row, rating_keys), **{name: _one_or(row, name, most) for name, most in _OF_ROWS}}
    return {"prompt": chosen_prompt, "chosen": chosen, "rejected": rejected, **labels}


def as_labels(row: Any, names: Sequence[str]) -> dict[str, float]:
    """The numbers that a row holds under the names. BadRow where one is missing or no number."""
    for name in names:
        if row.get(name) is None:
            raise BadRow(f"it has no {name!r}, a number that an objective reads")
    return {name: _rating(row.get(name), name) for name in names}


def as_text_label(row: Any, key: str, what: str = "the right answer") -> str:
    """The text, or the number as text, that a row holds under the key, which says `what`. BadRow where there is none."""
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{key!r}, which is to say {what}, is {value!r}; expected a text or a number")


def as_prompt(row: Any) -> dict:
    """{prompt} of a row that has `prompt`, `conversations`, `instruction` or `messages`, or is a preference row."""
    row = {**_around(row), "messages": _conversation(row, "A")} if _given(row, "conv_A") else from_one_text(row)
    refuse(row, REFUSED, "the row has")
    prompt = _prompt_alone(row)
    check_filled(prompt)
    check_length(prompt)
    return {"prompt": prompt}


def as_demonstration(row: Any) -> dict:
    """{prompt, response} of `messages`, prompt + response, completion or output, a preference row's chosen side, or `text`.

    The prompt of a plain `text` is empty. LeftOut for an answer of weight 0.
    """
    key = next((key for key in ANSWER_KEYS if _given(row, key)), None)
    if key is None:
        raise missing(row, "no 'messages', 'response', 'completion', 'output', 'chosen' or 'text'", "prompt=...,response=...")
    refuse(row, (*REFUSED, *OF_ANSWERS), "the row has")
    if key == "text" and (not isinstance(row[key], str) or written_messages(row[key], key) is None):
        refuse(row, CONTEXT, "beside a plain 'text' the row has")
        return {"prompt": [], "response": text_of(row["text"], "text")}
    if key in (*WHOLE, "text"):
        messages, response = _answered(as_messages(row[key], key), key)
        prompt = checked_prompt(row, messages)
    else:
        prompt, response = _side(row, key)
    _check_weight(row[key])
    check_filled(prompt, **{key: response})
    check_length(prompt, response)
    return {"prompt": prompt, "response": response}


def unread(row: Any, convert: Any, also: Collection[str] = ()) -> set[str]:
    """The keys of a row, and of its messages, that say something and that `convert`, a function of this file, does not read.

    An answer beside a prompt is not among what `as_prompt` leaves unread. also: keys that are read beside those.
    """
    try:
        row = {as_preference: two_sided, as_prompt: from_one_text}.get(convert, lambda row: row)(row)
    except (BadRow, LeftOut):
        return set()
    if not isinstance(row, dict):
        return set()
    read = {*also, *_keys_read(row, convert)}
    found = unread_beside(row, read, _BESIDE_PROMPTS if convert is as_prompt else ())
    if "metadata" in read and is_filled(row.get("metadata")):
        found |= _unread_metadata(row["metadata"], {*also, *_RATINGS})
    return found


def unread_beside(row: dict, read: Collection[str], known: Collection[str] = ()) -> set[str]:
    """The keys of a row that say something and are neither read nor known, and those of the messages under the ones read."""
    read = {*read, *CONTEXT}
    found = {str(name) for name, value in row.items() if name not in {*read, *known} and is_filled(value)}
    parts = (unread_in_parts(row.get(name), name) for name in SYSTEM_KEYS)
    return found.union(*parts, *(unread_in(row[name], name) for name in read & _OF_MESSAGES & row.keys()))


def _unread_metadata(metadata: object, ratings: Collection[str]) -> set[str]:
    if not isinstance(metadata, dict):
        return {"metadata"}
    return {f"metadata.{name}" for name, value in metadata.items() if name not in ratings and is_filled(value)}


def _keys_read(row: dict, convert: Any) -> Iterator[str]:
    prompts: Sequence[str] = PROMPT_KEYS
    if convert is not as_demonstration and row.get("conv_A") is not None:
        yield from ("conv_A", "source")
        yield from (*_BESIDE_CONV_A, WEIGHT) if convert is as_preference else ()
        return
    if convert is as_preference:
        yield from ("chosen", "rejected", MARGIN, P_CHOSEN, WEIGHT, "metadata", *_RATINGS)
    elif convert is as_prompt:
        prompts = (*PROMPT_KEYS, "messages", "chosen")
    else:
        answer = next((key for key in ANSWER_KEYS if row.get(key) is not None), "text")
        yield answer
        prompts = () if answer in (*WHOLE, "text") else prompts
    prompt = next((key for key in prompts if row.get(key) is not None), None)
    if prompt is not None:
        yield prompt
    if prompt == "instruction":
        yield from INPUT_KEYS


def _prompt_alone(row: dict) -> list[dict]:
    messages = _explicit_prompt(row)
    if messages is None and _given(row, "messages"):
        messages = as_messages(row["messages"], "messages")
    elif messages is None and _given(row, "chosen"):
        prompt, chosen = _side(row, "chosen")
        check_filled(prompt, chosen=chosen)
        return prompt
    elif messages is None:
        raise missing(row, "no 'prompt', 'messages', 'instruction' or 'chosen'", "prompt=...")
    # An answer at its end is not part of the prompt.
    return checked_prompt(row, messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def _by_rating(row: dict) -> dict:
    """The row of two rated conversations (as in Unified-Feedback) as one with a chosen and a rejected one and their ratings."""
    ratings = [_rating(row.get(f"conv_{side}_rating"), f"conv_{side}_rating") for side in "AB"]
    if ratings[0] == ratings[1]:
        raise LeftOut("both conversations have the same rating")
    better, worse = ("A", "B") if ratings[0] > ratings[1] else ("B", "A")
    sides = {"chosen": _conversation(row, better), "rejected": _conversation(row, worse)}
    return {**_around(row), **sides, "chosen_rating": max(ratings), "rejected_rating": min(ratings), WEIGHT: row.get(WEIGHT)}


def _conversation(row: dict, side: str) -> list[dict]:
    """One of a row's two conversations. Posts of summarisation sets get the missing request to summarise them."""
    first, *others = as_messages(row.get(f"conv_{side}"), f"conv_{side}")
    if "summarize" in str(row.get("source", "")):
        first = {**first, "content": SUMMARY_REQUEST + first["content"].strip()}
    return [first, *others]


def _around(row: dict) -> dict:
    """What a row holds around its messages."""
    return {name: row[name] for name in CONTEXT if name in row}


def _given(row: object, key: str) -> bool:
    if not isinstance(row, dict):
        raise BadRow(f"the row is not an object but {kind_of(row)}")
    return row.get(key) is not None


def missing(row: dict, found: str, columns: str) -> BadRow:
    """The bad row that lacks what is read; it names what is there. A file that is one chat has its messages for rows."""
    if {"role", "content"} <= row.keys():
        return BadRow(f"{found}; the row is one message of a chat", 'make the whole chat one row: {"messages": [...]}')
    there = ", ".join(str(name) if value is not None else f"{name} (null)" for name, value in row.items())
    return BadRow(
        f"{found}; the row has {there or 'no key'}", f"name those that are meant: `columns` {columns}" if there else ""
    )


def _side(row: Any, key: str) -> tuple[list[dict], str | dict]:
    """The prompt and the answer that the row's `key` gives: its own history, or the row's explicit prompt."""
    if not _given(row, key):
        raise missing(row, f"{key!r} is missing or null", "prompt=...,chosen=...,rejected=...")
    explicit, value = _explicit_prompt(row), by_turns(row[key], key)
    messages = written_messages(value, key) if isinstance(value, str) else value
    if messages is None and explicit is not None:
        return checked_prompt(row, explicit), unicode_of(value, key)
    messages = dialogue(value, key) if messages is None else as_messages(messages, key)
    if not messages:
        raise missing(row, f"{key!r} is a plain text and there is no prompt beside it", "prompt=...")
    history, answer = _answered(messages, key)
    if explicit is not None and history and history[0]["role"] == "assistant":
        history = [*explicit, *history]  # it goes on where the prompt ends
    elif explicit is not None and history and not _agree(explicit, history):
        raise BadRow(f"the prompt differs from the turns before the answer in {key!r}")
    if not history and not explicit:
        raise missing(row, "there is no prompt", "prompt=...")
    return checked_prompt(row, history or explicit or []), answer


def _explicit_prompt(row: Any) -> list[dict] | None:
    key = next((key for key in PROMPT_KEYS if _given(row, key)), None)
    if key is None:
        return None
    messages = as_messages(row[key], key)
    if key != "instruction":
        refuse(row, INPUT_KEYS, f"beside {key!r} the row has")
        return messages
    for name in INPUT_KEYS:
        if _given(row, name) and row[name] != "":
            messages[-1]["content"] += "\n\n" + text_of(row[name], name)
    return messages


def _agree(explicit: list[dict], history: list[dict]) -> bool:
    """A prompt of one turn may be any of the history's: in published sets it is the first of several, or trimmed."""
    own, turns = [[_trimmed(message) for message in messages] for messages in (explicit, history)]
    return own == turns or (len(own) == 1 and own[0] in turns)


def same_response(a: str | dict, b: str | dict) -> bool:
    """Whether two responses say the same, but for blanks around them."""
    return _trimmed(a) == _trimmed(b)


def _trimmed(response: str | dict) -> dict:
    message = {"role": "assistant", "content": response} if isinstance(response, str) else response
    return {**message, "content": message["content"].strip()}


def _answered(messages: list[dict], key: str) -> tuple[list[dict], str | dict]:
    """The messages before the last one, and that one, the assistant's: its text, or all of it where it holds more."""
    *prompt, answer = messages
    if answer["role"] != "assistant":
        raise BadRow(f"{key!r} does not end with an assistant turn")
    return prompt, response_of(answer)


def checked_prompt(row: dict, turns: list[dict]) -> list[dict]:
    """The turns as a prompt, with what the row holds around them: system text, earlier turns, tools, documents."""
    if not turns:
        raise BadRow("there is no prompt")
    if turns[-1]["role"] not in ("user", "tool"):
        raise BadRow("the prompt does not end with a user turn")
    has_system, texts = turns[0]["role"] in ("system", "developer"), _system_texts(row)
    own: list[dict] = [{"role": "system", "content": text} for text in texts.values()]
    opening = turns[:1] if has_system else own[:1]
    for key, text in texts.items():
        if text.strip() != opening[0]["content"].strip():
            raise BadRow(f"{key!r} differs from the system message of the conversation")
    first, *others = [*opening, *_history(row), *turns[has_system:]]
    beside = {name: plain_value(row[name], name) for name in BESIDE if is_filled(row.get(name))}
    for name, value in beside.items():
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise BadRow(f"{name!r} is no list of objects")
        if first.get(name, value) != value:
            raise BadRow(f"{name!r} differs from what the first message has")
    return [{**first, **{name: value for name, value in beside.items() if value}}, *others]


def check_filled(prompt: list[dict], **answers: str | dict) -> None:
    """BadRow where the last turn of the prompt, or an answer, says nothing."""
    last = prompt[-1]
    if last["role"] == "user" and not last["content"].strip():
        raise BadRow("the prompt's last turn is empty")
    for key, answer in answers.items():
        if isinstance(answer, str) or "tool_calls" not in answer:
            content = _trimmed(answer)["content"]
            if key in WHOLE and not content:
                raise BadRow(f"the answer at the end of {key!r} is empty")
            text_of(content, key)


def _system_texts(row: dict) -> dict[str, str]:
    """The system text that the row has beside its messages, by its key."""
    texts = {key: content_of(row[key], key) for key in SYSTEM_KEYS if is_filled(row.get(key))}
    return {key: text for key, text in texts.items() if text.strip()}


def _history(row: dict) -> list[dict]:
    """Earlier turns: [[user, assistant], ...], or a list of messages."""
    if not is_filled(row.get("history")):
        return []
    value = plain_value(row["history"], "history")
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return as_messages(value, "history") if value else []
    if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
        raise BadRow("'history' is neither a list of [user, assistant] pairs nor one of messages")
    roles = ("user", "assistant")
    return [{"role": role, "content": text_of(text, "history")} for turn in value for role, text in zip(roles, turn)]


def _check_weight(value: object) -> None:
    """LeftOut for messages whose last one says, as fine-tuning formats do, that it is not to be learned."""
    last = value[-1] if isinstance(value, list) and value else None
    if isinstance(last, dict) and last.get("weight") is not None and not last["weight"]:
        raise LeftOut("the answer has weight 0")


def check_length(prompt: list[dict], *responses: str | dict) -> None:
    length = sum(map(_length, [*prompt, *responses]))
    if length > LONGEST:
        raise BadRow(f"the row has {length} characters; at most {LONGEST} are read")


def _length(turn: str | dict) -> int:
    if isinstance(turn, str):
        return len(turn)
    extras = {name: value for name, value in turn.items() if name not in ("role", "content")}
    return len(turn["content"]) + (len(json.dumps(extras)) if extras else 0)


def _margin(row: dict, rating_keys: Sequence[tuple[str, str]]) -> float:
    """The row's margin, or the difference of its ratings, which may also stand under `metadata`; 0 without either."""
    if row.get(MARGIN) is not None:
        return _rating(row[MARGIN], MARGIN, [MARGIN])
    if isinstance(row.get("metadata"), dict):
        row = {**row["metadata"], **row}
    for keys in rating_keys:
        given = [key for key in keys if row.get(key) is not None]
        if given:
            chosen, rejected = (_rating(row.get(key), key, given) for key in keys)
            return chosen - rejected
    return 0.0


def _one_or(row: dict, key: str, most: float) -> float:
    """The number from 0 to `most` that the row holds under the key; 1 where it holds none."""
    number = 1.0 if row.get(key) is None else number_of(row[key])
    if not (0 <= number <= most and number < math.inf):
        bounds = "a finite number of at least 0" if most == math.inf else f"a number from 0 to {most:g}"
        raise BadRow(f"{key!r} is {row[key]!r}; expected {bounds}", f"leave it unread with `columns` {key}=")
    return number


def _rating(value: object, key: str, unread: Sequence[str] = ()) -> float:
    """The number that a value is, or is the text of. unread: what could be left unread instead."""
    number = number_of(value)
    if not -1e9 < number < 1e9:
        fix = f"correct it, or leave ratings unread with `columns` {','.join(f'{name}=' for name in unread)}" if unread else ""
        raise BadRow(f"the rating {key!r} is not a number, or beyond 1e9", fix)
    return number
