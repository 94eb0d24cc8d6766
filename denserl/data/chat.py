"""Messages to token ids for any tokenizer with a chat template: prompt, response, end of turn, truncation.

Where the response starts is decided on ids, and text typed by people never becomes a control token of the template.
There is no table of model names here; everything is found by rendering with the tokenizer's own template.
"""

import copy
import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from denserl.data.bad_rows import BadRow
from denserl.data.chat_format import PLAIN_TALKS, ChatFormat, chat_format, common_start, tokenize
from denserl.data.messages import apart
from denserl.data.rendering import Talk, assistant, check_shown, render, template_of
from denserl.errors import UserError, require

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Unicode noncharacters, reserved for internal use; text that contains them is refused where they are needed.
_GUARD, _ALIAS, _STOP, _BOUNDARY = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_NO_SYSTEM_PROMPT = "leave `system_prompt` out, or give a template that shows one with `chat_template`"


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that the template closes an assistant turn with; UserError when there is none."""
    return chat_format(tokenizer).end_of_turn


def bos_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token that opens every encoding; None where neither template nor tokenizer uses one."""
    return chat_format(tokenizer).bos


def stop_ids(tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig | None" = None) -> list[int]:
    """Ids that end a response: end of turn, then the generation config's and the tokenizer's, without repeats."""
    configured = generation_config.eos_token_id if generation_config is not None else None
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    if not all(i is None or type(i) is int for i in configured):
        raise UserError(f"generation_config.json has the eos_token_id {configured}; expected token ids", "correct it there")
    ids = [end_of_turn_id(tokenizer), *configured, tokenizer.eos_token_id]
    return list(dict.fromkeys(i for i in ids if i is not None))


def after_last_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens of a prompt follow the end-of-turn token of its last turn: those that open the answer.

    0 where none closes it, as with templates whose users' turns are closed by plain text.
    """
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("Question", "Word")]
    # What both end with, the last token first.
    tail, end = common_start([prompt[::-1] for prompt in prompts]), end_of_turn_id(tokenizer)
    return tail.index(end) if end in tail else 0


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict], template_kw: Mapping[str, Any] | None = None
) -> list[int]:
    """Ids of the messages up to where the assistant's answer starts, with one BOS where one is used.

    Args:
        messages: dicts with `role` and `content` (text), and whatever else the template reads in a message: `tool_calls`,
            `reasoning_content`, `name`.
        template_kw: what the template reads beside the messages: `tools` (JSON schemas), `documents`. These may as well stand
            in the first message.

    Raises:
        BadRow (a ValueError): with the template's own words when it refuses the messages.
    """
    talk = _talk(messages, template_kw)
    chat = chat_format(tokenizer, talk)
    if chat.has_generation_prompt:
        ids, rendered = _encode(tokenizer, chat, talk, add_generation_prompt=True)
        check_shown(tokenizer, chat.template, talk, rendered, add_generation_prompt=True)
        return ids
    talks = [talk.answered(answer) for answer in chat.endings]
    encoded = [_encode(tokenizer, chat, each) for each in talks]
    check_shown(tokenizer, chat.template, talks[0], encoded[0][1])
    return common_start([ids for ids, _ in encoded])


def encode_response(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict],
    response: str | dict,
    prompt_ids: list[int] | None = None,
    template_kw: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of the response as it continues `encode_prompt(messages)`, the end-of-turn token last.

    What the template writes after the end of turn is dropped.

    Args:
        response: the answer's text, or its whole message, which may hold `reasoning_content` and `tool_calls` too.
        prompt_ids: of the same messages and template_kw, which spares encoding them again.

    Raises:
        BadRow (a ValueError): the template refuses the messages, or its rendering of the answer does not continue the prompt.
    """
    talk, answer = _talk(messages, template_kw), assistant(response)
    chat, whole = chat_format(tokenizer, talk), talk.answered(answer)
    prompt_ids = encode_prompt(tokenizer, messages, template_kw) if prompt_ids is None else prompt_ids
    ids, rendered = _encode(tokenizer, chat, whole)
    check_shown(tokenizer, chat.template, whole, rendered, answer_only=True)
    if ids[: len(prompt_ids)] != prompt_ids:  # the prompt's last token merged with the response's first
        ids = _encode_split(tokenizer, chat, talk, answer)
    if ids[: len(prompt_ids)] != prompt_ids:
        check_shown(tokenizer, chat.template, whole, rendered)
        raise BadRow("the chat template's rendering of the answer does not continue its rendering of the prompt")
    ids = ids[len(prompt_ids) :]
    if chat.end_of_turn not in ids:
        raise BadRow("the chat template does not close this answer with its end-of-turn token")
    return ids[: ids.index(chat.end_of_turn) + 1]


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict],
    responses: Sequence[str | dict],
    max_length: int,
    max_prompt_length: int,
    template_kw: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Prompt ids and the ids of the responses to it (see `encode_response`), cut by `cut_pair`."""
    return cut_pair(tokenizer, *encode_whole(tokenizer, messages, responses, template_kw), max_length, max_prompt_length)


def encode_whole(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict],
    responses: Sequence[str | dict],
    template_kw: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Prompt ids and the ids of the responses to it (see `encode_response`), however long."""
    prompt = encode_prompt(tokenizer, messages, template_kw)
    return prompt, [encode_response(tokenizer, messages, response, prompt, template_kw) for response in responses]


