"""Conversations as a chat template writes them, as text: the form in which it takes them, and whether it shows them whole.

Token ids are made in chat.py. Nothing is known of a template but what it was seen to write.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from denserl.data.bad_rows import BadRow
from denserl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template is a small program that came with the model; these are what its expressions raise on texts it was not made for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip
# Words that no template writes by itself.
_ASKED, _SAID, _MORE = "Zqasked", "Zqsaid", "Zqmore"
# Keys that say which message or call belongs to which, and hold nothing that could be shown; of a tool's result, its name too.
_LINKS = ("id", "tool_call_id", "type", "index")
_ANOTHER = "give a template that shows it with `chat_template`, or leave it out of the data"
_ANY_DEPTH = 99
_KNOWN_ROLES = ("system", "user", "assistant", "developer")


class Talk(NamedTuple):
    """What a template is given."""

    messages: list[dict]
    values: Mapping[str, Any] = {}  # beside the messages: tools, documents

    def mapped(self, change: Callable[[str], str]) -> "Talk":
        """With every text in it, at any depth, changed."""
        return Talk(_mapped(self.messages, change), _mapped(self.values, change))

    def texts(self) -> Iterator[str]:
        """Every text in it."""
        yield from texts_in(self.messages)
        yield from texts_in(self.values)

    def answered(self, answer: dict) -> "Talk":
        """With one more message."""
        return self._replace(messages=[*self.messages, answer])

    def with_message(self, number: int, **changed: Any) -> "Talk":
        """With keys of one message changed; None takes a key away."""
        message = {key: value for key, value in {**self.messages[number], **changed}.items() if value is not None}
        return self._replace(messages=[*self.messages[:number], message, *self.messages[number + 1 :]])


def assistant(response: str | dict) -> dict:
    """The message of a response that is given as its text or as its whole message."""
    return {"role": "assistant", "content": response} if isinstance(response, str) else response


def template_of(tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any]) -> str:
    """The text of the tokenizer's chat template, of several the one for what is given beside messages; UserError for none."""
    try:
        return tokenizer.get_chat_template(tools=values.get("tools"))
    except ValueError as error:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template",
            "use an instruction-tuned model's tokenizer, or give a template with `chat_template`",
        ) from error


def render(tokenizer: "PreTrainedTokenizerBase", template: str, talk: Talk, add_generation_prompt: bool = False) -> str:
    """The conversation as the template writes it, given in the form that it takes. BadRow where it refuses, in its words."""
    if _takes_parts(tokenizer, template):
        talk = _in_parts(talk)
    if any(message.get("tool_calls") for message in talk.messages):
        as_text = _takes_text_arguments(tokenizer, template)
        talk = talk._replace(messages=[_with_arguments(message, as_text) for message in talk.messages])
    return _write(tokenizer, template, talk, add_generation_prompt)


def check_shown(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    talk: Talk,
    rendered: str,
    *,
    answer_only: bool = False,
    add_generation_prompt: bool = False,
) -> None:
    """BadRow, by its name, for what the template leaves out of a conversation that it rendered without a word.

    A key is left out where the rendering is the same without it. What a template shows of the last answer it may leave out of
    earlier ones, as templates do with reasoning.

    Args:
        rendered: the conversation as the template writes it.
        answer_only: only the last message is looked at.
    """
    last, at = len(talk.messages) - 1, 0
    for number, message in enumerate(talk.messages):
        at, found = _found(rendered, message.get("content") or "", at)
        looked_at = number == last or not answer_only
        if looked_at and not found and not (number < last and message["role"] == "assistant"):
            raise _left_out("content", message)
        if looked_at and (message.keys() - {"role", "content"} or message["role"] not in _KNOWN_ROLES or not found):
            _check_message(tokenizer, template, talk, number, add_generation_prompt)
    values = {} if answer_only else {key: value for key, value in talk.values.items() if _holds_text(value)}
    whole = render(tokenizer, template, talk, add_generation_prompt) if values else ""
    for key in values:
        # Of a tool's schema templates show what they need.
        for place, less in _less({key: values[key]}, whole, depth=2 if key == "tools" else _ANY_DEPTH):
            without = talk._replace(values={k: v for k, v in {**talk.values, key: less.get(key)}.items() if v is not None})
            if _is_same(tokenizer, template, without, whole, add_generation_prompt):
                raise BadRow(f"the chat template does not show {place!r}", _ANOTHER)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value of JSON's kinds, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


def _check_message(
    tokenizer: "PreTrainedTokenizerBase", template: str, talk: Talk, number: int, add_generation_prompt: bool
) -> None:
    """BadRow where the rendering is the same without one of the message's keys, or with another role."""
    message = talk.messages[number]
    whole = render(tokenizer, template, talk, add_generation_prompt)

    def is_dropped(**changed: Any) -> bool:
        return _is_same(tokenizer, template, talk.with_message(number, **changed), whole, add_generation_prompt)

    is_result = message["role"] not in _KNOWN_ROLES
    for key in message.keys() - {"role", *_LINKS, *(["name"] if is_result else [])}:
        missing = "" if key == "content" else None
        lesser = _less({key: _with_arguments(message, as_text=False)[key]}, whole)
        left_out = next((place for place, less in lesser if is_dropped(**{key: less.get(key, missing)})), None)
        if left_out is not None:
            is_past_turn = message["role"] == "assistant" and number < len(talk.messages) - 1
            if not is_past_turn or (key == "content" and is_dropped(content=_SAID)):  # not a part of it alone
                raise _left_out(left_out, message)
            _check_message(tokenizer, template, talk._replace(messages=talk.messages[: number + 1]), number, False)
    for role in ("user", "assistant"):
        if is_result and is_dropped(role=role):
            raise BadRow(f"the chat template writes a message of role {message['role']!r} like one of role {role!r}", _ANOTHER)


