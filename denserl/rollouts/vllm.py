"""Responses sampled by servers of vLLM, with the policy's weights as they are: token ids in, token ids out.

One request asks for one response, with a seed drawn from the response's own stream, so that a response depends on neither
batch, rank nor server, but for the rounding of logits.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from denserl import distributed
from denserl.http import Calls
from denserl.rollouts.base import Rollouts, Stream
from denserl.rollouts.servers import Servers, fault, shown
from denserl.rollouts.sync import Sync

SEED_BITS = 63
ROUNDING = 1e-3  # nats by which a log-probability may be above 0


class Decoding(NamedTuple):
    """How responses are sampled, and what they are made of. vocabulary: token ids that the policy knows."""

    stop_ids: list[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    vocabulary: int


class Response(NamedTuple):
    """Token ids, whether they close with an end token, and their log-probabilities."""

    ids: list[int]
    ended: bool
    logprobs: list[float]


class VLLMSampler:
    """Samples responses by servers, which it brings to the policy's present weights.

    Args:
        open: returns the servers, at the first call. Collective.
        sync: brings them to the weights.
        in_flight: requests of this rank under way at a time.
        sleep: let the servers free their memory between two calls.
    """

    def __init__(self, open: Callable[[], Servers], sync: Sync, decoding: Decoding, in_flight: int, sleep: bool):
        self.open, self.sync, self.decoding, self.in_flight, self.sleep = open, sync, decoding, in_flight, sleep
        self.servers: Servers | None = None
        self.run = uuid.uuid4().hex[:8]

    def __call__(self, prompts: list[list[int]], streams: Sequence[Stream]) -> Rollouts:
        """Collective.

        Raises:
            UserError: a server cannot be reached, given the weights, or believed.
        """
        version = self._prepare()
        urls, rank, world = self.servers.urls, distributed.rank(), distributed.world_size()
        # The response's number among those of all ranks deals it to a server.
        servers = [urls[(rank + world * i) % len(urls)] for i in range(len(prompts))]
        rows = list(zip(servers, prompts, streams, strict=True))
        found: list[Response] = [Response([], False, [])] * len(rows)

        def sample() -> None:
            for number, response in Calls(lambda row, _: self._ask(version, *row), rows, self.in_flight).answers():
                found[number] = response

        # Ranks end together, however long one of them takes, and whatever befalls it.
        distributed.in_own_time(sample)
        if self.sleep:
            distributed.by_rank_0(lambda: self.servers.post_all("/sleep?level=1"))
        known = self.decoding.top_p == 1
        ids, ended, logprobs = map(list, zip(*found, strict=True)) if found else ([], [], [])
        return Rollouts(prompts, ids, ended, logprobs if known else [])

    def _prepare(self) -> str:
        """Servers that are awake and have the weights of now; returns the name of these. Collective."""
        if self.servers is None:
            self.servers = self.open()
        if self.sleep:
            distributed.by_rank_0(lambda: self.servers.post_all("/wake_up"))
        version, stale = distributed.by_rank_0(self._version)
        if stale:
            self.sync(self.servers, version)
        return version

    def _version(self) -> tuple[str, bool]:
        """The name of the weights of now, and whether a server has others."""
        version = f"{self.run}-{self.sync.weights.version()}"
        said = [self.servers.get(url, "/weight_info") for url in self.servers.urls]
        return version, any(one != {"weight_version": version} for one in said)

    def _ask(self, version: str, url: str, prompt: list[int], stream: Stream) -> Response:
        said = self.servers.post(url, "/inference/v1/generate", body_of(prompt, seed_of(stream), self.decoding))
        try:
            return read_response(said, self.decoding, version)
        except ValueError as error:
            raise fault(url, f"{error}: it answered {shown(said)}") from error


def seed_of(stream: Stream) -> int:
    """A seed that is drawn from a stream of random numbers."""
    return int(np.random.default_rng(stream).integers(2**SEED_BITS, dtype=np.uint64))


def body_of(prompt: list[int], seed: int, decoding: Decoding) -> dict:
    """What is asked: every setting that would else be the server's, or its model's."""
    return {
        "token_ids": prompt,
        "sampling_params": {
            "seed": seed,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": decoding.stop_ids,
            "ignore_eos": True,  # but for those
            "logprobs": 0,
            "detokenize": False,
        },
    }


def read_response(said: Any, decoding: Decoding, version: str) -> Response:
    """The response in an answer. ValueError where it is none that these weights can have given."""
    try:
        (choice,) = said["choices"]
        ids, content, why = choice["token_ids"], choice["logprobs"]["content"], choice["finish_reason"]
        told = [(one["token_id"], one["logprob"]) for one in content]
        versions = {span["version"] for span in choice["weight_versions"]}
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError("gave no response with log-probabilities and the version of its weights") from error
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < decoding.vocabulary for token in ids):
        raise ValueError(f"gave tokens that the policy does not know, which has {decoding.vocabulary}")
    if not 0 < len(ids) <= decoding.max_new_tokens:
        raise ValueError(f"gave {len(ids)} tokens; asked for were 1 to {decoding.max_new_tokens}")
    ended = ids[-1] in decoding.stop_ids
    if not set(ids[:-1]).isdisjoint(decoding.stop_ids) or not (ended or len(ids) == decoding.max_new_tokens):
        raise ValueError(f"gave a response that goes on after its end, or ends before it, for the reason {why!r}")
    if [token for token, _ in told] != ids or not all(_is_logprob(number) for _, number in told):
        raise ValueError("gave log-probabilities that are not those of its tokens")
    if versions != {version}:
        raise ValueError(f"sampled with weights {', '.join(map(repr, sorted(map(str, versions))))} in the place of {version!r}")
    return Response(ids, ended, [float(number) for _, number in told])


def _is_logprob(number: Any) -> bool:
    return isinstance(number, (int, float)) and -float("inf") < number <= ROUNDING
