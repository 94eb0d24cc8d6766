"""A language model of this machine as a judge, through the sampler that policies are sampled with."""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.config import ModelSourceConfig
from denserl.data.bad_rows import BadRow
from denserl.data.batching import in_batches_of, pad_rows
from denserl.data.chat import encode_prompt, stop_ids
from denserl.data.fingerprints import file_fingerprint
from denserl.data.responses import Messages
from denserl.errors import UserError, require
from denserl.judging.contract import Decoding, Reply, Request
from denserl.judging.seeds import seed_of
from denserl.models.loading import load_config, load_policy, local_folder, match_embeddings
from denserl.models.positions import positions_of
from denserl.models.scoring import next_logprobs
from denserl.models.tokenizers import load_tokenizer
from denserl.rollouts.policy import PolicySampler
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

# Batches between two times that answers are handed out: some, since a batch is filled up as its rows end.
BATCHES_AT_ONCE = 4


class _Asked(NamedTuple):
    """A request as the model reads it."""

    number: int
    request: Request
    ids: list[int]


class LocalModel:
    """A Backend (see `contract.Backend`) of a causal language model. It is loaded when it is first asked.

    An answer is the same in any batch, and beside any others.

    Args:
        path: folder or hub name.
        source: how models are loaded. template: what its chat template is to be, if not its own (see `load_tokenizer`).
        batch_size: answers under way at a time.
    """

    def __init__(
        self,
        path: str,
        source: ModelSourceConfig,
        device: torch.device,
        dtype: str,
        batch_size: int,
        template: Mapping[str, Any] | None = None,
    ):
        self.name, self.source, self.device, self.dtype = path, source, device, dtype
        self.batch_size, self.template = batch_size, template
        # A sampler remembers how many answers memory has sufficed for.
        self.sampler_of = functools.cache(self._sampler)

    @functools.cached_property
    def version(self) -> str:
        """A fingerprint of its weights and of the chat template, with the date and the system prompt that it writes."""
        weights = file_fingerprint(local_folder(self.name), self.dtype)
        written = json.dumps(self.tokenizer.chat_template, sort_keys=True)
        return f"{weights[:16]}-{hashlib.sha256(written.encode()).hexdigest()[:8]}"

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.name, self.template, **self.source.tokenizer_source())

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        log.info("loading the judge %s", self.name)
        model = load_policy(self.name, self.dtype, **self.source.model_source())
        match_embeddings(model, self.tokenizer)
        return model.eval().to(self.device)

    def prompt_tokens(self, messages: Messages) -> int:
        return len(self._encode(messages))

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """The number of a request and its answer, batch by batch, those of like length together.

        Raises:
            UserError: the chat template refuses messages, or a question and its answer are longer than the model has positions.
        """
        asked = [_Asked(number, request, self._encode(request.messages)) for number, request in enumerate(requests)]
        self._check_room(asked)
        asked.sort(key=lambda one: (one.request.decoding, -len(one.ids)))
        for decoding, alike in groupby(asked, key=lambda one: one.request.decoding):
            rows = list(alike)
            for first in range(0, len(rows), BATCHES_AT_ONCE * self.batch_size):
                part = rows[first : first + BATCHES_AT_ONCE * self.batch_size]
                yield from zip((one.number for one in part), self._answers(part, decoding), strict=True)

    def _encode(self, messages: Messages) -> list[int]:
        try:
            return encode_prompt(self.tokenizer, messages)
        except BadRow as error:
            roles = " ".join(message["role"] for message in messages)
            raise UserError(
                f"the judge {self.name} cannot be shown messages of {roles}: {error}",
                "give a template of other messages with `judge_template`, or another judge",
            ) from error

    def _check_room(self, asked: Sequence[_Asked]) -> None:
        longest = max((len(one.ids) + one.request.decoding.max_new_tokens for one in asked), default=0)
        most = positions_of(load_config(self.name, **self.source.tokenizer_source()))
        require(
            most is None or longest <= most,
            f"the judge {self.name} has positions for {most} tokens; a question with its answer has up to {longest}",
            "lower `judge_max_new_tokens`, or give a judge that reads more",
        )

    def _answers(self, rows: Sequence[_Asked], decoding: Decoding) -> list[Reply]:
        found = self.sampler_of(decoding)(
            [one.ids for one in rows], [stream(seed_of(one.request, 63), Purpose.JUDGING) for one in rows]
        )
        firsts = self._firsts([one.ids for one in rows], decoding.top_logprobs)
        answers = zip(found.prompts, found.responses, found.ended, firsts, strict=True)
        return [
            Reply(self.tokenizer.decode(answer, skip_special_tokens=True), not ended, len(ids), len(answer), first)
            for ids, answer, ended, first in answers
        ]

    def _sampler(self, decoding: Decoding) -> PolicySampler:
        ends = stop_ids(self.tokenizer, self.model.generation_config)
        how = (decoding.max_new_tokens, decoding.temperature, decoding.top_p)
        return PolicySampler(lambda: self.model, ends, self.tokenizer.pad_token_id, *how, self.batch_size)

    def _firsts(self, prompts: list[list[int]], count: int) -> list[tuple[tuple[str, float], ...]]:
        """The `count` most likely first tokens of each answer as texts, and their log-probabilities at temperature 1."""
        if count == 0:
            return [()] * len(prompts)
        best = in_batches_of(min(self.batch_size, len(prompts)), lambda size: self._best(prompts, count, size))
        return [tuple((self.tokenizer.decode([token]), number) for token, number in row) for row in best]

    @torch.no_grad()
    def _best(self, prompts: list[list[int]], count: int, size: int) -> list[list[tuple[int, float]]]:
        rows: list[list[tuple[int, float]]] = []
        for first in range(0, len(prompts), size):
            part = prompts[first : first + size]
            ids, mask = pad_rows(part, self.tokenizer.pad_token_id), pad_rows([[1] * len(prompt) for prompt in part], 0)
            found = next_logprobs(self.model, ids.to(self.device), mask)
            numbers, tokens = found.topk(min(count, found.shape[1]))
            rows += [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), numbers.tolist(), strict=True)]
        return rows
