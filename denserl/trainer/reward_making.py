"""A reward model as its options describe it, before it is trained, and what it is trained for."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.labels import label_ids, two_labels
from denserl.errors import require
from denserl.models.heads import Head
from denserl.models.loading import attach_lm_head, freeze_trunk, match_embeddings, new_reward_model, train_whole_head
from denserl.models.measured import check_steady
from denserl.models.reward_settings import sft_settings, store_settings
from denserl.rewards.objectives import (
    BradleyTerry,
    Disentangle,
    Objective,
    Orthogonal,
    PositiveRegularizer,
    StepLabels,
    TextRegularizer,
    all_reads,
    named_objective,
)
from denserl.rewards.sources.reading import sft_fingerprint
from denserl.trainer.reward_config import RewardConfig


def make_objectives(config: RewardConfig) -> list[Objective]:
    """What the options train for; the weights of the Bradley-Terry loss and of the text-generation term add up to one."""
    own = [named_objective(words) for words in config.objective or []]
    if config.input != "pairs":
        return [StepLabels(loss=config.label_ce, average=config.step_average), *own]
    coef = config.reg_coef if config.reg_type != "none" else 0.0
    objectives: list[Objective] = [
        BradleyTerry(1 - coef, config.use_margin, config.label_smoothing, config.centring, config.soft_label_scale)
    ]
    if config.pos_reg:
        objectives.append(PositiveRegularizer(config.pos_reg))
    if coef and config.reg_type != "none":
        objectives.append(TextRegularizer(coef, config.reg_type, config.reg_beta, config.reg_logp))
    if config.disentangle:
        objectives.append(Disentangle(config.disentangle_coef, config.disentangle, config.disentangle_sum))
        objectives.append(Orthogonal(config.orthogonal_coef))
    return objectives + own


def head_of(config: RewardConfig, tokenizer: PreTrainedTokenizerBase, objectives: Sequence[Objective]) -> Head:
    """The head that the options describe. UserError for labels that are no tokens, or where objectives need another one."""
    if "label_logp" in all_reads(objectives):
        found = "an objective reads the log-probability of a label"
        require(config.head_type == "label", found, "let `head_type` be label")
        whole = "`label_ce` full with `lora_rank`: it trains the whole head of the language model, which gets no adapters"
        require(not config.lora_rank, whole, "let `label_ce` be restricted, or leave `lora_rank` out")
    if "parts" in all_reads(objectives):
        found = "an objective reads both parts of a score, which a head of one output has not"
        require(config.disentangle, found, "let `disentangle` be length")
        return Head("disentangled")
    if config.head_type == "label":
        labels = two_labels(config.labels)
        return Head("label", labels=labels, label_ids=label_ids(tokenizer, labels))
    return Head(config.head_type, config.head_layers, config.head_width, config.head_dropout)


def make_model(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    head: Head,
    objectives: Sequence[Objective],
    settings: dict[str, Any],
) -> PreTrainedModel:
    """The SFT model's backbone under a fresh head, with that model's own head beside it where an objective reads it.

    settings: how it reads responses, which is stored with it.
    """
    model = new_reward_model(config.model, dtype, config.seed, head, **config.model_source())
    check_steady(model)
    match_embeddings(model, tokenizer)
    reads = all_reads(objectives)
    if "label_logp" in reads:
        train_whole_head(model, config.model, dtype, **config.model_source())
    elif reads & {"first_logps", "logps"}:
        attach_lm_head(model, config.model, dtype, **config.model_source())
    if config.freeze_trunk:
        freeze_trunk(model)
    store_settings(
        model.config,
        **sft_settings(config.model, sft_fingerprint(config.model, dtype), config.output_dir),
        **settings,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    return model
