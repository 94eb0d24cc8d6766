"""Messages to token ids for any tokenizer with a chat template: prompt, response, end of turn, truncation.

Where the response starts is decided on ids, and text typed by people never becomes a control token of the template.
There is no table of model names here; everything is found by rendering with the tokenizer's own template.
"""

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import AddedToken

from denserl.data.bad_rows import BadRow
from denserl.data.messages import apart
from denserl.data.rendering import Talk, assistant, check_shown, render, template_of
from denserl.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Unicode noncharacters, reserved for internal use; text that contains them is refused where they are needed.
_GUARD, _ALIAS, _STOP, _BOUNDARY = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_SURROGATE = re.compile("[\ud800-\udfff]")
_PROBE, _OTHER_PROBE = Talk([{"role": "user", "content": "Question"}]), Talk([{"role": "user", "content": "Word"}])
_PROBE_ANSWERS = ("Hello", "Yes")
# An answer of another form, which some templates open otherwise.
_THOUGHT = {"role": "assistant", "content": "Hello", "reasoning_content": "Thought"}


# Conversations of most forms that templates know.
_CALL: dict = {"type": "function", "id": "callid001", "function": {"name": "look", "arguments": {"at": "sea"}}}
_CALLS: dict = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "where"}}, "required": ["at"]},
    },
}
_RESULT = {"name": "look", "tool_call_id": "callid001", "content": "water"}
_PLAIN_TALKS = tuple(
    Talk([*opening, *_PROBE.messages, *more])
    for opening in ([], [{"role": "system", "content": "Short"}])
    for more in ([], [assistant("Hello"), *_OTHER_PROBE.messages])
)
_OTHER_TALKS = (
    *(Talk([{"role": role, "content": "Short"}, *_PROBE.messages]) for role in ("developer", "tool", "function", "ipython")),
    Talk([*_PROBE.messages, _THOUGHT, *_PROBE.messages]),
    *(
        Talk([*_PROBE.messages, *more], values)
        for more in ([], *([_CALLS, {"role": role, **_RESULT}] for role in ("tool", "function", "ipython")))
        for values in ({}, {"tools": [_TOOL]}, {"documents": [{"title": "Word", "text": "Short"}]})
    ),
)
_NO_SYSTEM_PROMPT = "leave `system_prompt` out, or give a template that shows one with `chat_template`"


class _ChatFormat(NamedTuple):
    """What a template and its tokenizer were found to do."""

    template: str
    end_of_turn: int
    # Whether answers go on from the generation prompt. Where they do not, or there is none, a prompt ends where the renderings
    # of these answers part, which are of all forms that the template shows.
    has_generation_prompt: bool
    endings: tuple[dict, ...]
    bos: int | None  # the id that opens every encoding, None where neither template nor tokenizer uses one
    control: dict[str, int]  # text -> id of the tokens that only the template may write
    pattern: re.Pattern  # matches the text of every control token


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token that the template closes an assistant turn with; UserError when there is none."""
    return _chat_format(tokenizer).end_of_turn


def bos_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token that opens every encoding; None where neither template nor tokenizer uses one."""
    return _chat_format(tokenizer).bos


def is_free(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Whether a token can stand in no encoding: no template holds its text or writes it, and no text becomes it."""
    own = tokenizer.chat_template
    templates = list(own.values()) if isinstance(own, dict) else [own]
    i = tokenizer.convert_tokens_to_ids(token)
    literal = tokenizer(token, add_special_tokens=False, split_special_tokens=True).input_ids
    return not any(token in template for template in templates) and i not in literal and i not in _seen_ids(tokenizer)


def renders_alike(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether two tokenizers of one vocabulary encode plain conversations alike, with a system message and without."""

    def encoded(tokenizer: "PreTrainedTokenizerBase") -> list[list[int] | None]:
        return [_ids_or_none(tokenizer, talk) for talk in _PLAIN_TALKS]

    return encoded(one) == encoded(other)


def check_system_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | None) -> None:
    """UserError where the template does not show the system prompt that was put into it, or the prompt holds its tokens."""
    if not prompt:
        return
    try:
        text = as_text(tokenizer, _PROBE.answered(assistant(_PROBE_ANSWERS[0])).messages)
    except BadRow as error:
        raise UserError(f"`system_prompt`: {error}", _NO_SYSTEM_PROMPT) from error
    if prompt.strip() not in text:
        raise UserError("`system_prompt`: the chat template does not show it", _NO_SYSTEM_PROMPT)
    found = _chat_format(tokenizer).pattern.search(prompt)
    if found:
        raise UserError(f"`system_prompt` holds {found[0]!r}, which is a control token", "leave it out of `system_prompt`")


