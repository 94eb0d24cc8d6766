"""The project's own trainers, built as its commands build them, so that what is timed is what a user runs."""

from pathlib import Path

import numpy as np
from transformers import PrinterCallback, ProgressCallback

from denserl.cli import train_ppo, train_rm
from denserl.cli.training import start, training_arguments
from denserl.data.preferences import load_preferences
from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.models.loading import load_policy, load_reward_model, load_tokenizer
from denserl.rewards.rm_trainer import RewardTrainer
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.supervised_run import OutputFolder, run_training
from denserl.trainer.trackers import Trackers


def reward_trainer(options: train_rm.Options, reward_model: str, rows: list[int]) -> RewardTrainer:
    """What `denserl train-rm` trains with, on some rows of its data, their reference entropies stored.

    The threshold is the entropy that a quarter of the response tokens exceed, so that segments have about four tokens, as
    trained models' have at the default threshold; a random model's entropies all lie above that.
    """
    device, dtype = start(options)
    tokenizer = load_tokenizer(options.model)
    chosen = load_preferences(options.data, on_bad_row="skip").select(rows)
    pairs = train_rm.prepare_pairs(chosen, options, options.model, tokenizer, device, dtype)
    entropies = [row for side in ("chosen", "rejected") for row in pairs[f"{side}_entropy"]]
    trainer = RewardTrainer(
        model=load_reward_model(reward_model, dtype),
        args=training_arguments(options, device, dtype),
        train_dataset=pairs,
        processing_class=tokenizer,
        threshold=float(np.quantile(np.concatenate(entropies), 0.75)),
        eval_tokens=options.score_tokens,
        pad_id=tokenizer.pad_token_id,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: RewardTrainer, options: train_rm.Options) -> None:
    """Run the trainer the way `denserl train-rm` does."""
    folder = OutputFolder(Path(options.output_dir), {}, options.save_total_limit)
    run_training(trainer, folder, None, options.max_grad_norm, options.max_skipped_steps)


def ppo_options(model: Path, reward_model: Path, output_dir: Path, **changed) -> train_ppo.Options:
    """Options of `denserl train-ppo` at segment level, without checkpoints; rewards are left as they are."""
    return train_ppo.Options(
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


def ppo_trainer(options: train_ppo.Options) -> PPOTrainer:
    """What `denserl train-ppo` trains with."""
    device, dtype = start(options)
    tokenizer = load_tokenizer(options.model)
    rewards = [load_reward_model(path, dtype) for path in options.reward_model]
    dense_reward = train_ppo.make_dense_reward(options, [model.config for model in rewards])
    prompts = prompt_rows(options, tokenizer)
    config = train_ppo.make_config(options, len(prompts))
    policy = load_policy(options.model, dtype)
    models, current_policy = train_ppo.make_models(options, config, tokenizer, policy, rewards, device, dtype)
    parts = {"prompts": prompts, "eval_prompts": None, "device": device}
    trainer = train_ppo.make_trainer(options, config, tokenizer, models, dense_reward, current_policy, **parts)
    trainer.trackers = Trackers(Path(options.output_dir), [], {}, {})
    return trainer


def iteration(trainer: PPOTrainer) -> dict[str, float]:
    """One iteration with its line in the metrics file, as `PPOTrainer.train` repeats it."""
    metrics = trainer.iterate()
    trainer.trackers.log(trainer.iteration, metrics)
    return metrics


def prompt_rows(options: train_ppo.Options, tokenizer):
    """The prompts of a run, tokenised."""
    return tokenize_prompts(
        load_prompts(**options.source(), seed=options.seed), tokenizer, max_prompt_length=options.max_prompt_length
    )
