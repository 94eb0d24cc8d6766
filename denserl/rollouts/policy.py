"""Responses sampled from the policy as it is: by the own decoder, or by transformers' `generate` where it cannot be packed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from denserl.data.batching import in_batches_of, pad_rows
from denserl.data.chat import stop_ids
from denserl.errors import UserError
from denserl.models.decoding import Decoder, plain_settings
from denserl.models.measured import Measured, check_longest, measured, stock_model
from denserl.models.packing import is_packed
from denserl.rollouts.base import Rollouts, Stream
from denserl.rollouts.config import SamplingConfig

# A prompt, and the random numbers of its response.
Row = tuple[list[int], Stream]
# Model, rows, numbers of those that are wanted, how many at a time, and (rows, tokens) for what is drawn; yields the numbers of
# rows that have all their tokens there.
Sample = Callable[[PreTrainedModel, list[Row], list[int], int, Tensor], Iterator[list[int]]]
# New rows join when this share of the batch is left under way.
REFILL = 0.75


class Pace(NamedTuple):
    """How rows leave that have ended. Until then they are given tokens that nobody reads."""

    tokens: int  # the device is asked after so many of them which rows have ended
    share: float  # they leave where no more than this share of the rows goes on


# Each leave costs a GPU a recording of its step (models/recording.py), and each question its head start.
EVERY_TOKEN, PACES = Pace(1, 1.0), {"cuda": Pace(8, REFILL)}
# Tokens whose probabilities are added up at a time. Time of 64 draws without parts, against it (one thread): 2.1 for a
# vocabulary of 8 192, 6.5 for one of 50 257, 1.8 for one of 128 256.
PART = 128
# A temperature below this is none: the most likely token is taken.
GREEDY_BELOW = 1e-4


def pick(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row by inverse transform sampling: the first whose cumulative probability exceeds the row's number.

    Sums are in fp64; of all PART tokens at a time, and of single tokens in the one part that has the token.

    Args:
        scores: (B, V) logits. uniforms: (B,) fp64 in [0, 1).
    """
    weights, last = scores.softmax(1), scores.shape[1] - 1
    full = scores.shape[1] // PART * PART
    sums = [weights[:, :full].unflatten(1, (-1, PART)).sum(2, dtype=torch.float64)]
    if full < scores.shape[1]:
        sums.append(weights[:, full:].sum(1, keepdim=True, dtype=torch.float64))
    parts = torch.cat(sums, 1)
    ends = parts.cumsum(1)
    number = uniforms[:, None] * ends[:, -1:]
    part = _first_above(ends, number)
    places = part * PART + torch.arange(PART, device=scores.device)
    within = weights.gather(1, places.clamp(max=last)).cumsum(1, dtype=torch.float64)
    return (part * PART + _first_above(within, number - (ends - parts).gather(1, part))).clamp(max=last).squeeze(1)


def _first_above(cumulative: Tensor, number: Tensor) -> Tensor:
    """Where cumulative weights first exceed a number: at a weight above 0, also where rounding has put it outside of them."""
    whole = cumulative[:, -1:]
    number = number.clamp(min=0).minimum(whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, number, right=True).clamp(max=cumulative.shape[1] - 1)