def stop_ids(tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig | None" = None) -> list[int]:
    """Ids that end a response: end of turn, then the generation config's and the tokenizer's, without repeats."""
    configured = generation_config.eos_token_id if generation_config is not None else None
    configured = configured if isinstance(configured, (list, tuple)) else [configured]
    if not all(i is None or type(i) is int for i in configured):
        raise UserError(f"generation_config.json has the eos_token_id {configured}; expected token ids", "correct it there")
    ids = [end_of_turn_id(tokenizer), *configured, tokenizer.eos_token_id]
    return list(dict.fromkeys(i for i in ids if i is not None))


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
    chat = _chat_format(tokenizer, talk)
    if chat.has_generation_prompt:
        ids, rendered = _encode(tokenizer, chat, talk, add_generation_prompt=True)
        check_shown(tokenizer, chat.template, talk, rendered, add_generation_prompt=True)
        return ids
    talks = [talk.answered(answer) for answer in chat.endings]
    encoded = [_encode(tokenizer, chat, each) for each in talks]
    check_shown(tokenizer, chat.template, talks[0], encoded[0][1])
    return _common_start([ids for ids, _ in encoded])


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
    chat, whole = _chat_format(tokenizer, talk), talk.answered(answer)
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
    """Prompt ids and the ids of the responses to it (see `encode_response`), cut by `truncate_pair`.

    BadRow where one has no content left.
    """
    prompt = encode_prompt(tokenizer, messages, template_kw)
    encoded = [encode_response(tokenizer, messages, response, prompt, template_kw) for response in responses]
    chat = _chat_format(tokenizer)
    cut = truncate_pair(prompt, encoded, max_length, max_prompt_length, chat.end_of_turn, chat.bos)
    if any(len(ids) < 2 for ids in cut[1]):
        raise BadRow("a response has no token, or keeps none after truncation, besides its end of turn")
    return cut


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
    talk = Talk(messages, template_kw or {})
    return render(tokenizer, template_of(tokenizer, talk.values), talk)


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of plain text without any template, as the tokenizer opens and closes one; control tokens in it stay text.

    BadRow for text that is no valid Unicode.
    """
    return _tokenize(tokenizer, text, add_special_tokens=True, split_special_tokens=True)


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


def _seen_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids in whatever the template was seen to write."""
    return _find_seen_ids(tokenizer, template_of(tokenizer, {}), template_of(tokenizer, {"tools": [_TOOL]}))


@functools.lru_cache(maxsize=8)
def _find_seen_ids(tokenizer: "PreTrainedTokenizerBase", *templates: str) -> set[int]:
    seen: set[int] = set()
    for talk in (*_PLAIN_TALKS, *_OTHER_TALKS):
        for answer in (None, assistant("Hello"), _THOUGHT, _CALLS):
            whole = talk.answered(answer) if answer else talk
            for template in set(templates):
                try:
                    text = render(tokenizer, template, whole, add_generation_prompt=answer is None)
                except BadRow:
                    continue
                seen.update(_tokenize(tokenizer, text))
    return seen


def _common_start(rows: list[list[int]]) -> list[int]:
    """What all of the rows begin with."""
    one, other = min(rows), max(rows)
    return one[: next((i for i, (x, y) in enumerate(zip(one, other)) if x != y), len(one))]


def _chat_format(tokenizer: "PreTrainedTokenizerBase", talk: Talk | None = None) -> _ChatFormat:
    template = template_of(tokenizer, talk.values if talk else {})
    return _find_chat_format(tokenizer, template, len(tokenizer), tuple(tokenizer.all_special_ids))


@functools.lru_cache(maxsize=8)  # keyed by all that the answer depends on; a template set later is a new entry
def _find_chat_format(
    tokenizer: "PreTrainedTokenizerBase", template: str, vocabulary: int, special_ids: tuple[int, ...]
) -> _ChatFormat:
    added = set(tokenizer.added_tokens_decoder) | set(special_ids)

    def ids_of(talk: Talk, add_generation_prompt: bool = False) -> list[int]:
        return _tokenize(tokenizer, render(tokenizer, template, talk, add_generation_prompt))

    try:
        answers = [ids_of(_PROBE.answered(assistant(text))) for text in _PROBE_ANSWERS]
        past = Talk([*_PROBE.messages, assistant(_PROBE_ANSWERS[0]), *_PROBE.messages])
        history, opened = ids_of(past), ids_of(past, add_generation_prompt=True)
    except BadRow as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} cannot render a question and its answer: {error}",
            "give another template with `chat_template`",
        ) from error
    end_of_turn = next((i for i in answers[0][len(_common_start(answers)) :] if i in added), None)
    if end_of_turn is None:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} closes an assistant turn with no special token",
            "let the template end each assistant turn with a special token, such as the tokenizer's eos token; a file with "
            "the template is given with `chat_template`",
        )
    endings = tuple(answer for answer in (*map(assistant, _PROBE_ANSWERS), _THOUGHT) if _is_shown(tokenizer, template, answer))
    has_generation_prompt = opened != history and all(
        ids_of(talk.answered(answer))[: len(opening)] == opening
        for talk in (_PROBE, past)
        for opening in [ids_of(talk, add_generation_prompt=True)]
        for answer in endings
    )
    if not has_generation_prompt:
        _check_parts(tokenizer, [[ids_of(talk.answered(a)) for a in endings] for talk in (_PROBE, _OTHER_PROBE)])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(special_ids)
    # what the template writes around past turns is control too, even where it was added as no special token
    ids = special | {end_of_turn} | (added & set(history))
    control = {tokenizer.convert_ids_to_tokens(i): i for i in ids}
    pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
    bos = tokenizer.bos_token_id
    uses_bos = bos is not None and bos in (answers[0][0], *tokenizer("", add_special_tokens=True).input_ids[:1])
    return _ChatFormat(template, end_of_turn, has_generation_prompt, endings, bos if uses_bos else None, control, pattern)