def cut_pair(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[int],
    responses: list[list[int]],
    max_length: int,
    max_prompt_length: int,
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its responses as ids, cut by `truncate_pair`. BadRow where a response has no content left."""
    chat = chat_format(tokenizer)
    cut = truncate_pair(prompt, responses, max_length, max_prompt_length, chat.end_of_turn, chat.bos)
    if any(len(ids) < 2 for ids in cut[1]):
        raise BadRow("a response has no token, or keeps none after truncation, besides its end of turn")
    return cut


def encode_pieces(tokenizer: "PreTrainedTokenizerBase", pieces: Sequence[str]) -> list[list[int]]:
    """Ids of a conversation of one user's turn, up to where its answer starts, piece by piece: no token spans two of them.

    With the first piece stands what the template writes before it, with the last one what it writes behind. Pieces between them
    have the same ids wherever they stand.

    Raises:
        BadRow (a ValueError): the template refuses the turn, or does not write the pieces as they are given.
    """
    _refuse_marks(Talk([{"role": "user", "content": piece} for piece in pieces]))
    chat, turn = chat_format(tokenizer), Talk([{"role": "user", "content": _BOUNDARY.join(pieces)}])
    talks = [turn] if chat.has_generation_prompt else [turn.answered(answer) for answer in chat.endings]
    written = [_marked(tokenizer, chat, talk, chat.has_generation_prompt) for talk in talks]
    if any(text.split(_BOUNDARY)[1:-1] != list(pieces[1:-1]) for text in written):
        raise BadRow("the chat template does not write a user's turn as it is given")
    encoded = [_literal_parts(tokenizer, chat, text) for text in written]
    return [*encoded[0][:-1], common_start([parts[-1] for parts in encoded])]


def check_room(max_length: int, max_prompt_length: int) -> None:
    """UserError where the longest prompt leaves a response no room for content."""
    require(
        max_length - max_prompt_length >= 2,
        f"`max_length` {max_length} and `max_prompt_length` {max_prompt_length} leave no room for a response",
        "let `max_prompt_length` be smaller than `max_length` by at least 2",
    )


def truncate_pair(
    prompt_ids: list[int],
    responses: list[list[int]],
    max_length: int,
    max_prompt_length: int,
    end_of_turn: int,
    bos: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Prompt and responses cut so that each prompt + response has at most `max_length` tokens.

    The longest response decides the prompt's cut, so all keep one prompt: it loses tokens on its left (`cut_left`), as many
    as are needed but never below `max_prompt_length`. Then a response that is still too long loses tokens on its right, and
    its last kept token becomes `end_of_turn`. A response is empty where `max_prompt_length` leaves it no room.
    """
    room = max_length - max(map(len, responses))
    prompt_ids = cut_left(prompt_ids, max(room, max_prompt_length), bos)
    room = max(0, max_length - len(prompt_ids))
    return prompt_ids, [r if len(r) <= room else (r[:room][:-1] + [end_of_turn])[:room] for r in responses]


def cut_left(ids: list[int], length: int, bos: int | None) -> list[int]:
    """At most `length` ids, the last ones; where the first of all is `bos`, it stays in the place of the first that is kept."""
    kept = ids[max(0, len(ids) - length) :]
    return [bos, *kept[1:]] if bos is not None and ids[:1] == [bos] and kept else kept


def as_text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict], template_kw: Mapping[str, Any] | None = None) -> str:
    """The conversation as the chat template writes it. BadRow where it refuses the messages."""
    talk = _talk(messages, template_kw)
    return render(tokenizer, template_of(tokenizer, talk.values), talk)


