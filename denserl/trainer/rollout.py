"""Rollouts: prompts in, responses with end flags out. `generate` stands behind it; another sampler may take its place.

Log-probabilities of the responses come from the policy's own training forward, so that the first ratio is exactly one.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from denserl.data.batching import in_halves, pad_rows

Stream = tuple[int, ...]


class Rollouts(NamedTuple):
    """Prompts and the responses sampled for them, as token ids; a response keeps its end token, and has one if `ended`."""

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: list[bool]


# A stream names the random numbers of one response: the same stream, the same response, on any rank and in any batch.
Sampler = Callable[[list[list[int]], Sequence[Stream]], Rollouts]


class InverseCDF(LogitsProcessor):
    """Picks one token a row by inverse transform sampling: the first whose cumulative probability exceeds the row's number.

    Args:
        uniforms: (B, T) in [0, 1), a number for each row and new token.
        prompt_width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: Tensor, prompt_width: int):
        self.uniforms, self.prompt_width = uniforms, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = scores.softmax(1, dtype=torch.float64).cumsum(1)
        number = self.uniforms[:, input_ids.shape[1] - self.prompt_width, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, number, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


@dataclass(frozen=True)
class GenerateSampler:
    """Samples with `transformers`' generate.

    model: returns the policy as it is now, an ordinary causal language model in evaluation mode.
    """

    model: Callable[[], PreTrainedModel]
    stop_ids: list[int]
    pad_id: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64

    def __call__(self, prompts: list[list[int]], streams: Sequence[Stream]) -> Rollouts:
        responses, ended, model, rows = [], [], self.model(), list(zip(prompts, streams, strict=True))
        for first in range(0, len(rows), self.batch_size):
            for tokens in in_halves(lambda part: self._generate(model, part), rows[first : first + self.batch_size]):
                stops = torch.isin(tokens, torch.tensor(self.stop_ids, device=tokens.device))
                # Up to the first end token, or everything: what `generate` pads a finished row with is not looked at.
                lengths = torch.where(stops.any(1), stops.long().argmax(1) + 1, tokens.shape[1])
                responses += [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
                ended += stops.any(1).tolist()
        return Rollouts(prompts, responses, ended)

    def _generate(self, model, rows: list[tuple[list[int], Stream]]) -> Tensor:
        reversed_ids = pad_rows([prompt[::-1] for prompt, _ in rows], self.pad_id)
        reversed_mask = pad_rows([[1] * len(prompt) for prompt, _ in rows], 0)
        uniforms = np.stack([np.random.default_rng(stream).random(self.max_new_tokens) for _, stream in rows])
        pick = InverseCDF(torch.from_numpy(uniforms).to(model.device), reversed_ids.shape[1])
        with _plain_settings(model):
            output = model.generate(
                input_ids=reversed_ids.flip(1).to(model.device),
                attention_mask=reversed_mask.flip(1).to(model.device),
                # Greedy over what the last processor leaves, which is the token that was drawn.
                do_sample=False,
                logits_processor=LogitsProcessorList([*self._warpers(), pick]),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.stop_ids,
                pad_token_id=self.pad_id,
                use_cache=True,
                synced_gpus=False,
            )
        return output[:, reversed_ids.shape[1] :]

    def _warpers(self) -> list[LogitsProcessor]:
        temperature = [TemperatureLogitsWarper(float(self.temperature))] if self.temperature != 1 else []
        return temperature + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else [])


@contextlib.contextmanager
def _plain_settings(model):
    """The model's own generation settings set aside: a repetition penalty, say, would bend the distribution that is trained."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = kept


def prompt_rows(first: int, count: int, total: int, seed: int) -> list[int]:
    """Rows first .. first + count of the endless stream that passes over `total` prompts in a new order each time.

    The stream is a function of the seed alone, so that a resumed run needs only its place.
    """
    rows = []
    while len(rows) < count:
        episode, offset = divmod(first + len(rows), total)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed + episode))
        rows += order[offset : offset + count - len(rows)].tolist()
    return rows


def step_table(rows: int, per_step: int, stream: Stream) -> np.ndarray:
    """Which of `rows` responses each optimiser step takes: (rows / per_step, per_step), every row once, in random order.

    Column c holds rows c, c + per_step, ... in an order of its own, so that a rank that holds some columns holds them in
    every step: steps are made of the same rows whatever the number of ranks, and no row changes its rank.
    """
    blocks = np.tile(np.arange(rows // per_step)[:, None], (1, per_step))
    return np.random.default_rng(stream).permuted(blocks, axis=0) * per_step + np.arange(per_step)