def _is_shown(tokenizer: "PreTrainedTokenizerBase", template: str, answer: dict) -> bool:
    talk = _PROBE.answered(answer)
    try:
        check_shown(tokenizer, template, talk, render(tokenizer, template, talk), answer_only=True)
        return True
    except BadRow:
        return False


def _check_parts(tokenizer: "PreTrainedTokenizerBase", talks: list[list[list[int]]]) -> None:
    """UserError unless questions and answers part: what follows the questions is the same for all of them.

    talks: of each of several questions the ids with each of the same answers.
    """
    prompts = [_common_start(answered) for answered in talks]
    rests = [[ids[len(prompt) :] for ids in answered] for prompt, answered in zip(prompts, talks)]
    if prompts[0] == prompts[1] or rests[0] != rests[1]:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} does not write answers after their questions, or writes a "
            "question otherwise beside another answer: there is no prompt that all answers go on from",
            "give another template with `chat_template`",
        )


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


def _tokenize(tokenizer: "PreTrainedTokenizerBase", text: str, add_special_tokens: bool = False, **kwargs: bool) -> list[int]:
    if _SURROGATE.search(text):
        raise BadRow("the text holds half a surrogate pair, which is no valid Unicode")
    return tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **kwargs).input_ids


def _encode(
    tokenizer: "PreTrainedTokenizerBase", chat: _ChatFormat, talk: Talk, add_generation_prompt: bool = False
) -> tuple[list[int], str]:
    """Ids of the rendered conversation with one BOS, and the rendering; control tokens within what was given stay text."""
    if not any(chat.pattern.search(text) for text in talk.texts()):
        rendered = render(tokenizer, chat.template, talk, add_generation_prompt)
        ids, control = _tokenize(tokenizer, rendered), set(chat.control.values())
        # A tokenizer that normalises (NFKC, lower case) may make a control token of text that is none; then there are too many.
        if sum(i in control for i in ids) <= len(chat.pattern.findall(rendered)):
            return _one_bos(chat, ids), rendered
    _refuse_marks(talk)
    return _encode_literal(tokenizer, chat, talk, add_generation_prompt)


def _encode_literal(
    tokenizer: "PreTrainedTokenizerBase", chat: _ChatFormat, talk: Talk, add_generation_prompt: bool = False
) -> tuple[list[int], str]:
    """Like `_encode`: texts go through the template with their control tokens guarded, are put back in the
    rendering while the template's own control tokens take aliases, and the literal tokenizer tells the two apart."""
    texts = {str(i): text for text, i in chat.control.items()}
    guarded = talk.mapped(lambda text: chat.pattern.sub(lambda found: f"{_GUARD}{chat.control[found[0]]}{_STOP}", text))
    rendered = render(tokenizer, chat.template, guarded, add_generation_prompt)
    rendered = chat.pattern.sub(lambda found: _alias(chat.control[found[0]]), rendered)
    rendered = re.sub(f"{_GUARD}(\\d+){_STOP}", lambda found: texts[found[1]], rendered)
    if json.dumps(_GUARD)[1:-1] in rendered:
        raise BadRow(
            "the chat template escapes control tokens in what it is given, which then cannot be kept apart from its own"
        )
    literal, alias_ids = _literal_tokenizer(tokenizer, tuple(chat.control.items()))
    ids = [alias_ids.get(i, i) for i in _tokenize(literal, rendered, split_special_tokens=True)]
    return _one_bos(chat, [i for i in ids if i is not None]), rendered


def _encode_split(tokenizer: "PreTrainedTokenizerBase", chat: _ChatFormat, talk: Talk, answer: dict) -> list[int]:
    """Ids of the conversation where no token spans the start of the response."""
    _refuse_marks(talk.answered(answer))
    trimmed = {**answer, "content": answer["content"].lstrip()}
    shown = [render(tokenizer, chat.template, talk.answered(each)) for each in (answer, trimmed)]
    # Where the template trims, which it could not do past the boundary, the answer is taken trimmed.
    kept = trimmed if shown[0] == shown[1] else answer
    return _encode_literal(tokenizer, chat, talk.answered({**kept, "content": _BOUNDARY + kept["content"]}))[0]


def _refuse_marks(talk: Talk) -> None:
    if any(mark in text for text in talk.texts() for mark in (_GUARD, _ALIAS, _STOP, _BOUNDARY)):
        raise BadRow("the text holds a reserved Unicode noncharacter (U+FDD0 to U+FDD3)")


def _one_bos(chat: _ChatFormat, ids: list[int]) -> list[int]:
    return ids if chat.bos is None or ids[:1] == [chat.bos] else [chat.bos, *ids]