def renders_alike(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether two tokenizers of one vocabulary encode plain conversations alike, with a system message and without."""

    def encoded(tokenizer: "PreTrainedTokenizerBase") -> list[list[int] | None]:
        return [_ids_or_none(tokenizer, talk) for talk in PLAIN_TALKS]

    return encoded(one) == encoded(other)


def check_system_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | None) -> None:
    """UserError where the template does not show the system prompt that was put into it, or the prompt holds its tokens."""
    if not prompt:
        return
    try:
        text = as_text(tokenizer, PLAIN_TALKS[0].answered(assistant("Hello")).messages)
    except BadRow as error:
        raise UserError(f"`system_prompt`: {error}", _NO_SYSTEM_PROMPT) from error
    if prompt.strip() not in text:
        raise UserError("`system_prompt`: the chat template does not show it", _NO_SYSTEM_PROMPT)
    found = chat_format(tokenizer).pattern.search(prompt)
    if found:
        raise UserError(f"`system_prompt` holds {found[0]!r}, which is a control token", "leave it out of `system_prompt`")


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of plain text without any template, as the tokenizer opens and closes one; control tokens in it stay text.

    BadRow for text that is no valid Unicode.
    """
    return tokenize(tokenizer, text, add_special_tokens=True, split_special_tokens=True)


def _talk(messages: list[dict], template_kw: Mapping[str, Any] | None) -> Talk:
    messages, beside = apart(messages)
    return Talk(messages, {**beside, **(template_kw or {})})


def _ids_or_none(tokenizer: "PreTrainedTokenizerBase", talk: Talk) -> list[int] | None:
    """Ids of a conversation and its answer; None where it is refused."""
    try:
        prompt = encode_prompt(tokenizer, talk.messages, talk.values)
        return prompt + encode_response(tokenizer, talk.messages, "Hello", prompt, talk.values)
    except BadRow:
        return None


@functools.lru_cache(maxsize=8)
def _literal_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", control: tuple[tuple[str, int], ...]
) -> tuple["PreTrainedTokenizerBase", dict[int, int | None]]:
    """A copy of the tokenizer that reads control tokens as text and knows an alias of each; and alias ids -> ids.

    The boundary mark is among the aliases, and stands for no id.
    """
    literal, alias_ids = copy.deepcopy(tokenizer), {}
    # split_special_tokens spares only special tokens, so that all of them must be special here
    literal.add_tokens([AddedToken(text, normalized=False) for text, _ in control], special_tokens=True)
    for text, i in control:
        known = tokenizer.added_tokens_decoder.get(i, AddedToken(text))
        literal.add_tokens([AddedToken(_alias(i), lstrip=known.lstrip, rstrip=known.rstrip, normalized=False)])
        alias_ids[literal.convert_tokens_to_ids(_alias(i))] = i
    literal.add_tokens([AddedToken(_BOUNDARY, normalized=False)])
    return literal, {**alias_ids, literal.convert_tokens_to_ids(_BOUNDARY): None}


def _alias(token_id: int) -> str:
    return f"{_ALIAS}{token_id}{_STOP}"


