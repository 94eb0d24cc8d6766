"""Conversations that a chat template has already written, as other libraries hand them over: their token ids.

Whoever has the messages uses chat.py, which keeps what people typed apart from the template's control tokens.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_prompt, stop_ids
from denserl.data.chat_format import PLAIN_TALKS, chat_format, tokenize
from denserl.data.rendering import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 80  # characters of a text that a message quotes


class RenderedIds(NamedTuple):
    """Token ids of a prompt and its answer."""

    prompt_ids: list[int]
    response_ids: list[int]  # with the token that ended it, if one did
    ended: bool


def encode_rendered(tokenizer: "PreTrainedTokenizerBase", prompt: str, query: str) -> RenderedIds:
    """Ids of a conversation that the tokenizer's own chat template wrote, or its decoder out of a policy's ids.

    What the template writes after the end of the turn is dropped; an answer without tokens is closed in any case.

    Args:
        prompt: up to where the answer begins. query: the prompt, and the answer with the end of its turn if it has one.

    Raises:
        BadRow: the query does not begin with the prompt, or another template wrote it.
    """
    chat = chat_format(tokenizer)
    opening = generation_prompt(tokenizer)
    if opening not in prompt:
        raise BadRow(
            f"the prompt is not of this model's chat template, which opens an answer with {opening!r}: it ends with "
            f"{prompt[-SHOWN:]!r}",
            "let the client write prompts by this model's chat template, or send 'messages' and 'responses' too",
        )
    prompt_ids = tokenize(tokenizer, prompt)
    if not query.startswith(prompt):
        # A decoder may write a prompt otherwise than the template did.
        prompt = tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False)
    if not query.startswith(prompt):
        raise BadRow(
            f"'query' does not begin with its prompt: {query[:SHOWN]!r}, and {prompt[:SHOWN]!r}",
            "send whole prompts: the client may cut them at its own longest length",
        )
    whole = tokenize(tokenizer, query)
    begins = whole[: len(prompt_ids)] == prompt_ids
    response = whole[len(prompt_ids) :] if begins else tokenize(tokenizer, query[len(prompt) :])
    response = _without_rest(tokenizer, response, chat.end_of_turn)
    if chat.bos is not None and prompt_ids[:1] != [chat.bos]:
        prompt_ids = [chat.bos, *prompt_ids]
    ended = bool(response) and response[-1] in stop_ids(tokenizer)
    return RenderedIds(prompt_ids, response or [chat.end_of_turn], ended)


def generation_prompt(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the template writes where an answer is to begin, without spaces around; empty where it writes nothing."""
    chat = chat_format(tokenizer)
    return _opening(tokenizer, chat.template) if chat.has_generation_prompt else ""


def is_own(tokenizer: "PreTrainedTokenizerBase", prompt: str, messages: list[dict] | None = None) -> bool:
    """Whether the tokenizer's own chat template wrote a prompt: by what opens an answer, or of a template that writes nothing
    there by the prompt's messages. Without these it is taken to be.
    """
    opening = generation_prompt(tokenizer)
    if opening or messages is None:
        return opening in prompt
    try:
        return encode_rendered(tokenizer, prompt, prompt).prompt_ids == encode_prompt(tokenizer, messages)
    except BadRow:  # messages that the template refuses
        return False


@functools.lru_cache(maxsize=8)
def _opening(tokenizer: "PreTrainedTokenizerBase", template: str) -> str:
    closed, opened = (render(tokenizer, template, PLAIN_TALKS[0], opens) for opens in (False, True))
    return opened.removeprefix(closed).strip()


def _without_rest(tokenizer: "PreTrainedTokenizerBase", response: list[int], end_of_turn: int) -> list[int]:
    """Without what stands behind the last end of turn, where that is but blank."""
    if end_of_turn not in response:
        return response
    last = len(response) - response[::-1].index(end_of_turn)
    return response if tokenizer.decode(response[last:]).strip() else response[:last]
