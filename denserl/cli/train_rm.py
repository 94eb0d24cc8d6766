"""Train a reward model on preferences, at segment, token or bandit level."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denserl.cli.common import Aggregation, Level, TrainingOptions, launch, level_threshold, make_folder, require

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(TrainingOptions):
    """Train a reward model on preferences: segment, token or bandit level is one flag."""

    reward_level: Level = "segment"
    """Sets the entropy threshold: segment 1.75, token 0, bandit 1000."""
    entropy_threshold: float | None = None
    """Entropy (nats) above which a token opens a new segment; overrides the level's own."""
    segment_method: Literal["peak"] = "peak"
    """How responses are cut."""
    agg_func: Aggregation = "avg"
    """How segment scores make the score of a response; stored in the model's config."""
    model_type: str | None = None
    """Name under which normalisers are kept for this family; stored in the model's config."""
    eval_data: list[str] | None = None
    """Held-out pairs; default: eval_size pairs split off from the data."""
    eval_split: str = "test"
    """Split of eval_data when it is a hub dataset or a folder."""
    eval_size: int = 512
    """Pairs split off for evaluation when there is no eval_data; at most a tenth of the data."""
    max_prompt_length: int = 1728
    """A sequence over max_length loses prompt tokens on the left down to this many, then response tokens on the right."""
    use_margin: bool = False
    """Subtract the rating difference inside the Bradley-Terry loss."""
    soft_label_scale: float | None = None
    """Train on sigmoid(rating difference / scale) as the probability that the chosen response is the better; default: on 1."""
    label_smoothing: float = 0.0
    """Probability that a label is the wrong way round."""
    centring: float = 0.0
    """Weight of the squared sum of both scores."""
    pos_reg: float = 0.0
    """Weight of -log sigmoid(mean score of the chosen responses)."""
    reg_type: Literal["none", "sft", "sft_plain", "dpo", "dpo_noref"] = "none"
    """Text-generation term that keeps the trunk a language model (GRM): of the chosen response, or of the pair."""
    reg_coef: float = 0.01
    """Weight of that term; the Bradley-Terry loss has one minus it. 0: none, and no language-model head is run."""
    reg_beta: float = 0.1
    """Scale of log-probabilities inside the term's log-sigmoid."""
    reg_logp: Literal["sum", "mean"] = "sum"
    """Log-probability of a response in that term: of all its tokens together, or divided by their number."""
    head_type: Literal["linear", "mlp"] = "linear"
    """Reward head; linear makes a standard classifier."""
    head_layers: int = 1
    """Hidden layers of the mlp head."""
    head_width: int = 1024
    """Units in each of them."""
    head_dropout: float = 0.1
    """Dropout before the mlp head, in training alone."""
    freeze_trunk: bool = False
    """Train the reward head alone."""
    flip_frac: float = 0.0
    """Share of the training pairs whose labels are turned round, to study noise; which ones, the seed says."""
    score_tokens: int = 16384
    """Padded tokens per batch where nothing is trained: reference entropies and evaluation."""
    cache_dir: str = "~/.cache/denserl"
    """Where reference entropies are kept between runs."""


def run(options: Options) -> dict[str, float]:
    """Returns the evaluation metrics of the model that was saved."""
    from denserl.cli.training import (
        checkpoint_to_resume,
        prepare_model,
        run_settings,
        save_trained,
        start,
        train,
        training_arguments,
    )
    from denserl.models.loading import load_tokenizer
    from denserl.rewards.rm_trainer import RewardTrainer

    threshold = level_threshold(options.reward_level, options.entropy_threshold)
    device, dtype = start(options)
    checkpoint = checkpoint_to_resume(options)
    tokenizer = load_tokenizer(options.model, **options.tokenizer_source())
    pairs, held_out = _pairs(options, tokenizer, device, dtype)
    objectives = make_objectives(options)
    args = training_arguments(options, device, dtype)
    # What the reference model says follows from weights and ids.
    ids = pairs.select_columns([name for name in pairs.column_names if name.endswith("_ids") or name == "margin"])
    settings = run_settings(options, dtype, checkpoint, models=["model"], data=ids)
    model = make_model(options, tokenizer, dtype, threshold, objectives)
    trainer = RewardTrainer(
        model=prepare_model(model, options, "SEQ_CLS"),
        args=args,
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=tokenizer,
        threshold=threshold,
        agg_func=options.agg_func,
        objectives=objectives,
        eval_tokens=options.score_tokens,
        pad_id=tokenizer.pad_token_id,
    )
    metrics = train(trainer, options, settings, checkpoint)
    model.config.mean, model.config.std = metrics["eval_score_mean"], metrics["eval_score_std"]
    save_trained(trainer, options.output_dir)
    log.info(
        "%s: accuracy %.3f on %d pairs (longer response preferred: %.3f; score and length correlate %+.2f)",
        options.output_dir,
        metrics["eval_accuracy"],
        len(held_out),
        metrics["eval_length_accuracy"],
        metrics["eval_length_correlation"],
    )
    return metrics