def _encode(
    tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, talk: Talk, add_generation_prompt: bool = False
) -> tuple[list[int], str]:
    """Ids of the rendered conversation with one BOS, and the rendering; control tokens within what was given stay text."""
    if not any(chat.pattern.search(text) for text in talk.texts()):
        rendered = render(tokenizer, chat.template, talk, add_generation_prompt)
        ids, control = tokenize(tokenizer, rendered), set(chat.control.values())
        # A tokenizer that normalises (NFKC, lower case) may make a control token of text that is none; then there are too many.
        if sum(i in control for i in ids) <= len(chat.pattern.findall(rendered)):
            return _one_bos(chat, ids), rendered
    _refuse_marks(talk)
    return _encode_literal(tokenizer, chat, talk, add_generation_prompt)


def _encode_literal(
    tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, talk: Talk, add_generation_prompt: bool = False
) -> tuple[list[int], str]:
    """Like `_encode`, where texts hold control tokens: the literal tokenizer tells them from the template's own."""
    marked = _marked(tokenizer, chat, talk, add_generation_prompt)
    return _literal_ids(tokenizer, chat, marked), render(tokenizer, chat.template, talk, add_generation_prompt)


def _encode_split(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, talk: Talk, answer: dict) -> list[int]:
    """Ids of the conversation where no token spans the start of the answer."""
    _refuse_marks(talk.answered(answer))
    whole = _marked(tokenizer, chat, talk.answered(answer))
    if chat.has_generation_prompt:
        opening = _marked(tokenizer, chat, talk, add_generation_prompt=True)
    else:
        opening = os.path.commonprefix([_marked(tokenizer, chat, talk.answered(ending)) for ending in chat.endings])
        # not in the midst of an alias
        opening = opening[: opening.rfind(_ALIAS)] if opening.rfind(_ALIAS) > opening.rfind(_STOP) else opening
    parted = opening + _BOUNDARY + whole.removeprefix(opening) if whole.startswith(opening) else whole
    return _literal_ids(tokenizer, chat, parted)


def _marked(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, talk: Talk, add_generation_prompt: bool = False) -> str:
    """The rendering with aliases in the place of the template's own control tokens.

    Texts go through the template with their control tokens guarded, and get them back when its own have become aliases.
    """
    texts = {str(i): text for text, i in chat.control.items()}
    guarded = talk.mapped(lambda text: chat.pattern.sub(lambda found: f"{_GUARD}{chat.control[found[0]]}{_STOP}", text))

    def put_back(text: str) -> str:
        return re.sub(f"{_GUARD}(\\d+){_STOP}", lambda found: texts[found[1]], text)

    rendered = render(tokenizer, chat.template, guarded, add_generation_prompt)
    if put_back(rendered) != render(tokenizer, chat.template, talk, add_generation_prompt):
        raise BadRow("the chat template reads control tokens in what it is given, and they cannot be kept apart from its own")
    return put_back(chat.pattern.sub(lambda found: _alias(chat.control[found[0]]), rendered))


def _literal_ids(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, marked: str) -> list[int]:
    """Ids of a rendering with aliases, with one BOS."""
    return [i for part in _literal_parts(tokenizer, chat, marked) for i in part]


def _literal_parts(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, marked: str) -> list[list[int]]:
    """The same, parted at boundary marks."""
    literal, alias_ids = _literal_tokenizer(tokenizer, tuple(chat.control.items()))
    found = tokenize(literal, marked, split_special_tokens=True)
    if not set(chat.control.values()).isdisjoint(found):
        raise BadRow("the tokenizer makes a control token of plain text")
    parts: list[list[int]] = [[]]
    for i in found:
        known = alias_ids.get(i, i)
        if known is None:
            parts.append([])
        else:
            parts[-1].append(known)
    return [_one_bos(chat, parts[0]), *parts[1:]]


def _refuse_marks(talk: Talk) -> None:
    if any(mark in text for text in talk.texts() for mark in (_GUARD, _ALIAS, _STOP, _BOUNDARY)):
        raise BadRow("the text holds a reserved Unicode noncharacter (U+FDD0 to U+FDD3)")


def _one_bos(chat: ChatFormat, ids: list[int]) -> list[int]:
    return ids if chat.bos is None or ids[:1] == [chat.bos] else [chat.bos, *ids]
