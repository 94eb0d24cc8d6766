"""Loads reward models from folders or the hub as one source."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.config import ModelSourceConfig
from denserl.data.chat import renders_alike
from denserl.errors import require
from denserl.models.loading import check_same_tokenizer, load_reward_model, load_tokenizer, match_embeddings
from denserl.models.reward_settings import StoredSettings, read_place, stored_settings
from denserl.rewards.sources.reading import after_the_turn
from denserl.rewards.sources.reward_model import RewardModelSource, common_settings, stored_moments
from denserl.segmentation import Segmenter

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


def load_members(
    paths: Sequence[str],
    dtype: str,
    config: ModelSourceConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Mapping[str, Any] | None = None,
) -> Members:
    """The reward models at the paths. UserError unless all have the tokenizer that is given, or else that of the first.

    template: what their chat template is to be, if not as it is saved with them (the arguments of `set_template`).
    """
    require(paths, "`reward_model` names no model", "give one folder or hub name, or several")
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


def source_of(
    members: Members,
    segmenter: Segmenter,
    *,
    how: str = "mean",
    weight: float = 1.0,
    read_at: str | None = None,
    models: Sequence[nn.Module] | None = None,
) -> RewardModelSource:
    """The members as one source, read as `segmenter` cuts and as is stored with them.

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
