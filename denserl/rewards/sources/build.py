"""Loads reward models from folders or the hub as one source."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.config import ModelSourceConfig
from denserl.data.chat import renders_alike
from denserl.data.step_encoding import StepLayout
from denserl.errors import require
from denserl.models.heads import stored_head
from denserl.models.loading import load_config, match_embeddings
from denserl.models.measured import measured
from denserl.models.positions import positions_of
from denserl.models.reward_models import load_reward_model
from denserl.models.reward_settings import StoredSettings, read_place, stored_settings
from denserl.models.tokenizers import check_same_tokenizer, load_tokenizer
from denserl.rewards.config import StepConfig
from denserl.rewards.sources.reading import AS_STORED, STEP, after_the_turn, chosen_rule
from denserl.rewards.sources.reward_model import RewardModelSource, common_settings, stored_moments
from denserl.rewards.sources.step_model import StepModel, StepSource
from denserl.segmentation import Segmenter
from denserl.steps import StepRule

log = logging.getLogger(__name__)


class Members(NamedTuple):
    """The reward models of one source, with their stored settings."""

    paths: list[str]
    models: list[PreTrainedModel]  # in evaluation mode, on the host
    tokenizer: PreTrainedTokenizerBase  # which they share
    each: list[StoredSettings]
    stored: StoredSettings  # a single model's own; of several what they agree on

    @property
    def judge_steps(self) -> bool:
        """Whether their scores are logits of steps, trained on labels."""
        return self.stored.scores == "logit"

    @property
    def judges_pairs(self) -> bool:
        """Whether they read two responses in one text, and say which is the better one (pair_model.py)."""
        return self.stored.input == "pair"


def load_members(
    paths: Sequence[str],
    dtype: str,
    config: ModelSourceConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Mapping[str, Any] | None = None,
) -> Members:
    """The reward models at the paths.

    Those that judge steps or pairs are given text, and may have another tokenizer than the one that is given, and a template
    of theirs.

    template: what their chat template is to be, if not as it is saved with them (the arguments of `set_template`).

    Raises:
        UserError: they do not have the tokenizer that is given, or else that of the first.
    """
    require(paths, "`reward_model` names no model", "give one folder or hub name, or several")
    if all(judges_steps(path, config) or judges_pairs(path, config) for path in paths):
        tokenizer = None
    for path in paths:
        own = load_tokenizer(path, template, **config.tokenizer_source())
        tokenizer = tokenizer or own
        if own is not tokenizer:
            check_same_tokenizer(tokenizer, own, path)
            if not renders_alike(tokenizer, own):
                log.warning(
                    "%s: its chat template writes conversations otherwise than the one whose ids it is given; its own, "
                    "chat_template.jinja in its folder, is taken with `chat_template`",
                    path,
                )
    models = [load_reward_model(path, dtype, **config.model_source()) for path in paths]
    for model in models:
        match_embeddings(model, tokenizer)
    each = [stored_settings(model.config, path) for model, path in zip(models, paths, strict=True)]
    return Members(list(paths), models, tokenizer, each, common_settings(each, paths))


def judges_steps(path: str, config: ModelSourceConfig) -> bool:
    """Whether the config of the model at the path says that its scores are logits of steps."""
    return stored_settings(load_config(path, **config.tokenizer_source()), path).scores == "logit"


def judges_pairs(path: str, config: ModelSourceConfig) -> bool:
    """Whether the config of the model at the path says that it compares two responses."""
    return stored_settings(load_config(path, **config.tokenizer_source()), path).input == "pair"


def compares(paths: Sequence[str], config: ModelSourceConfig) -> bool:
    """Whether it is a model that compares two responses; nothing is loaded. UserError for such a one among several."""
    found = any(judges_pairs(path, config) for path in paths)
    alone = f"{', '.join(paths)}: models that compare responses are no ensemble"
    require(not found or len(paths) == 1, alone, "give one of them alone")
    return found


def source_of(
    members: Members, segmenter: Segmenter, *, written_by: PreTrainedTokenizerBase | None = None, **how: Any
) -> RewardModelSource | StepSource:
    """The members as one source, read as `segmenter` cuts and as is stored with them.

    written_by: tokenizer of the responses, which may be another than that of members that judge steps. how: see
    `reward_model_source`.
    """
    require(not members.judges_pairs, *_compares(members.paths[0]))
    if not members.judge_steps:
        return reward_model_source(members, segmenter, **how)
    names, read_at = ", ".join(members.paths), how.pop("read_at", None)
    require(
        segmenter.rule is not None,
        f"{names} judges the steps of a response, and nothing else",
        f"leave level and `segmenter` out, or give `segmenter` {STEP}; for one reward at the end add `assignment` mean_last",
    )
    require(read_at is None, f"`read_at` {read_at} has no effect on steps, which are read at their ends", "leave it out")
    model = step_model_of(members, rule=segmenter.rule, **how)
    return StepSource(model, segmenter.rule, written_by or members.tokenizer)


def check_scores(paths: Sequence[str], config: ModelSourceConfig) -> None:
    """UserError for a model that compares responses, where each response by itself needs a score; nothing is loaded."""
    for path in paths:
        require(not judges_pairs(path, config), *_compares(path))


def _compares(path: str) -> tuple[str, str]:
    return (
        f"{path} compares two responses, and has no score of one alone",
        "give a reward model that scores responses; those that compare are for evaluate, bon and train-ppo",
    )


def reward_model_source(
    members: Members,
    segmenter: Segmenter,
    *,
    how: str = "mean",
    weight: float = 1.0,
    read_at: str | None = None,
    models: Sequence[nn.Module] | None = None,
) -> RewardModelSource:
    """The members' scores of tokens.

    read_at: where the one score of a response is read, if not as is stored. models: the members wrapped, if they are.
    """
    require(
        read_at is None or segmenter.cuts_nothing,
        f"`read_at` {read_at} has no effect at threshold {segmenter.threshold:g}: segments are read at their ends",
        "leave `read_at` out, or score whole responses at the bandit level",
    )
    closing = None
    if segmenter.cuts_nothing and read_place(members.each, members.paths, read_at) == "last_token":
        closing = after_the_turn(members.tokenizer) or None
    moments = stored_moments(members.each, members.paths)
    return RewardModelSource(
        models or members.models, moments, how, weight, closing=closing, pad_id=members.tokenizer.pad_token_id
    )


def load_step_model(
    paths: str | Sequence[str],
    dtype: str = "fp32",
    config: ModelSourceConfig | None = None,
    device: torch.device | str = "cpu",
    *,
    steps: StepConfig = AS_STORED,
    template: Mapping[str, Any] | None = None,
    **how: Any,
) -> StepModel:
    """Models that judge steps, on a device.

    steps: how solutions are cut, where it is not as is stored. how: see `step_model_of`.

    Raises:
        UserError: one cannot be loaded, or gives rewards, no logits of steps.
    """
    paths = [paths] if isinstance(paths, str) else paths
    members = load_members(paths, dtype, config or ModelSourceConfig(), template=template)
    for model in members.models:
        model.to(device)
    return step_model_of(members, rule=chosen_rule(steps, members.each, members.paths), device=device, **how)


def step_model_of(
    members: Members,
    *,
    how: str = "mean",
    weight: float = 1.0,
    models: Sequence[nn.Module] | None = None,
    rule: StepRule | None = None,
    max_length: int | None = None,
    device: torch.device | str = "cpu",
    score_tokens: int = 16384,
) -> StepModel:
    """The members as one step model.

    models: as in `source_of`. rule: how solutions are cut; default: as is stored. max_length: tokens, as far as there are
    positions for them.
    """
    require(
        members.judge_steps,
        f"{', '.join(members.paths)} gives rewards, and does not judge steps",
        "give a model that denserl train-rm --input steps or --input response has trained",
    )
    layout, *others = {_layout(model, path) for model, path in zip(members.models, members.paths, strict=True)}
    require(not others, f"{', '.join(members.paths)} read steps in different layouts", "give models of one layout")
    bounds = [bound for model in members.models for bound in (positions_of(model.config), measured(model).longest)]
    longest = min(filter(None, (max_length, *bounds)), default=None)
    rule = rule or chosen_rule(AS_STORED, members.each, members.paths)
    models = models or members.models
    return StepModel(models, members.tokenizer, rule, layout, longest, device, how, weight, score_tokens)


def _layout(model: PreTrainedModel, path: str) -> StepLayout:
    """How steps are written for a model: earlier ones with the sign for right, whatever it was taught with."""
    signs, labels = stored_settings(model.config, path).context_signs, stored_head(model.config, path).labels
    layout = StepLayout("none" if signs in (None, "none") else "plus")
    return layout._replace(labels=(labels[0], labels[1])) if labels else layout
