"""The contract of a sampler: prompts in, responses with end flags out. Another engine may take the place of the own decoder.

Log-probabilities of the responses come from the policy's own training forward, so that the first ratio is exactly one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Of the random numbers of one response (`default_rng(stream)`): the same stream, the same response, on any rank, in any batch.
Stream = np.random.SeedSequence


class Rollouts(NamedTuple):
    """Prompts and the responses sampled for them, as token ids; a response keeps its end token, and has one if `ended`."""

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: list[bool]
    # Of the responses' tokens, as the sampler itself has computed them at its temperature; empty where it tells none.
    logprobs: list[list[float]] = []


Sampler = Callable[[list[list[int]], Sequence[Stream]], Rollouts]
