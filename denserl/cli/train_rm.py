"""Train a reward model on preferences, at segment, token or bandit level."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from denserl.cli.common import Level, TrainingOptions, launch, level_threshold, make_folder, require

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
    agg_func: Literal["avg"] = "avg"
    """How segment scores make the score of a response."""
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
    label_smoothing: float = 0.0
    """Probability that a label is the wrong way round."""
    centring: float = 0.0
    """Weight of the squared sum of both scores."""
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
    from denserl.models.loading import load_tokenizer, match_embeddings, new_reward_model
    from denserl.rewards.rm_trainer import RewardTrainer

    threshold = level_threshold(options.reward_level, options.entropy_threshold)
    device, dtype = start(options)
    checkpoint = checkpoint_to_resume(options)
    tokenizer = load_tokenizer(options.model, **options.tokenizer_source())
    pairs, held_out = _pairs(options, tokenizer, device, dtype)
    args = training_arguments(options, device, dtype)
    # Entropies follow from weights and ids.
    ids = pairs.remove_columns([name for name in pairs.column_names if name.endswith("_entropy")])
    settings = run_settings(options, dtype, checkpoint, models=["model"], data=ids)
    model = new_reward_model(options.model, dtype, options.seed, **options.model_source())
    match_embeddings(model, tokenizer)
    model.config.segment_reward = {
        "sft_model": options.model,
        "model_type": options.model_type,
        "segment_method": options.segment_method,
        "entropy_threshold": threshold,
        "agg_func": options.agg_func,
    }
    trainer = RewardTrainer(
        model=prepare_model(model, options, "SEQ_CLS"),
        args=args,
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=tokenizer,
        threshold=threshold,
        agg_func=options.agg_func,
        use_margin=options.use_margin,
        label_smoothing=options.label_smoothing,
        centring=options.centring,
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
    """Training and evaluation pairs, tokenised, with reference entropies."""
    from denserl.data.preferences import load_preferences

    if options.eval_data:
        train = load_preferences(**options.source(), seed=options.seed)
        held_out = load_preferences(options.eval_data, split=options.eval_split, on_bad_row=options.on_bad_row)
    else:
        parts = load_preferences(**options.source(), seed=options.seed)
        size = min(options.eval_size, len(parts) // 10)
        require(size > 0, f"{len(parts)} pairs are too few to split some off for evaluation", "give --eval_data")
        parts = parts.train_test_split(test_size=size, seed=options.seed)
        train, held_out = parts["train"], parts["test"]
    return (prepare_pairs(part, options, options.model, tokenizer, device, dtype) for part in (train, held_out))


def prepare_pairs(pairs, options, sft_model: str, tokenizer, device, dtype):
    """Tokenise preferences and add the entropies of the frozen SFT model."""
    from denserl.data.entropies import add_entropies, file_fingerprint
    from denserl.data.preferences import tokenize_preferences
    from denserl.models.loading import load_policy, local_folder, match_embeddings
    from denserl.models.scoring import response_entropies

    def entropy_function():
        model = load_policy(sft_model, dtype, **options.model_source()).eval()
        match_embeddings(model, tokenizer)
        model.to(device)
        return lambda batch: response_entropies(model, batch)

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
        entropy_function,
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
