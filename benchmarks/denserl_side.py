"""The project's own trainers, built as its commands build them, so that what is timed is what a user runs."""

from pathlib import Path

import numpy as np
from transformers import PrinterCallback, ProgressCallback

from denserl.data.preferences import load_preferences
from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.models.reward_models import load_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.pairs import prepare_pairs
from denserl.segmentation import Segmenter
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.run_folder import OutputFolder, run_training
from denserl.trainer.start import start_run
from denserl.trainer.supervised import training_arguments


def reward_trainer(options: RewardConfig, reward_model: str, rows: list[int]) -> RewardTrainer:
    """What `denserl train-rm` trains with, on some rows of its data, their reference entropies stored.

    The threshold is the entropy that a quarter of the response tokens exceed, so that segments have about four tokens, as
    trained models' have at the default threshold; a random model's entropies all lie above that.
    """
    device, dtype = start_run(options)
    tokenizer = load_tokenizer(options.model)
    chosen = load_preferences(options.data, on_bad_row="skip").select(rows)
    pairs = prepare_pairs(chosen, options, options, options.model, tokenizer, device, dtype, options.on_bad_row)
    entropies = [row for side in ("chosen", "rejected") for row in pairs[f"{side}_entropy"]]
    trainer = RewardTrainer(
        model=load_reward_model(reward_model, dtype),
        args=training_arguments(options, device, dtype),
        train_dataset=pairs,
        processing_class=tokenizer,
        segmenter=Segmenter(float(np.quantile(np.concatenate(entropies), 0.75))),
        eval_tokens=options.score_tokens,
        pad_id=tokenizer.pad_token_id,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: RewardTrainer, options: RewardConfig) -> None:
    """Run the trainer the way `denserl train-rm` does."""
    folder = OutputFolder(Path(options.output_dir), {}, options.save_total_limit)
    run_training(trainer, folder, None, options.max_grad_norm, options.max_skipped_steps)


def ppo_options(model: Path, reward_model: Path, output_dir: Path, **changed) -> PPOConfig:
    """Options of `denserl train-ppo` at segment level, without checkpoints; rewards are left as they are."""
    return PPOConfig(
        model=str(model),
        reward_model=str(reward_model),
        output_dir=str(output_dir),
        reward_mean=0.0,
        reward_std=1.0,
        on_bad_row="skip",
        iterations=10**6,
        save_every=0,
        eval_every=0,
        zero_stage=0,
        **changed,
    )


def ppo_trainer(options: PPOConfig) -> PPOTrainer:
    """What `denserl train-ppo` trains with."""
    return PPOTrainer.from_config(options)


def iteration(trainer: PPOTrainer) -> dict[str, float]:
    """One iteration with its line in the metrics file, as `PPOTrainer.train` repeats it."""
    metrics = trainer.iterate()
    trainer.log.trackers.log(trainer.iteration, metrics)
    return metrics


def prompt_rows(options: PPOConfig, tokenizer):
    """The prompts of a run, tokenised."""
    return tokenize_prompts(
        load_prompts(**options.source(), seed=options.seed), tokenizer, max_prompt_length=options.max_prompt_length
    )
