"""The sources of rewards that options name, loaded with what they read: as train-ppo has them, without a policy."""

import dataclasses
import functools
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.batching import ResponseBatch
from denserl.errors import require
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.scoring import response_entropies, response_logprobs_entropies
from denserl.models.tokenizers import check_same_tokenizer, load_tokenizer
from denserl.rewards.scorer import within_positions
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.build import Members, load_members
from denserl.rewards.sources.implicit import ImplicitSource, LogProbs
from denserl.rewards.sources.pair_source import PairSource
from denserl.rewards.sources.reading import choose_sft_model, response_text
from denserl.rewards.sources.reward_model import PrefixDifferences, RewardModelSource
from denserl.rewards.sources.step_model import StepSource
from denserl.rewards.sources.texts import TextSource
from denserl.scored.config import ScoreConfig
from denserl.scored.results import SourceInfo
from denserl.scored.tokens import Characters, ModelTokens, Tokens
from denserl.terminal import quiet_libraries
from denserl.trainer.ppo_rewards import PaidSource, Rewards
from denserl.trainer.ppo_sources import Loaded, check_comparisons, check_sources, make_rewards
from denserl.trainer.start import device_and_precision

log = logging.getLogger(__name__)

KINDS = {
    StepSource: "step",
    PairSource: "pair",
    TextSource: "text",
    ImplicitSource: "increment",
    PrefixDifferences: "increment",
    RewardModelSource: "reward",
}
# What is not cut by entropies.
LEVELS = {"step": "step", "pair": "response", "text": "text"}


class Sources(NamedTuple):
    """What a `DenseScorer` is made of."""

    rewards: Rewards
    tokens: Tokens
    infos: Sequence[SourceInfo]
    entropies: Callable[[ResponseBatch], Tensor] | None
    device: torch.device


class _Language:
    """Frozen language models by path, each loaded once."""

    def __init__(self, config: ScoreConfig, tokenizer: PreTrainedTokenizerBase | None, device: torch.device, dtype: str):
        self.config, self.tokenizer, self.device, self.dtype = config, tokenizer, device, dtype
        self.models: dict[str, PreTrainedModel] = {}

    def __call__(self, path: str) -> PreTrainedModel:
        """UserError for one that reads other token ids."""
        if path not in self.models:
            check_same_tokenizer(self.tokenizer, load_tokenizer(path, **self.config.tokenizer_source()), path)
            model = load_policy(path, self.dtype, **self.config.model_source())
            match_embeddings(model, self.tokenizer)
            self.models[path] = model.eval().to(self.device)
        return self.models[path]


def load_sources(config: ScoreConfig) -> Sources:
    """Everything that the config names. UserError for what cannot be had, or does not go together."""
    config.check()
    check_sources(config)
    check_comparisons(config)
    quiet_libraries()
    device, dtype = device_and_precision(config)
    tokenizer = _own_tokenizer(config)
    members = _members(config, tokenizer, dtype)
    tokenizer = tokenizer or (members.tokenizer if members else None)
    readers = [model.to(device) for model in members.models] if members else []
    language = _Language(config, tokenizer, device, dtype)
    decode = response_text(tokenizer) if tokenizer else Characters().decode
    # Without a tokenizer there are functions alone, which read none.
    made_of = (cast(Any, tokenizer), decode, members, readers, _implicit(config, language), _answers(config))
    rewards = make_rewards(_with_moments(config, members), Loaded(*made_of, of_groups=True))
    cut_by = _entropy_model(config, members, rewards.sources)
    entropies = functools.partial(response_entropies, language(cut_by)) if cut_by else None
    infos = [_info(config, paid) for paid in rewards.sources]
    if tokenizer is None:
        return Sources(rewards, Characters(), infos, entropies, device)
    room = within_positions(config.max_length, [*readers, *language.models.values()]) - _closing(rewards)
    return Sources(rewards, ModelTokens(tokenizer, room), infos, entropies, device)


