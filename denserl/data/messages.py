"""Messages of all known shapes to one: dicts with `role`, `content` (text), and what else templates read in a message.

What a row holds around its messages is in schemas.py, how they are rendered in chat.py.
"""

import json
import math
import re
import reprlib
from collections.abc import Collection, Iterator
from typing import Any

from denserl.data.bad_rows import BadRow

# The roles that templates know, and other names of them: ShareGPT's, Gemini's, and those from before tools had a role.
ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
# What is handed to the template as it is. The last two are of a whole conversation, and stand in its first message.
BESIDE = ("tools", "documents")
EXTRAS = ("tool_calls", "reasoning_content", "reasoning", "thinking", "name", "tool_call_id", *BESIDE)
# What a language model would not be shown.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_REFUSED = (*MEDIA, "function_call", "refusal")
_TAKE_OUT = "take it out, or leave it unread with `columns` {}="
_TEXT_PARTS = ("text", "input_text", "output_text")
WHOLE = ("messages", "conversations")  # keys of a row under which a whole conversation stands
_STYLES = (("role", "content"), ("from", "value"))
_TURN = re.compile(r"\n\n(Human|Assistant):")
_MARKED_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_AS_TEXT = re.compile(r"\s*(\[\s*)?\{")
# What other languages write for JSON. A text that only begins like that is taken for code.
_LIKE_JSON = re.compile(
    r"\s*(\[\s*\{|\{\s*[\"'](role|content|from|value|tool_calls|messages|conversations)[\"']\s*:).*[\]}]\s*", re.DOTALL
)
_ROLE_AS_TEXT = re.compile(rf"[\"'](?:role|from)[\"']\s*:\s*[\"'](?:{'|'.join(ROLES)})[\"']", re.IGNORECASE)


def as_messages(value: object, key: str) -> list[dict]:
    """Messages of a text (one user turn, a dialogue, or JSON), of one message, or of a list of them."""
    if isinstance(value, str):
        written = written_messages(value, key)
        if written is None and _MARKED_TURN.search(value):
            return _marked_turns(value, key)
        if written is None and _TURN.match(value) is None:
            return [{"role": "user", "content": unicode_of(value, key)}]
        if written is None:
            turns = dialogue(value, key)
            return turns[:-1] if not turns[-1]["content"] and len(turns) > 1 else turns
        value = written
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_of(value)
        raise BadRow(f"{key!r} is neither text nor a list of messages but {found}")
    messages = [_as_message(item, key) for item in value]
    for name in BESIDE:
        if any(name in message for message in messages[1:]):
            raise BadRow(f"{key!r} holds a message with {name!r} that is not the first")
    return messages


def by_turns(value: Any, key: str) -> Any:
    """Messages of a list of texts that user and assistant say by turns, the assistant the last; any other value as it is."""
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        return value
    roles = ("assistant", "user")
    return [{"role": roles[place % 2], "content": unicode_of(text, key)} for place, text in enumerate(value[::-1])][::-1]


def apart(messages: list[dict]) -> tuple[list[dict], dict]:
    """The messages without what the first one holds for the whole conversation, and that: tools, documents."""
    beside = {name: messages[0][name] for name in BESIDE if name in messages[0]} if messages else {}
    if not beside:
        return messages, beside
    return [{name: value for name, value in messages[0].items() if name not in beside}, *messages[1:]], beside


def response_of(message: dict) -> str | dict:
    """An answer as its text, or as all of the message where that holds more."""
    return message if message.keys() - {"role", "content"} else message["content"]


def whole_text(message: str | dict) -> str:
    """A text as it is; of a message its content, and what else it holds under its name, as JSON where it is no text."""
    if isinstance(message, str):
        return message
    others = [name for name in EXTRAS if name in message]
    shown = [
        f"[{name.upper()}]\n{value if isinstance(value := message[name], str) else json.dumps(value, ensure_ascii=False)}"
        for name in others
    ]
    return "\n".join([message["content"], *shown] if message["content"] or not shown else shown)


