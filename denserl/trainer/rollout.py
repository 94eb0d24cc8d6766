"""Rollouts: prompts in, responses with end flags out. `generate` stands behind it; another sampler may take its place.

Log-probabilities of the responses come from the policy's own training forward, so that the first ratio is exactly one.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from denserl.data.batching import pad_rows


class Rollouts(NamedTuple):
    """Prompts and the responses sampled for them, as token ids; a response keeps its end token, and has one if `ended`."""

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: list[bool]


Sampler = Callable[[list[list[int]]], Rollouts]


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

    def __call__(self, prompts: list[list[int]]) -> Rollouts:
        responses, ended, model = [], [], self.model()
        for first in range(0, len(prompts), self.batch_size):
            tokens = self._generate(model, prompts[first : first + self.batch_size])
            stops = torch.isin(tokens, torch.tensor(self.stop_ids, device=tokens.device))
            # Up to the first end token, or everything: what `generate` pads a finished row with is not looked at.
            lengths = torch.where(stops.any(1), stops.long().argmax(1) + 1, tokens.shape[1])
            rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
            responses += [row[:length] for row, length in rows]
            ended += stops.any(1).tolist()
        return Rollouts(prompts, responses, ended)

    def _generate(self, model, prompts: list[list[int]]) -> torch.Tensor:
        reversed_ids = pad_rows([prompt[::-1] for prompt in prompts], self.pad_id)
        reversed_mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0)
        with _plain_settings(model):
            output = model.generate(
                input_ids=reversed_ids.flip(1).to(model.device),
                attention_mask=reversed_mask.flip(1).to(model.device),
                do_sample=True,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=0,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.stop_ids,
                pad_token_id=self.pad_id,
                use_cache=True,
                synced_gpus=False,
            )
        return output[:, reversed_ids.shape[1] :]


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