def _own_tokenizer(config: ScoreConfig) -> PreTrainedTokenizerBase | None:
    """That of a language model whose tokens are read; None where reward models bring one, or there is none."""
    path = config.implicit_reward or (None if config.reward_model else config.sft_model)
    fix = "give with `sft_model` a model whose chat template the server reads"
    require(path or config.reward_model or not config.reward_url, "a server is asked for what a chat template writes", fix)
    return load_tokenizer(path, config.template(), **config.tokenizer_source()) if path else None


def _members(config: ScoreConfig, tokenizer: PreTrainedTokenizerBase | None, dtype: str) -> Members | None:
    if not config.reward_model:
        return None
    template = config.template() if tokenizer is None else None
    return load_members(config.reward_model, dtype, config, tokenizer, template)


def _with_moments(config: ScoreConfig, members: Members | None) -> ScoreConfig:
    """The config, without a normaliser where none is asked for and the reward model has no mean and std, which is logged."""
    asked = (config.normalizer, config.assignment, config.fit, config.reward_mean, config.reward_std)
    if members is None or members.judge_steps or members.judges_pairs or asked != (None,) * len(asked):
        return config
    if members.stored.mean is not None and members.stored.std:
        return config
    log.warning(
        "%s: its config has no mean and std of scores, so that they are not normalised: give `reward_mean` and `reward_std`",
        ", ".join(members.paths),
    )
    return dataclasses.replace(config, normalizer="none")


def _implicit(config: ScoreConfig, language: _Language) -> tuple[LogProbs, ...]:
    """The model of the implicit reward, and its reference."""
    if not config.implicit_reward:
        return ()
    reference = config.implicit_reference or config.sft_model
    found = f"`implicit_reward` {config.implicit_reward}: it is not said which model its training started from"
    require(reference, found, "give it with `implicit_reference`, or `sft_model`")
    return tuple(functools.partial(_logprobs, language(path)) for path in (config.implicit_reward, reference))


def _logprobs(model: PreTrainedModel, batch: ResponseBatch) -> Tensor:
    return response_logprobs_entropies(model, batch)[..., 0]


def _answers(config: ScoreConfig) -> Answers | None:
    """Where answers of servers are kept, for as long as the scorer is there."""
    if not config.reward_url:
        return None
    answers = Answers(Path(tempfile.mkdtemp(prefix="denserl-score-")), resumed=False)
    weakref.finalize(answers, shutil.rmtree, answers.folder, ignore_errors=True)
    return answers


def _entropy_model(config: ScoreConfig, members: Members | None, sources: Sequence[PaidSource]) -> str | None:
    """The model whose entropies cut responses; None where nothing is cut by them. UserError for one that is given in vain."""
    cut = [paid.name for paid in sources if paid.segmenter.reads_entropy]
    if "reward_model" in cut and members is not None:
        return choose_sft_model(members.each, members.paths, members.stored.sft_model, config.sft_model)
    if cut:
        return config.sft_model or config.implicit_reference
    writes = not (config.reward_model or config.implicit_reward)
    refers = config.implicit_reward and not config.implicit_reference
    found = f"`sft_model` {config.sft_model} has no effect: nothing is cut by entropies"
    require(config.sft_model is None or writes or refers, found, "leave `sft_model` out, or give an `entropy_threshold`")
    return None


def _closing(rewards: Rewards) -> int:
    """Tokens behind the end of turn that a source reads."""
    return max(len(getattr(paid.source, "closing", None) or ()) for paid in rewards.sources)


def _info(config: ScoreConfig, paid: PaidSource) -> SourceInfo:
    kind = next(kind for source, kind in KINDS.items() if isinstance(paid.source, source))
    named = {
        "reward_model": ", ".join(config.members()),
        "implicit_reward": config.implicit_reward,
        "outcome_function": config.outcome_function,
        "reward_url": ", ".join(config.reward_url or []),
    }
    level = LEVELS.get(kind, paid.segmenter.level)
    return SourceInfo(paid.name, named.get(paid.name) or paid.name, kind, level, paid.dense.agg_func, paid.weight)