def texts_in(message: dict) -> Iterator[str]:
    """The content of a message, and whatever else it holds, as texts."""
    for name, value in message.items():
        if name != "role":
            yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written_messages(text: str, key: str) -> list | None:
    """The messages that a text is the JSON of; None for any other text. BadRow where they are not well written."""
    if _AS_TEXT.match(text) is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _LIKE_JSON.fullmatch(text) and _ROLE_AS_TEXT.search(text):
            raise BadRow(
                f"{key!r} holds messages written as text that is no JSON", "write them as JSON, or the rows into a .jsonl file"
            ) from error
        return None
    if isinstance(value, dict) and any(_are_messages(value.get(name)) for name in WHOLE):
        raise BadRow(f"{key!r} holds a whole row written as text", "give the row itself")
    items = value if isinstance(value, list) else [value]
    return items if _are_messages(items) else None


def _are_messages(items: object) -> bool:
    """Whether they are objects of one style, the first of which has a role that is known, and something to say."""
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return False
    for role, content in _STYLES:
        if all(role in item for item in items) and {content, *EXTRAS} & items[0].keys():
            return _known_role(items[0][role])
    return False


def dialogue(text: str, key: str) -> list[dict]:
    """Turns of a dialogue string that opens them with "\\n\\nHuman: " and "\\n\\nAssistant: "; none of any other text."""
    opening, *turns = _TURN.split(unicode_of(text, key))
    if opening.strip():
        return []
    return [
        {"role": "user" if who == "Human" else "assistant", "content": content.strip()}
        for who, content in zip(turns[::2], turns[1::2])
    ]


