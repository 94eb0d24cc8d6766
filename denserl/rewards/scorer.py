"""Reward models on texts and token ids: the scores of whole responses, as the models were trained to read them.

A score is a function of a prompt and a response alone.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl import distributed
from denserl.config import ModelSourceConfig
from denserl.data.batching import in_length_batches, map_rows_in_batches
from denserl.data.chat import as_text, bos_id, encode_prompt, renders_alike
from denserl.data.responses import ALMOST_GONE, Encoded, Messages, Responses, encode, fit_length, of_ids, shortened
from denserl.data.templates import template_settings
from denserl.errors import UserError, require
from denserl.models.heads import stored_head
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.measured import measured
from denserl.models.positions import positions_of
from denserl.models.scoring import response_entropies
from denserl.models.tokenizers import check_same_tokenizer, load_tokenizer, same_tokenizer
from denserl.rewards.config import ReadConfig, ScorerConfig
from denserl.rewards.sources.base import ResponseScorer
from denserl.rewards.sources.build import load_members, source_of
from denserl.rewards.sources.reading import choose_segmenter, cut_settings, entropy_model
from denserl.rewards.sources.reward_model import RewardModelSource

log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """How one response is scored."""

    score: float
    segments: list[tuple[int, float]]  # the number of the token at which each ends, and its score
    tokens: list[float] | None  # the score at each token; None where a source gives one number a response


class Reasons(NamedTuple):
    """Why n responses have their scores: each is the sum over K attributes of rating x coefficient."""

    names: tuple[str, ...]  # of the attributes
    ratings: np.ndarray  # (n, K) fp64
    coefficients: np.ndarray  # (n, K)


class RewardScorer:
    """Scores of responses by reward models that share a tokenizer, read as they were trained.

    A response's score is made of its segments' scores as in training (`aggregate`), the segments cut by the entropies of the
    SFT model. Where the one score of a bandit model is read is decided by `read_place`, as everywhere. A sequence over
    `max_length` loses prompt tokens on the left; only a response that is longer by itself is cut, on the right. Any number of
    ranks share the work.

    Args:
        models: folders or hub names. how, weight: how several are combined (denserl/rewards/sources/reward_model.py).
        max_length: tokens of prompt and response together; no more than the models have positions for. score_tokens: padded
            tokens per batch.
        sft_model: whose entropies cut the responses; default: what the models' configs say.
        read: what is to be read otherwise than the models' configs say.
        trusted: names of segmenters that may run because a model names them.
        source: how models are loaded. template: their chat template, if not as it is saved (`set_template`).

    Raises:
        UserError: a model cannot be loaded, is no reward model, or does not go with the others.
    """

    is_model = True

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
        read: ReadConfig | None = None,
        trusted: Sequence[str | None] = (),
        source: ModelSourceConfig | None = None,
        template: Mapping[str, Any] | None = None,
    ):
        require(
            max_length >= 2,
            f"`max_length` is {max_length}",
            "let it be at least 2: one token of the prompt, one of the response",
        )
        read, source = read or ReadConfig(), source or ModelSourceConfig()
        self.how, self.weight, self.device, self.score_tokens = how, weight, device, score_tokens
        members = load_members(models, dtype, source, template=template)
        self.paths, self.tokenizer, self._read = members.paths, members.tokenizer, read
        for model in members.models:
            model.to(device)
        cut: dict[str, Any] = {"threshold": read.entropy_threshold, "segmenter": read.segmenter, "steps": read}
        cut["trusted"] = trusted
        self.segmenter = choose_segmenter(members.each, members.paths, self.tokenizer, **cut)
        stored = members.stored.sft_model
        self.sft_model = entropy_model(members.each, members.paths, stored, sft_model, self.segmenter)
        sft = [self._entropy_model(self.sft_model, dtype, source)] if self.sft_model is not None else []
        entropies = functools.partial(response_entropies, sft[0]) if sft else None
        self.max_length = within_positions(max_length, [*members.models, *sft])
        rewards = source_of(members, self.segmenter, how=how, weight=weight, read_at=read.read_at)
        self.agg_func = members.stored.agg_func
        self._scores = ResponseScorer(rewards, self.segmenter, entropies, self.agg_func)
        self._room = self.max_length - len(rewards.closing or ())
        self.shortened: dict[str, int] = {}  # of what was scored last
        self.reasons: Reasons | None = None  # of the same, by a single model that rates attributes
        self._names = stored_head(members.models[0].config, members.paths[0]).names
        self._last: tuple[Messages | None, list[int]] = (None, [])

    @classmethod
    def from_config(
        cls, models: Sequence[str], config: ScorerConfig, device: torch.device, dtype: str, **how: Any
    ) -> "RewardScorer":
        """A scorer with the settings of a command. how: its sft_model and read, where they are not the models' own."""
        return cls(
            models,
            **config.combination(),
            device=device,
            dtype=dtype,
            max_length=config.max_length,
            score_tokens=config.score_tokens,
            source=config,
            **how,
        )

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> np.ndarray:
        """Scores in the order given: (n,) fp64. BadRow where the chat template refuses a prompt or a response."""
        return self.score([self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)])

    def of_responses(self, responses: Responses, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """Scores of responses that a model of `tokenizer` wrote: (n,) fp64.

        They are of the very token ids where that tokenizer and its chat template are the scorer's.

        Raises:
            BadRow: with others, the scorer's chat template refuses a prompt or a response.
        """
        if same_tokenizer(self.tokenizer, tokenizer) and renders_alike(self.tokenizer, tokenizer):
            ids = zip(responses.prompt_ids, responses.response_ids, responses.ended, strict=True)
            return self.score([self.fit(*row) for row in ids])
        rows = zip(responses.prompts, responses.texts, responses.ended, strict=True)
        return self.score([self.encode(prompt, text, ended) for prompt, text, ended in rows])

    def encode(self, prompt: Messages, response: str | dict, ended: bool = True) -> Encoded:
        """Ids as they are scored (see `responses.encode`). BadRow where the chat template refuses the messages."""
        # Answers to one prompt follow one another.
        if prompt != self._last[0]:
            self._last = (prompt, encode_prompt(self.tokenizer, prompt))
        return encode(self.tokenizer, prompt, response, self._room, ended, self._last[1])

    def fit(self, prompt_ids: Sequence[int], response_ids: Sequence[int], ended: bool) -> Encoded:
        """Ids that are there already, as they are scored (see `responses.fit_length`)."""
        return fit_length(prompt_ids, response_ids, ended, self._room, bos_id(self.tokenizer))

    def score(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """The scores of what `encode` gave, in its order: (n,) fp64.

        Raises:
            UserError: a score is not finite.
        """
        self.shortened = shortened(encoded)
        _remark_on_cuts(self.shortened, self.paths, self.max_length)
        records, place = _distinct(encoded)
        mine = map_rows_in_batches(
            records.prompt_ids,
            records.response_ids,
            lambda rows: self._of_rows(records.rows(rows)),
            self.score_tokens,
            "scores",
        )
        found = {row: values[0] for row, values in mine.items()}
        merged = {row: told for share in distributed.gather_objects(found) for row, told in share.items()}
        told = np.array([merged[row] for row in place], dtype=np.float64)
        scores, parts = told[:, 0], told[:, 1:]
        self.reasons = Reasons(self._names, *np.split(parts, 2, axis=1)) if parts.size else None
        if not np.isfinite(scores).all():
            names = ", ".join(self.paths)
            count = int((~np.isfinite(scores)).sum())
            raise UserError(f"{names}: {count} of {len(scores)} scores are not finite", "try `dtype` fp32, or another model")
        return scores

    def read(self, encoded: Sequence[Encoded]) -> list[Reading]:
        """The scores of what `encode` gave, in its order, of segments and tokens too; by this rank alone."""
        records, place = _distinct(encoded)
        lengths = [len(prompt) + len(response) for prompt, response in zip(records.prompt_ids, records.response_ids)]
        first: dict[tuple, int] = {}
        groups = [first.setdefault(tuple(prompt), row) for row, prompt in enumerate(records.prompt_ids)]
        found = in_length_batches(lambda rows: self._readings(records.rows(rows)), lengths, self.score_tokens, groups)
        return [found[row] for row in place]

    def text(self, prompt: Messages, response: str) -> str:
        """What is scored, as the chat template renders it, before any cut."""
        return as_text(self.tokenizer, [*prompt, {"role": "assistant", "content": response}])

    def describe(self) -> dict[str, Any]:
        """How the scores came about, for a file of results."""
        ensemble = {"ensemble": self.how, "ensemble_weight": self.weight} if len(self.paths) > 1 else {}
        own = cut_settings(self.segmenter)
        read = {"read_at": self._read.read_at} if self._read.read_at else {}
        return {
            "scorer": self.paths if ensemble else self.paths[0],
            **ensemble,
            "entropy_threshold": self.segmenter.threshold,
            **own,
            **read,
            "agg_func": self.agg_func,
            "sft_model": self.sft_model,
            "max_length": self.max_length,
            "shortened": self.shortened,
            **{name: value for name, value in template_settings(self.tokenizer).items() if value is not None},
        }

    def _of_rows(self, responses: Responses) -> Tensor:
        """(B, 1, 1 + 2 K): the score in a response's first slot, ratings and coefficients behind it where there are some."""
        batch = responses.padded(self.tokenizer.pad_token_id, self.device)
        source, own, parts = self._scores.source, None, None
        if isinstance(source, RewardModelSource):
            own, parts = source.told(responses, batch)
        (_, segments), scores, _ = self._scores.read(responses, batch, own)
        whole = parts and self._scores.whole(parts, segments)
        return torch.cat([scores[:, None], *(whole or ())], 1)[:, None]

    def _readings(self, responses: Responses) -> list[Reading]:
        batch = responses.padded(self.tokenizer.pad_token_id, self.device)
        (values, segments), scores, own = self._scores.read(responses, batch)
        tokens = own.values.tolist() if own.values.ndim == 2 else [None] * len(scores)
        ends = [row.nonzero().flatten().tolist() for row in segments.ends.cpu()]
        return [
            Reading(score, list(zip(row_ends, row_values)), row_tokens and row_tokens[: len(ids)])
            for score, row_ends, row_values, row_tokens, ids in zip(
                scores.tolist(), ends, values.tolist(), tokens, responses.response_ids, strict=True
            )
        ]

    def _entropy_model(self, path: str, dtype: str, source: ModelSourceConfig) -> PreTrainedModel:
        """The language model whose entropies cut, checked to read the scorer's token ids."""
        check_same_tokenizer(self.tokenizer, load_tokenizer(path, **source.tokenizer_source()), path)
        model = load_policy(path, dtype, **source.model_source())
        match_embeddings(model, self.tokenizer)
        return model.eval().to(self.device)


def _distinct(encoded: Sequence[Encoded]) -> tuple[Responses, list[int]]:
    """The different ones, and for each of all its number among them.

    Equal answers are scored once: in two batches their scores could differ by rounding, and would not tie.
    """
    first: dict[tuple, int] = {}
    place = [first.setdefault((tuple(row.prompt_ids), tuple(row.response_ids), row.ended), len(first)) for row in encoded]
    return of_ids(*zip(*first, strict=True)), place


def _remark_on_cuts(count: dict[str, int], paths: Sequence[str], max_length: int) -> None:
    if count["prompts"] or count["responses"]:
        log.warning(
            "%s: of %d answers, %d have a shortened prompt (%d keep less than %d tokens of it), and %d are cut themselves: "
            "sequences over max_length %d",
            ", ".join(paths),
            count["answers"],
            count["prompts"],
            count["prompts_almost_gone"],
            ALMOST_GONE,
            count["responses"],
            max_length,
        )


def within_positions(max_length: int, models: Sequence[PreTrainedModel]) -> int:
    """The length, or that at which all of the models have positions, which mean the same in every row; logged if it is less."""
    bounds = [bound for model in models for bound in (positions_of(model.config), measured(model).longest)]
    most = min([max_length, *filter(None, bounds)])
    if most < max_length:
        log.info("sequences are cut at %d tokens: there are no more positions", most)
    return most