def _is_same(tokenizer: "PreTrainedTokenizerBase", template: str, talk: Talk, whole: str, add_generation_prompt: bool) -> bool:
    try:
        return render(tokenizer, template, talk, add_generation_prompt) == whole
    except BadRow:
        return False  # what was taken away is read at the least


def _less(value: Any, rendered: str, depth: int = _ANY_DEPTH, place: str = "") -> Iterator[tuple[str, Any]]:
    """The value without one of the things in it that hold texts, down to some depth, each with where that stands.

    A text inside a list that is in the rendering is shown, whatever it was taken from: a call's id may name its function.
    """
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, Mapping) else []
    pairs = list(enumerate(value)) if isinstance(value, list) else pairs
    for at, item in pairs if depth else ():
        is_shown = place and isinstance(item, str) and _found(rendered, item, 0)[1]
        if at in _LINKS or is_shown or not _holds_text(item):
            continue
        here = f"{place}[{at}]" if isinstance(value, list) else f"{place}.{at}".removeprefix(".")
        yield here, _with_item(value, pairs, at)
        yield from ((there, _with_item(value, pairs, at, less)) for there, less in _less(item, rendered, depth - 1, here))


def _with_item(value: Any, pairs: list[tuple[Any, Any]], at: Any, *items: Any) -> Any:
    """The value with another item in a place, or without the one that is there."""
    changed = [(key, new) for key, item in pairs for new in (items if key == at else (item,))]
    return dict(changed) if isinstance(value, Mapping) else [item for _, item in changed]


def _left_out(key: str, message: dict) -> BadRow:
    what = "the whole content" if key == "content" else repr(key)
    one = f"a message of role {message['role']!r}"
    return BadRow(f"the chat template does not show {what} of {one}", _ANOTHER)


def _found(rendered: str, text: str, start: int) -> tuple[int, bool]:
    """Where the text ends in a rendering, looked for from `start` on, and whether it is there, but for white space."""
    text = text.strip()
    # Results of tools are written as JSON by some.
    for form in (text, *(json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))):
        at = rendered.find(form, start)
        if at >= 0:
            return at + len(form), True
    return start, "".join(text.split()) in "".join(rendered[start:].split()) or text in rendered


@functools.lru_cache(maxsize=8)
def _takes_parts(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Whether the template shows content as a list of parts alone, and not as text."""
    talk = Talk([{"role": "user", "content": _ASKED}, assistant(_SAID)])

    def shows(talk: Talk) -> bool:
        try:
            text = _write(tokenizer, template, talk)
        except BadRow:
            return False
        return _ASKED in text and _SAID in text

    return not shows(talk) and shows(_in_parts(talk))


@functools.lru_cache(maxsize=8)
def _takes_text_arguments(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Whether the template takes the arguments of tool calls as JSON text alone, and not as an object."""
    call = {"type": "function", "function": {"name": _SAID, "arguments": {"at": _MORE}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}

    def shows(as_text: bool) -> bool:
        try:
            messages = [{"role": "user", "content": _ASKED}, _with_arguments(message, as_text)]
            return _MORE in _write(tokenizer, template, Talk(messages))
        except BadRow:
            return False

    return not shows(False) and shows(True)


def _in_parts(talk: Talk) -> Talk:
    def in_parts(message: dict) -> dict:
        return {**message, "content": [{"type": "text", "text": message["content"]}]} if message.get("content") else message

    return talk._replace(messages=[in_parts(message) for message in talk.messages])


def _with_arguments(message: dict, as_text: bool) -> dict:
    """The message with its tool calls as `{"type": "function", "function": {...}}`, their arguments as text or as objects."""
    if not message.get("tool_calls"):
        return message
    calls = [call if "function" in call else {"type": "function", "function": call} for call in message["tool_calls"]]
    return {**message, "tool_calls": [{**call, "function": _call(call["function"], as_text)} for call in calls]}


def _call(function: dict, as_text: bool) -> dict:
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, Mapping):
        return {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not as_text and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            return function
        return {**function, "arguments": parsed} if isinstance(parsed, dict) else function
    return function


def _write(tokenizer: "PreTrainedTokenizerBase", template: str, talk: Talk, add_generation_prompt: bool = False) -> str:
    given: dict[str, Any] = {"chat_template": template, "add_generation_prompt": add_generation_prompt, **talk.values}
    try:
        return tokenizer.apply_chat_template(talk.messages, tokenize=False, **given)
    except _TEMPLATE_ERRORS as error:
        raise BadRow(f"the chat template refuses the messages: {error}", _ANOTHER) from error


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _holds_text(value: Any) -> bool:
    return any(text.strip() for text in texts_in(value))