def _pairs(options: Options, tokenizer, device, dtype):
    """Training and evaluation pairs, tokenised, with what the reference model says of them."""
    from denserl.data.preferences import flip_labels, load_preferences

    if options.eval_data:
        train = load_preferences(**options.source(), seed=options.seed)
        held_out = load_preferences(options.eval_data, split=options.eval_split, on_bad_row=options.on_bad_row)
    else:
        parts = load_preferences(**options.source(), seed=options.seed)
        size = min(options.eval_size, len(parts) // 10)
        require(size > 0, f"{len(parts)} pairs are too few to split some off for evaluation", "give --eval_data")
        parts = parts.train_test_split(test_size=size, seed=options.seed)
        train, held_out = parts["train"], parts["test"]
    _check_ratings(options, train["margin"])
    train, held_out = (prepare_pairs(part, options, options.model, tokenizer, device, dtype) for part in (train, held_out))
    return flip_labels(train, options.flip_frac, options.seed), held_out


def _check_ratings(options: Options, margins: list[float]) -> None:
    for name, asked in (("use_margin", options.use_margin), ("soft_label_scale", options.soft_label_scale)):
        fix = f"leave --{name} out, or give rows with ratings"
        require(not asked or any(margins), f"--{name} has no effect: no row of the data has ratings that differ", fix)


def make_objectives(options: Options) -> list:
    """What the options train for; the weights of the Bradley-Terry loss and of the text-generation term add up to one."""
    from denserl.rewards.objectives import BradleyTerry, PositiveRegularizer, TextRegularizer

    coef = options.reg_coef if options.reg_type != "none" else 0.0
    objectives = [
        BradleyTerry(1 - coef, options.use_margin, options.label_smoothing, options.centring, options.soft_label_scale)
    ]
    if options.pos_reg:
        objectives.append(PositiveRegularizer(options.pos_reg))
    if coef:
        objectives.append(TextRegularizer(coef, options.reg_type, options.reg_beta, options.reg_logp))
    return objectives


def make_model(options: Options, tokenizer, dtype: str, threshold: float, objectives: list):
    """The SFT model's backbone under a fresh reward head, with that model's own head beside it where an objective reads it."""
    from denserl.models.heads import Head
    from denserl.models.loading import attach_lm_head, freeze_trunk, match_embeddings, new_reward_model
    from denserl.rewards.objectives import logprob_sides

    head = Head(options.head_type, options.head_layers, options.head_width, options.head_dropout)
    model = new_reward_model(options.model, dtype, options.seed, head, **options.model_source())
    match_embeddings(model, tokenizer)
    if logprob_sides(objectives):
        attach_lm_head(model, options.model, dtype, **options.model_source())
    if options.freeze_trunk:
        freeze_trunk(model)
    model.config.segment_reward = {
        **(model.config.to_dict().get("segment_reward") or {}),
        "sft_model": options.model,
        "model_type": options.model_type,
        "segment_method": options.segment_method,
        "entropy_threshold": threshold,
        "agg_func": options.agg_func,
    }
    return model


def prepare_pairs(pairs, options, sft_model: str, tokenizer, device, dtype):
    """Tokenise preferences and add what the frozen SFT model says of them (`add_entropies`)."""
    from denserl.data.entropies import add_entropies, file_fingerprint
    from denserl.data.preferences import tokenize_preferences
    from denserl.models.loading import load_policy, local_folder, match_embeddings
    from denserl.models.scoring import response_logprobs_entropies

    def reference_function():
        model = load_policy(sft_model, dtype, **options.model_source()).eval()
        match_embeddings(model, tokenizer)
        model.to(device)
        return lambda batch: response_logprobs_entropies(model, batch)

    cache_dir = Path(options.cache_dir).expanduser()
    make_folder("cache_dir", str(cache_dir))
    rows = tokenize_preferences(
        pairs,
        tokenizer,
        max_length=options.max_length,
        max_prompt_length=options.max_prompt_length,
        on_bad_row=options.on_bad_row,
    )
    return add_entropies(
        rows,
        reference_function,
        file_fingerprint(local_folder(sft_model), dtype),
        pad_id=tokenizer.pad_token_id,
        cache_dir=cache_dir,
        max_tokens=options.score_tokens,
        device=device,
    )


def main(argv: list[str] | None = None) -> None:
    launch(Options, "train-rm", run, argv)


if __name__ == "__main__":
    main()
