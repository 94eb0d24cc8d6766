"""A reward model as its options describe it, before it is trained, and what it is trained for."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.chat import after_last_turn
from denserl.data.labels import label_ids, place_labels, two_labels
from denserl.errors import require
from denserl.models.dropout import drop_attention
from denserl.models.heads import Head, stored_head
from denserl.models.loading import load_config, match_embeddings
from denserl.models.measured import check_steady
from denserl.models.prototypes import attach_prototypes
from denserl.models.reward_models import (
    attach_lm_head,
    freeze_trunk,
    holds_reward_head,
    load_reward_model,
    new_gated_model,
    new_reward_model,
    train_whole_head,
)
from denserl.models.reward_settings import StoredSettings, sft_settings, store_settings, stored_settings
from denserl.rewards.objectives import (
    BradleyTerry,
    Contrast,
    Disentangle,
    Objective,
    Orthogonal,
    PairLabels,
    PositionBias,
    PositiveRegularizer,
    RatingErrors,
    StepLabels,
    TextRegularizer,
    all_prototypes,
    all_reads,
    named_objective,
)
from denserl.rewards.sources.reading import sft_fingerprint
from denserl.trainer.reward_config import RewardConfig

# Hidden layers and dropout of the heads that have some (arXiv 2406.10216, 2406.12845).
LAYERS = {"linear": (1, 0.1), "mlp": (1, 0.1), "gated": (3, 0.2)}
# Weight and prototypes of a contrastive term (arXiv 2401.06080, section 3.2).
CONTRAST = {
    ("simcse", "pair"): (1.0, 0),
    ("simcse", "diff"): (1.0, 0),
    ("swav", "pair"): (0.1, 50),
    ("swav", "diff"): (0.5, 20),
}
# Heads that may be put on the trunk of a reward model.
ON_TRUNKS = ("attributes", "gated")


def make_objectives(config: RewardConfig) -> list[Objective]:
    """What the options train for; the weights of the Bradley-Terry loss and of the text-generation term add up to one."""
    own = [named_objective(words) for words in config.objective or []]
    if config.input == "ratings":
        return [RatingErrors(), *own]
    if config.input == "pair":
        symmetry = [PositionBias(config.symmetry)] if config.symmetry else []
        return [PairLabels(loss=config.label_ce), *symmetry, *own]
    if config.input != "pairs":
        return [StepLabels(loss=config.label_ce, average=config.step_average), *own]
    coef = config.reg_coef if config.reg_type != "none" else 0.0
    objectives: list[Objective] = [
        BradleyTerry(1 - coef, config.subtracts_margins(), config.label_smoothing, config.centring, config.soft_label_scale)
    ]
    if config.pos_reg:
        objectives.append(PositiveRegularizer(config.pos_reg))
    if coef and config.reg_type != "none":
        objectives.append(TextRegularizer(coef, config.reg_type, config.reg_beta, config.reg_logp))
    if config.disentangle:
        objectives.append(Disentangle(config.disentangle_coef, config.disentangle, config.disentangle_sum))
        objectives.append(Orthogonal(config.orthogonal_coef))
    return [*objectives, *contrast_of(config), *own]


def contrast_of(config: RewardConfig) -> list[Contrast]:
    """The contrastive term that the options ask for, if any."""
    if config.contrastive is None:
        return []
    kind, on = config.contrastive, config.contrastive_on
    coef, prototypes = CONTRAST[kind, on]
    if config.contrastive_coef is not None:
        coef = config.contrastive_coef
    return [
        Contrast(coef, kind, on, config.contrastive_tau, config.contrastive_dropout, prototypes=config.prototypes or prototypes)
    ]


def trunk_settings(config: RewardConfig) -> StoredSettings | None:
    """What a reward model says of itself on whose trunk the head is put; None where `model` is taken for a language model."""
    if config.head_type not in ON_TRUNKS or not holds_reward_head(config.model):
        return None
    return stored_settings(load_config(config.model, **config.tokenizer_source()), config.model)


def check_trunk(config: RewardConfig) -> None:
    """UserError where `model` is a reward model, and the head is put on language models alone.

    A model of labels is a language model as well, and may be gone on from as such.
    """
    if config.head_type in ON_TRUNKS or not holds_reward_head(config.model):
        return
    stored = stored_head(load_config(config.model, **config.tokenizer_source()), config.model)
    require(
        stored.kind == "label",
        f"`model` {config.model} is a reward model, and `head_type` {config.head_type} is put on a language model",
        "give the language model that it was trained from; to go on from the reward model, give it as `start_from` beside",
    )


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
        labels = place_labels(config.labels) if config.input == "pair" else two_labels(config.labels)
        return Head("label", labels=labels, label_ids=label_ids(tokenizer, labels))
    if config.head_type == "attributes":
        names = config.rating_names(config.data)
        return Head("attributes", names=tuple(names), weights=tuple(config.attribute_weights or [1 / len(names)] * len(names)))
    layers, dropout = LAYERS[config.head_type]
    layers = layers if config.head_layers is None else config.head_layers
    dropout = dropout if config.head_dropout is None else config.head_dropout
    shape = Head(config.head_type, layers, config.head_width, dropout)
    return gate_of(config, shape, tokenizer, objectives) if config.head_type == "gated" else shape


def gate_of(config: RewardConfig, shape: Head, tokenizer: PreTrainedTokenizerBase, objectives: Sequence[Objective]) -> Head:
    """A gated head of that shape over the attributes of `model`. UserError where it rates none, or not the one of `debias`."""
    stored = stored_head(load_config(config.model, **config.tokenizer_source()), config.model)
    require(
        stored.kind == "attributes",
        f"`head_type` gated: {config.model} rates no attributes (its head is {stored.kind})",
        "train some first, with denserl train-rm --input ratings --head_type attributes, and give its folder as `model`",
    )
    require(
        config.debias in (None, *stored.names),
        f"`debias` {config.debias}: {config.model} rates {', '.join(stored.names)}",
        "name one of these, or leave `debias` out",
    )
    of_text = sorted({"first_logps", "logps", "ref_logps"} & all_reads(objectives))
    require(
        not of_text,
        f"an objective reads {', '.join(of_text)}, and `model` of a gated head is no language model",
        "leave the objective out, or train another head",
    )
    return shape._replace(names=stored.names, gate_offset=after_last_turn(tokenizer))


def make_model(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    head: Head,
    objectives: Sequence[Objective],
    settings: dict[str, Any],
) -> PreTrainedModel:
    """The trunk of `model` under a fresh head, or the reward model to go on from.

    The SFT model's own head stands beside it where an objective reads it.

    settings: how it reads responses, which is stored with it.
    """
    source = config.model_source() | config.base_loading()
    if config.start_from:
        model = _to_go_on_from(config.start_from, head, dtype, source)
    else:
        new = new_gated_model if head.kind == "gated" else new_reward_model
        model = new(config.model, dtype, head=head, seed=config.seed, **source)
    check_steady(model)
    match_embeddings(model, tokenizer)
    reads = all_reads(objectives)
    if "label_logp" in reads:
        train_whole_head(model, config.start_from or config.model, dtype, **source)
    elif reads & {"first_logps", "logps"}:
        attach_lm_head(model, config.model, dtype, **source)
    if config.freeze_trunk or head.kind == "gated":
        freeze_trunk(model)
    if config.contrastive is not None:
        drop_attention(model, config.contrastive_dropout)
    if number := all_prototypes(objectives):
        attach_prototypes(model, number, config.seed)
    store_settings(
        model.config,
        **_of_sft(config, dtype),
        **settings,
        max_length=config.max_length,
        **({} if config.input == "pair" else {"max_prompt_length": config.max_prompt_length}),
    )
    return model


def _of_sft(config: RewardConfig, dtype: str) -> dict[str, str]:
    """What is stored of the SFT model: `model`, or of a reward model's trunk the one that is stored with that, if any."""
    its = trunk_settings(config)
    if its is None:
        return sft_settings(config.model, sft_fingerprint(config.model, dtype), config.output_dir)
    return sft_settings(its.sft_model, its.sft_fingerprint, config.output_dir) if its.sft_model and its.sft_fingerprint else {}


def _to_go_on_from(path: str, head: Head, dtype: str, source: dict[str, Any]) -> PreTrainedModel:
    """A trained reward model. UserError for another head than the options describe."""
    model = load_reward_model(path, dtype, **source)
    own = stored_head(model.config, path)
    same = own._replace(bias=head.bias, dropout=head.dropout, scale=head.scale, cap=head.cap) == head
    require(same, f"`start_from` {path} has the head {own}, and the options describe {head}", "give those of its training")
    return model
