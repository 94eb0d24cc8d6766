"""Responses as scorers are given them: one record of texts and token ids, row by row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from denserl.data.batching import ResponseBatch, pad_responses
from denserl.data.chat import bos_id, encode_prompt, encode_response, truncate_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict]
ALMOST_GONE = 16  # tokens of a shortened prompt: hardly more than what opens the answer's turn


class Responses(NamedTuple):
    """B responses: lists of one length."""

    prompts: Sequence[Messages]
    texts: Sequence[str]  # without the end of turn
    prompt_ids: Sequence[Sequence[int]]
    response_ids: Sequence[Sequence[int]]  # with the token that ended it, if one did
    ended: Sequence[bool]  # with an end token, and not cut off at the longest length
    labels: Sequence[str] = ()  # what the prompts' rows say of the right answer; empty where nothing of it is read
    groups: Sequence[int] = ()  # number of the group of samples that each is of; empty where they are of none
    logprobs: Sequence[Sequence[float]] = ()  # of their tokens, as the sampler told them; empty where it told none

    def rows(self, numbers: Sequence[int]) -> "Responses":
        """Some of them."""
        return Responses._make([column[number] for number in numbers] if len(column) else () for column in self)

    def padded(self, pad_id: int, device: torch.device | str) -> ResponseBatch:
        """Their token ids and response mask as tensors."""
        return pad_responses(self.prompt_ids, self.response_ids, pad_id).to(device)


def of_ids(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], ended: Sequence[bool]) -> Responses:
    """The record for a source that reads token ids alone, as reward models do: without messages, and without texts."""
    count = len(response_ids)
    return Responses([[]] * count, [""] * count, prompt_ids, response_ids, ended)


class Encoded(NamedTuple):
    """One response as token ids."""

    prompt_ids: list[int]
    response_ids: list[int]
    ended: bool = True
    prompt_cut: int = 0  # tokens that the prompt lost
    response_cut: int = 0


def shortened(rows: Sequence[Encoded]) -> dict[str, int]:
    """How many responses there are, how many prompts and responses are shortened, and how many prompts almost to nothing."""
    cut = [row for row in rows if row.prompt_cut]
    return {
        "answers": len(rows),
        "prompts": len(cut),
        "prompts_almost_gone": sum(len(row.prompt_ids) < ALMOST_GONE for row in cut),
        "responses": sum(row.response_cut > 0 for row in rows),
    }


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Messages,
    response: str | dict,
    max_length: int,
    ended: bool = True,
    prompt_ids: list[int] | None = None,
) -> Encoded:
    """A response, a text or a message, as it is scored: closed with the end-of-turn token, unless cut off before it ended.

    A text may be empty, and is then closed in any case: there is no other token to read. Cut as by `fit_length`.
    prompt_ids: of the whole prompt, which spares encoding it again. BadRow where the chat template refuses the messages.
    """
    start = encode_prompt(tokenizer, prompt) if prompt_ids is None else prompt_ids
    answer = encode_response(tokenizer, prompt, response, start)
    return fit_length(start, answer if ended else answer[:-1] or answer, ended, max_length, bos_id(tokenizer))


def fit_length(
    prompt_ids: Sequence[int], response_ids: Sequence[int], ended: bool, max_length: int, bos: int | None = None
) -> Encoded:
    """A sequence over `max_length` without prompt tokens on its left; only a response that is longer by itself is cut.

    bos: an id that stays at the prompt's beginning (`chat.bos_id`).

    Its last kept token is then the one that ended it, if one did, so that it is read at its end.
    """
    prompt, (response,) = truncate_pair(list(prompt_ids), [list(response_ids)], max_length, 1, response_ids[-1], bos)
    lost = len(prompt_ids) - len(prompt), len(response_ids) - len(response)
    return Encoded(prompt, response if ended else list(response_ids[: len(response)]), ended, *lost)
