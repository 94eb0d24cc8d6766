"""What gives responses scores: reward models, one or several as one, and two that need no model.

A score is a function of a prompt and a response alone. What is made of the scores is not known here.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from denserl import distributed
from denserl.data.batching import ResponseBatch, map_responses
from denserl.data.chat import encode_prompt, encode_response, end_of_turn_id, truncate_pair
from denserl.errors import UserError
from denserl.models.loading import (
    check_same_tokenizer,
    load_policy,
    load_reward_model,
    load_tokenizer,
    match_embeddings,
)
from denserl.models.scoring import response_entropies
from denserl.rewards.ensemble import ResponseScorer, RewardSource, common_settings, stored_moments
from denserl.segmentation import BANDIT_THRESHOLD

log = logging.getLogger(__name__)

Prompt = list[dict]
Scores = Callable[[Sequence[Prompt], Sequence[str]], np.ndarray]
WORDS = ("length", "random")


def length_scores(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    """The characters of each response: (n,) fp64."""
    return np.array([len(response) for response in responses], dtype=np.float64)


def random_scores(seed: int) -> Scores:
    """Scores drawn evenly from [0, 1), the same for the same seed and number of responses."""
    return lambda prompts, responses: np.random.default_rng(seed).random(len(responses))


class WordScorer:
    """`length` or `random` in the place of a reward model, with nothing to encode."""

    def __init__(self, word: str, seed: int):
        self.word = word
        self.scores = {"length": length_scores, "random": random_scores(seed)}[word]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        return self.scores(prompts, responses)

    def encode(self, prompt: Prompt, response: str) -> tuple[Prompt, str]:
        """Prompt and response as they are."""
        return prompt, response

    def score(self, encoded: Sequence[tuple[Prompt, str]]) -> np.ndarray:
        """The scores of what `encode` gave: (n,) fp64."""
        return self.scores([prompt for prompt, _ in encoded], [response for _, response in encoded])

    def text(self, prompt: Prompt, response: str) -> str:
        """What is scored."""
        return response

    def describe(self) -> dict:
        """How the scores came about, for a file of results."""
        return {"scorer": self.word}


class Encoded(NamedTuple):
    """Token ids of a prompt and of the response to it, read at its last token where it is read once."""

    prompt: list[int]
    response: list[int]


class RewardScorer:
    """Scores of responses by reward models that share a tokenizer, at the level they were trained for.

    A response's score is made of its segments' scores as in training (`aggregate`), the segments cut by the entropies of the
    SFT model. A model whose config names no threshold, a classifier from elsewhere, is read as stock classes read it: at the
    last token that the chat template writes. A sequence over `max_length` loses prompt tokens on the left; only a response
    that is longer by itself is cut, on the right. Any number of ranks share the work.

    Args:
        models: folders or hub names. how, weight: how several are combined (denserl/rewards/ensemble.py).
        max_length: tokens of prompt and response together; no more than the models have positions for. score_tokens: padded
            tokens per batch.
        sft_model, entropy_threshold: default: what the models' configs say.
        source: further arguments of the loading of models, such as trust_remote_code.

    Raises:
        UserError: a model cannot be loaded, is no reward model, or does not go with the others.
    """

    def __init__(
        self,
        models: Sequence[str],
        *,
        how: str = "mean",
        weight: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: str = "fp32",
        max_length: int = 2048,
        score_tokens: int = 16384,
        sft_model: str | None = None,
        entropy_threshold: float | None = None,
        source: dict | None = None,
    ):
        if max_length < 2:
            raise UserError(f"max_length is {max_length}", "let it be at least 2: one token of the prompt, one of the response")
        source = source or {}
        self.tokenizer_source = {name: value for name, value in source.items() if name == "trust_remote_code"}
        self.paths, self.how, self.weight = list(models), how, weight
        self.device, self.score_tokens = device, score_tokens
        self._last_prompt: tuple[Prompt | None, list[int]] = (None, [])
        self.tokenizer = load_tokenizer(models[0], **self.tokenizer_source)
        members = [self._prepared(path, load_reward_model(path, dtype, **source)) for path in models]
        configs = [member.config for member in members]
        stored = common_settings(configs, models)
        self.threshold = _threshold(entropy_threshold, [common_settings([c], [p]) for c, p in zip(configs, models)], models)
        self.sft_model = _sft_model(sft_model, stored.sft_model, self.threshold, models)
        entropies = None
        if self.sft_model is not None:
            sft = self._prepared(self.sft_model, load_policy(self.sft_model, dtype, **source))
            configs = [*configs, sft.config]
            entropies = functools.partial(response_entropies, sft)
        self.max_length = _within_positions(max_length, configs)
        rewards = RewardSource(members, stored_moments([member.config for member in members], models), how, weight)
        self.agg_func = stored.agg_func
        self._scores = ResponseScorer(rewards, self.threshold, entropies, self.agg_func)
        is_stock = len(configs) == 1 and stored.entropy_threshold is None and entropy_threshold is None
        self._closing = _after_the_turn(self.tokenizer) if is_stock else []

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Scores in the order given: (n,) fp64. BadRow where the chat template refuses a prompt or a response."""
        return self.score([self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)])

    def encode(self, prompt: Prompt, response: str) -> Encoded:
        """Ids as they are scored; a response may be empty. BadRow where the chat template refuses the messages."""
        start = self._prompt_ids(prompt)
        answer = encode_response(self.tokenizer, prompt, response, start)
        room = self.max_length - len(self._closing)
        start, (answer,) = truncate_pair(start, [answer], room, 1, end_of_turn_id(self.tokenizer))
        return Encoded(start, answer + self._closing)

    def score(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """The scores of what `encode` gave, in its order: (n,) fp64.

        Raises:
            UserError: a score is not finite.
        """
        # What stands there several times gets one score: in two batches it would get two, a rounding apart, and no tie.
        first: dict[tuple, int] = {}
        place = [first.setdefault((tuple(row.prompt), tuple(row.response)), len(first)) for row in encoded]
        mine = map_responses(
            [prompt for prompt, _ in first],
            [response for _, response in first],
            self._as_slots,
            pad_id=self.tokenizer.pad_token_id,
            max_tokens=self.score_tokens,
            device=self.device,
            progress="scores",
        )
        found = {row: float(values[0]) for row, values in mine.items()}
        merged = {row: score for share in distributed.gather_objects(found) for row, score in share.items()}
        scores = np.array([merged[row] for row in place], dtype=np.float64)
        if not np.isfinite(scores).all():
            names = ", ".join(self.paths)
            count = int((~np.isfinite(scores)).sum())
            raise UserError(f"{names}: {count} of {len(scores)} scores are not finite", "try --dtype fp32, or another model")
        return scores

    def text(self, prompt: Prompt, response: str) -> str:
        """What is scored, as the chat template renders it, before any cut."""
        messages = [*prompt, {"role": "assistant", "content": response}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False)

    def describe(self) -> dict:
        """How the scores came about, for a file of results."""
        ensemble = {"ensemble": self.how, "ensemble_weight": self.weight} if len(self.paths) > 1 else {}
        return {
            "scorer": self.paths if ensemble else self.paths[0],
            **ensemble,
            "entropy_threshold": self.threshold,
            "agg_func": self.agg_func,
            "sft_model": self.sft_model,
            "max_length": self.max_length,
        }

    def _prepared(self, path: str, model):
        """A model that was loaded, checked to read the scorer's token ids, ready to be used."""
        if path != self.paths[0]:
            check_same_tokenizer(self.tokenizer, load_tokenizer(path, **self.tokenizer_source), path)
        match_embeddings(model, self.tokenizer)
        return model.eval().to(self.device)

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt; those of the last one are kept, since answers to one prompt follow one another."""
        last, ids = self._last_prompt
        if prompt != last:
            ids = encode_prompt(self.tokenizer, prompt)
            self._last_prompt = (prompt, ids)
        return ids

    def _as_slots(self, batch: ResponseBatch) -> Tensor:
        """(B, 1): a response's score in its first slot."""
        return self._scores(batch)[:, None]


def _after_the_turn(tokenizer) -> list[int]:
    """The ids of what the chat template writes after the token that ends the assistant's turn, such as a line break."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return ids[len(ids) - ids[::-1].index(end_of_turn_id(tokenizer)) :]


def _within_positions(max_length: int, configs: list) -> int:
    """The length, or that which all of the models have positions for."""
    positions = [getattr(config.get_text_config(), "max_position_embeddings", None) for config in configs]
    most = min([max_length, *filter(None, positions)])
    if most < max_length:
        log.info("sequences are cut at %d tokens: there are no more positions", most)
    return most


def _threshold(given: float | None, stored: list, models: Sequence[str]) -> float:
    """The threshold that is given, or the one that the models' configs agree on; of none, the bandit level's."""
    if given is not None:
        return given
    each = [BANDIT_THRESHOLD if settings.entropy_threshold is None else settings.entropy_threshold for settings in stored]
    if len(set(each)) > 1:
        found = ", ".join(f"{path}: {threshold:g}" for path, threshold in zip(models, each))
        raise UserError(f"the reward models have different entropy thresholds ({found})", "choose one with --entropy_threshold")
    return each[0]


def _sft_model(given: str | None, stored: str | None, threshold: float, models: Sequence[str]) -> str | None:
    """The model whose entropies cut the responses; None at the bandit level, which cuts nothing."""
    if threshold >= BANDIT_THRESHOLD:
        if given is not None:
            found = f"--sft_model {given} has no effect at the bandit level (threshold {threshold:g}): nothing is cut"
            raise UserError(found, "leave --sft_model out, or give an --entropy_threshold")
        return None
    if given is None and stored is None:
        found = f"{', '.join(models)}: the configs do not say, or do not agree on, the sft_model whose entropies cut responses"
        raise UserError(found, "add --sft_model")
    return given or stored