def _marked_turns(text: str, key: str) -> list[dict]:
    """Turns of a text whose later ones are opened by lines "<extra_id_1>Assistant" and "<extra_id_1>User" (HelpSteer2)."""
    opening, *turns = _MARKED_TURN.split(unicode_of(text, key))
    roles = ["assistant", "user"] * len(turns)
    if [role.lower() for role in turns[::2]] != roles[: len(turns) // 2]:
        raise BadRow(f"{key!r} has turns marked <extra_id_1> that are not user's and assistant's by turns")
    contents = zip(["user", *roles], [opening, *turns[1::2]])
    return [{"role": role, "content": content} for role, content in contents]


def plain_value(value: object, key: str) -> Any:
    """A value of JSON's kinds, given as such or as the text of some. BadRow where it is neither, or holds half a character."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{key!r} is a text that is no JSON") from error
    try:
        json.dumps(value)
        _check_texts(value, key)
    except (TypeError, ValueError, RecursionError) as error:
        raise error if isinstance(error, BadRow) else BadRow(f"{key!r} holds what JSON does not have: {error}") from error
    return value


def text_of(value: object, key: str) -> str:
    """A text that is not empty."""
    text = unicode_of(value, key)
    if not text.strip():
        raise BadRow(f"{key!r} is empty")
    return text


def unicode_of(value: object, key: str) -> str:
    """A text. BadRow where it is none, or no valid Unicode."""
    if not isinstance(value, str):
        raise BadRow(f"{key!r} holds {kind_of(value)} where text is expected")
    if _SURROGATE.search(value):
        raise BadRow(f"{key!r} holds half a surrogate pair, which is no valid Unicode")
    return value


def number_of(value: object) -> float:
    """A number, or the text of one, as tables of text have them; NaN for anything else."""
    try:
        return float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def kind_of(value: object) -> str:
    """What JSON calls a value of that kind."""
    kinds = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def is_filled(value: object) -> bool:
    """Whether a value says anything: not null, and no empty text, list or object."""
    return value is not None and not (isinstance(value, (str, list, dict, tuple)) and not value)


def refuse(holder: dict, names: Collection[str], where: str, fix: str = _TAKE_OUT) -> None:
    """BadRow where the object holds content under one of the names, which could only be dropped; a number is none."""
    numbers = (bool, int, float)
    found = next((n for n in names if is_filled(holder.get(n)) and not isinstance(holder[n], numbers)), None)
    if found is not None:
        raise BadRow(f"{where} {found!r}, which is not read", fix.format(found))


def unread_in(value: object, key: str) -> set[str]:
    """The keys of messages, and of their parts, that say something and are not read, as `key[].name`."""
    found = set()
    value = written_messages(value, key) if isinstance(value, str) else value
    value = [value] if isinstance(value, dict) else value
    for message in value if isinstance(value, list) else []:
        if isinstance(message, dict):
            style = _style(message)
            found |= {f"{key}[].{name}" for name in _others(message, {*EXTRAS, *style})}
            found |= unread_in_parts(message.get(style[1]), f"{key}[].{style[1]}")
    return found


def unread_in_parts(content: object, key: str) -> set[str]:
    """The keys of a content's parts that say something and are not read, as `key[].name`."""
    parts = content if isinstance(content, list) else []
    return {f"{key}[].{name}" for part in parts for name in _others(part, {"type", "text"})}


def _others(holder: object, known: set[str]) -> set[str]:
    items = holder.items() if isinstance(holder, dict) else ()
    return {name for name, value in items if name not in known and is_filled(value)}


def _style(message: dict) -> tuple[str, str]:
    """The keys of its role and its content."""
    return _STYLES["role" not in message and "from" in message]


def _as_message(item: object, key: str) -> dict:
    if not isinstance(item, dict):
        raise BadRow(f"{key!r} holds a message that is not an object but {kind_of(item)}")
    role_key, content_key = _style(item)
    role = item.get(role_key)
    if not _known_role(role):
        raise BadRow(f"{key!r} holds a message of role {_shown(role)}; expected system, user, assistant, tool or developer")
    refuse(item, _REFUSED, f"{key!r} holds a message with", "take it out of the messages")
    extras = {name: _extra(item[name], name, key) for name in EXTRAS if item.get(name) not in (None, [], {})}
    if role.lower() == "function_call":
        calls = plain_value(item.get(content_key), key)
        return {"role": "assistant", "content": "", **extras, "tool_calls": _tool_calls(calls, key)}
    if content_key not in item and "tool_calls" not in extras:
        raise BadRow(f"{key!r} holds a message without {content_key!r}; it has {', '.join(map(str, item))}")
    content = item.get(content_key)
    if content is None and "tool_calls" not in extras:
        raise BadRow(f"{key!r} holds a message whose content is null")
    return {"role": ROLES[role.lower()], "content": "" if content is None else content_of(content, key), **extras}


def _known_role(role: object) -> bool:
    return isinstance(role, str) and role.lower() in ROLES


def _shown(role: object) -> str:
    return "null" if role is None else reprlib.repr(role)


def content_of(value: object, key: str) -> str:
    """The text of a content, which may be a list of parts of type text."""
    return "".join(_part(part, key) for part in value) if isinstance(value, list) else unicode_of(value, key)


def _part(part: object, key: str) -> str:
    if not isinstance(part, dict):
        raise BadRow(f"{key!r} holds a content with {kind_of(part)} among its parts; expected objects of type 'text'")
    if part.get("type") not in _TEXT_PARTS:
        raise BadRow(f"{key!r} holds a content with a part of type {_shown(part.get('type'))}; only 'text' is read")
    return unicode_of(part.get("text"), key)


def _extra(value: object, name: str, key: str) -> Any:
    if name == "tool_calls":
        return _tool_calls(plain_value(value, name), key)
    return plain_value(value, name) if name in BESIDE or not isinstance(value, str) else unicode_of(value, name)


def _tool_calls(value: object, key: str) -> list[dict]:
    """A list of calls, as they are. BadRow where one is not an object that names a function."""
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not calls:
        raise BadRow(f"{key!r} holds tool calls that are {kind_of(value)}; expected a list of objects")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"{key!r} holds a tool call without the name of a function")
    return calls


def _check_texts(value: object, key: str) -> None:
    if isinstance(value, str):
        unicode_of(value, key)
    elif isinstance(value, dict):
        for pair in value.items():
            _check_texts(list(pair), key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_texts(item, key)