class InverseCDF(LogitsProcessor):
    """`pick` for generate, which is left nothing else to choose.

    Args:
        uniforms: (B, T) in [0, 1), a number for each row and new token.
        prompt_width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: Tensor, prompt_width: int):
        self.uniforms, self.prompt_width = uniforms, prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = pick(scores, self.uniforms[:, input_ids.shape[1] - self.prompt_width])
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@dataclass
class PolicySampler:
    """Samples responses from the policy as it is.

    Args:
        model: returns the policy as it is now, an ordinary causal language model in evaluation mode.
        temperature: below GREEDY_BELOW the most likely token is taken, and no random number used.
        batch_size: rows under way at a time; fewer from where memory does not suffice for so many.
    """

    model: Callable[[], PreTrainedModel]
    stop_ids: list[int]
    pad_id: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 64

    @classmethod
    def from_config(
        cls, config: SamplingConfig, model: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
    ) -> "PolicySampler":
        """A sampler of the policy that `model` returns, which ends responses where its template and settings say."""
        return cls(
            model,
            stop_ids(tokenizer, model().generation_config),
            tokenizer.pad_token_id,
            config.max_new_tokens,
            config.temperature,
            config.top_p,
            config.sample_batch_size,
        )

    def __call__(self, prompts: list[list[int]], streams: Sequence[Stream]) -> Rollouts:
        if not prompts:
            return Rollouts([], [], [])
        model = self.model()
        found = measured(model) or Measured()
        if found.unsampled:
            raise UserError(
                f"{type(stock_model(model)).__name__} cannot be sampled from ({found.unsampled})",
                "use another model; denserl check-model PATH says what was measured of one",
            )
        check_longest(model, max(map(len, prompts)) + self.max_new_tokens)
        # Rows of like length are decoded together.
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        rows = [(prompts[row], streams[row]) for row in order]
        with torch.no_grad():
            tokens = self._sampled(model, rows, self._decode if is_packed(model) and not found.generates else self._generate)
        stops = torch.isin(tokens, torch.tensor(self.stop_ids, device=tokens.device))
        # Up to the first end token, or everything: what stands after it is not looked at.
        lengths = torch.where(stops.any(1), stops.long().argmax(1) + 1, tokens.shape[1]).tolist()
        ended, found, place = stops.any(1).tolist(), tokens.tolist(), np.argsort(order)
        return Rollouts(prompts, [found[i][: lengths[i]] for i in place], [ended[i] for i in place])

    def _sampled(self, model: PreTrainedModel, rows: list[Row], sample: Sample) -> Tensor:
        """(rows, max_new_tokens) tokens. Where memory does not suffice, rows that are not done begin anew, fewer at a time."""
        # With a place for what is drawn for rows that have ended, while they have not left.
        tokens = torch.full((len(rows), self.max_new_tokens + 1), self.pad_id, device=model.device)
        done: set[int] = set()

        def attempt(size: int) -> int:
            for ended in sample(model, rows, [row for row in range(len(rows)) if row not in done], size, tokens):
                done.update(ended)
            return size

        size = min(self.batch_size, len(rows))
        fitted = in_batches_of(size, attempt)
        if fitted < size:
            self.batch_size = fitted
        return tokens[:, :-1]

    def _decode(
        self, model: PreTrainedModel, rows: list[Row], waiting: list[int], size: int, tokens: Tensor
    ) -> Iterator[list[int]]:
        """Rows that have ended leave, and others take their places."""
        decoder, device, pace = Decoder(model, self.max_new_tokens), model.device, PACES.get(model.device.type, EVERY_TOKEN)
        stop_ids, warpers = torch.tensor(self.stop_ids, device=device), LogitsProcessorList(self._warpers())
        uniforms = pad(self._uniforms(rows).to(device), (0, 1))
        # Of the rows that are held: their numbers, how many tokens they have, and whether they go on; the logits of their next
        # tokens; and on the host their numbers, with the step at which each joined.
        held = torch.zeros(0, dtype=torch.long, device=device)
        count, going, logits = held, held.bool(), []
        joined: list[tuple[int, int]] = []
        alive = step = 0
        while waiting or joined:
            if waiting and alive <= REFILL * size:
                new, waiting = waiting[: size - alive], waiting[size - alive :]
                logits.append(decoder.admit([rows[row][0] for row in new]))
                held, count = torch.cat([held, held.new_tensor(new)]), torch.cat([count, count.new_zeros(len(new))])
                going, alive = torch.cat([going, going.new_ones(len(new))]), alive + len(new)
                joined += [(row, step) for row in new]
            scores = torch.cat(logits)
            token = scores.argmax(1) if self._is_greedy else pick(warpers(None, scores), uniforms[held, count])
            token = torch.where(going, token, self.pad_id)
            tokens[held, count] = token
            count, step = count + going, step + 1
            going = going & ~torch.isin(token, stop_ids) & (count < self.max_new_tokens)
            at_limit = step - joined[0][1] == self.max_new_tokens
            if at_limit or step % pace.tokens == 0:
                left = going.nonzero().squeeze(1)
                alive = len(left)
                # While others wait, no later than these join: no more rows than `size` are held.
                if alive < len(joined) and (at_limit or alive <= pace.share * (size if waiting else len(joined))):
                    stay = left.tolist()
                    decoder.keep(stay)
                    held, count, going, token = held[left], count[left], going[left], token[left]
                    before, joined = joined, [joined[place] for place in stay]
                    yield [row for row, _ in set(before) - set(joined)]
            logits = [decoder.step(token)] if joined else []

    def _generate(
        self, model: PreTrainedModel, rows: list[Row], waiting: list[int], size: int, tokens: Tensor
    ) -> Iterator[list[int]]:
        """With transformers' `generate`, for models that cannot be packed."""
        for first in range(0, len(waiting), size):
            batch = waiting[first : first + size]
            part = self._generate_batch(model, [rows[row] for row in batch])
            tokens[batch, : part.shape[1]] = part
            yield batch

    def _generate_batch(self, model: PreTrainedModel, rows: list[Row]) -> Tensor:
        reversed_ids = pad_rows([prompt[::-1] for prompt, _ in rows], self.pad_id)
        reversed_mask = pad_rows([[1] * len(prompt) for prompt, _ in rows], 0)
        choose = [] if self._is_greedy else [InverseCDF(self._uniforms(rows).to(model.device), reversed_ids.shape[1])]
        with plain_settings(model):
            output = model.generate(
                input_ids=reversed_ids.flip(1).to(model.device),
                attention_mask=reversed_mask.flip(1).to(model.device),
                # Greedy over what the last processor leaves, which is the token that was drawn, if one was.
                do_sample=False,
                logits_processor=LogitsProcessorList([*self._warpers(), *choose]),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.stop_ids,
                pad_token_id=self.pad_id,
                use_cache=True,
                synced_gpus=False,
            )
        return output[:, reversed_ids.shape[1] :]

    def _uniforms(self, rows: list[Row]) -> Tensor:
        return torch.from_numpy(np.stack([np.random.default_rng(stream).random(self.max_new_tokens) for _, stream in rows]))

    @property
    def _is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def _warpers(self) -> list[LogitsProcessor]:
        if self._is_greedy:
            return []
        temperature = [TemperatureLogitsWarper(float(self.temperature))] if self.temperature != 1 else []
        return temperature + ([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else [])
