"""What a chat template and its tokenizer do, found by rendering: end of turn, where a prompt ends, control and free tokens.

There is no table of model names here. Rendering itself is in rendering.py, the encoding of conversations in chat.py.
"""

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.data.rendering import Talk, assistant, check_shown, render, template_of
from denserl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
PLAIN_TALKS = tuple(
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


class ChatFormat(NamedTuple):
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


def chat_format(tokenizer: "PreTrainedTokenizerBase", talk: Talk | None = None) -> ChatFormat:
    """What the tokenizer's template does, of several the one for the conversation. UserError where it cannot be used."""
    template = template_of(tokenizer, talk.values if talk else {})
    return _find_chat_format(tokenizer, template, len(tokenizer), tuple(tokenizer.all_special_ids))


def is_free(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    """Whether a token can stand in no encoding: no template holds its text or writes it, and no text becomes it."""
    own = tokenizer.chat_template
    templates = list(own.values()) if isinstance(own, dict) else [own]
    i = tokenizer.convert_tokens_to_ids(token)
    literal = tokenizer(token, add_special_tokens=False, split_special_tokens=True).input_ids
    return not any(token in template for template in templates) and i not in literal and i not in _seen_ids(tokenizer)


def own_marks(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern:
    """Matches what the template writes around turns: its control tokens, and what else is no plain word.

    A text that holds such marks may be a conversation that was rendered already.
    """
    chat = chat_format(tokenizer)
    talks = [_PROBE.answered(assistant(text)) for text in _PROBE_ANSWERS]
    whole = Talk([*talks[0].messages, *talks[1].messages])
    text = render(tokenizer, chat.template, whole)
    found = {text for text, i in chat.control.items() if i in tokenize(tokenizer, text)}
    said = "|".join(map(re.escape, {*chat.control, *(message["content"] for message in whole.messages)}))
    pieces = {piece.strip() for piece in re.split(said, text)}
    marks = found | {piece for piece in pieces if re.search(r"[^\w\s]", piece)}
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str, add_special_tokens: bool = False, **kwargs: bool) -> list[int]:
    """Ids of a text. BadRow for one that is no valid Unicode."""
    if _SURROGATE.search(text):
        raise BadRow("the text holds half a surrogate pair, which is no valid Unicode")
    return tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **kwargs).input_ids


def common_start(rows: list[list[int]]) -> list[int]:
    """What all of the rows begin with."""
    one, other = min(rows), max(rows)
    return one[: next((i for i, (x, y) in enumerate(zip(one, other)) if x != y), len(one))]


@functools.lru_cache(maxsize=8)  # keyed by all that the answer depends on; a template set later is a new entry
def _find_chat_format(
    tokenizer: "PreTrainedTokenizerBase", template: str, vocabulary: int, special_ids: tuple[int, ...]
) -> ChatFormat:
    added = set(tokenizer.added_tokens_decoder) | set(special_ids)

    def ids_of(talk: Talk, add_generation_prompt: bool = False) -> list[int]:
        return tokenize(tokenizer, render(tokenizer, template, talk, add_generation_prompt))

    try:
        answers = [ids_of(_PROBE.answered(assistant(text))) for text in _PROBE_ANSWERS]
        past = Talk([*_PROBE.messages, assistant(_PROBE_ANSWERS[0]), *_PROBE.messages])
        history, opened = ids_of(past), ids_of(past, add_generation_prompt=True)
    except BadRow as error:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} cannot render a question and its answer: {error}",
            "give another template with `chat_template`",
        ) from error
    end_of_turn = next((i for i in answers[0][len(common_start(answers)) :] if i in added), None)
    if end_of_turn is None:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} closes an assistant turn with no special token",
            "let the template end each assistant turn with a special token, such as the tokenizer's eos token; a file with "
            "the template is given with `chat_template`",
        )
    plain = [assistant(text) for text in _PROBE_ANSWERS]
    endings = (*plain, _THOUGHT) if _is_shown(tokenizer, template, _THOUGHT) else tuple(plain)
    has_generation_prompt = opened != history and all(
        ids_of(talk.answered(answer))[: len(opening)] == opening
        for talk in (_PROBE, past)
        for opening in [ids_of(talk, add_generation_prompt=True)]
        for answer in plain
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
    return ChatFormat(template, end_of_turn, has_generation_prompt, endings, bos if uses_bos else None, control, pattern)


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
    prompts = [common_start(answered) for answered in talks]
    rests = [[ids[len(prompt) :] for ids in answered] for prompt, answered in zip(prompts, talks)]
    if prompts[0] == prompts[1] or rests[0] != rests[1]:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} does not write answers after their questions, or writes a "
            "question otherwise beside another answer: there is no prompt that all answers go on from",
            "give another template with `chat_template`",
        )


def _seen_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids in whatever the template was seen to write."""
    return _find_seen_ids(tokenizer, template_of(tokenizer, {}), template_of(tokenizer, {"tools": [_TOOL]}))


@functools.lru_cache(maxsize=8)
def _find_seen_ids(tokenizer: "PreTrainedTokenizerBase", *templates: str) -> set[int]:
    seen: set[int] = set()
    for talk in (*PLAIN_TALKS, *_OTHER_TALKS):
        for answer in (None, assistant("Hello"), _THOUGHT, _CALLS):
            whole = talk.answered(answer) if answer else talk
            for template in set(templates):
                try:
                    text = render(tokenizer, template, whole, add_generation_prompt=answer is None)
                except BadRow:
                    continue
                seen.update(tokenize(tokenizer, text))
    return seen
