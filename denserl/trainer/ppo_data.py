"""What a PPO run goes over: its length, prompts, text for the pretraining loss."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import DemonstrationCollator, ResponseBatch
from denserl.data.demonstrations import load_demonstrations, tokenize_demonstrations
from denserl.data.features import longest_row
from denserl.data.order import endless_rows
from denserl.data.prompts import load_prompts, tokenize_prompts
from denserl.errors import require
from denserl.models.positions import check_positions, check_rollout_lengths
from denserl.streams import Purpose
from denserl.trainer.ppo_config import PPOConfig


class Schedule(NamedTuple):
    """How long a run is."""

    iterations: int
    steps_per_iteration: int  # optimiser steps

    @property
    def total_steps(self) -> int:
        return self.iterations * self.steps_per_iteration


def check_sizes(config: PPOConfig) -> None:
    """UserError for batch sizes that do not divide, and iterations that are too few."""
    world = distributed.world_size()
    rollout, train = ("rollout_batch_size", config.rollout_batch_size), ("train_batch_size", config.train_batch_size)
    micro, samples = ("micro_batch_size", config.micro_batch_size), ("samples_per_prompt", config.samples_per_prompt)
    for (larger, big), (smaller, small), factor in ((rollout, train, 1), (train, micro, world), (rollout, samples, 1)):
        require(
            big % (small * factor) == 0,
            f"`{larger}` {big} is no multiple of `{smaller}` {small}" + (f" x {world} ranks" if factor > 1 else ""),
            f"use a multiple of {small * factor}",
        )
    # Of episodes it is known with the prompts.
    if config.iterations:
        check_warmup(config, config.iterations)


def check_warmup(config: PPOConfig, iterations: int) -> None:
    """UserError where the policy's training would not begin."""
    require(
        iterations > config.critic_warmup_iterations,
        f"`critic_warmup_iterations` {config.critic_warmup_iterations} of {iterations}: the policy would not be trained",
        f"give `critic_warmup_iterations` below {iterations}, or more `iterations` or `episodes`",
    )


def make_schedule(config: PPOConfig, prompts: int) -> Schedule:
    """How long the run is. UserError for too few prompts, or where the policy's training would not begin."""
    per_iteration = config.rollout_batch_size // config.samples_per_prompt
    iterations = config.iterations or int(config.episodes * prompts / per_iteration)
    require(
        iterations > 0,
        f"{prompts} prompts x {config.episodes:g} episodes fill no rollout batch of {per_iteration} prompts",
        "give more prompts, more `episodes`, or a smaller `rollout_batch_size`",
    )
    check_warmup(config, iterations)
    return Schedule(iterations, config.ppo_epochs * config.rollout_batch_size // config.train_batch_size)


class Rows(NamedTuple):
    """What a run goes over, tokenised, and for how long."""

    prompts: Dataset
    held_out: Dataset | None
    text: Dataset | None  # for the pretraining loss
    schedule: Schedule


def load_rows(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """All rows that a run goes over.

    UserError where they are too few or too long; see `make_schedule` and `check_lengths`.
    """
    prompts, held_out = load_prompt_rows(config, tokenizer)
    schedule = make_schedule(config, len(prompts))
    text = load_text_rows(config, tokenizer) if config.ptx_data else None
    check_lengths(config, filter(None, (prompts, held_out)), text)
    return Rows(prompts, held_out, text, schedule)


def load_prompt_rows(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None]:
    """Tokenised prompts to train on, and held-out ones or None."""
    limits: dict[str, Any] = {"max_prompt_length": config.max_prompt_length, "on_bad_row": config.on_bad_row}
    limits["cache_dir"] = config.cache_dir
    rows = load_prompts(**config.source(), seed=config.seed, label=config.label_column)
    prompts = tokenize_prompts(rows, tokenizer, **limits)
    if not config.eval_prompts:
        return prompts, None
    source: dict[str, Any] = {"split": config.eval_split, "limit": config.eval_limit, **config.source_beside()}
    held_out = load_prompts(config.eval_prompts, **source, label=config.label_column)
    return prompts, tokenize_prompts(held_out, tokenizer, **limits)


def load_text_rows(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenised text for the pretraining loss."""
    rows = load_demonstrations(config.ptx_data, split=config.split, seed=config.seed, **config.source_beside())
    how = {"max_length": config.max_prompt_length + config.max_new_tokens, "on_bad_row": config.on_bad_row}
    return tokenize_demonstrations(rows, tokenizer, **how, cache_dir=config.cache_dir)


def check_lengths(config: PPOConfig, prompts: Iterable[Dataset], text: Dataset | None) -> None:
    """UserError where a model has no positions for a prompt with the longest response, or the policy for a row of text."""
    named = [config.gold_reward_model, config.implicit_reward, config.implicit_reference]
    judges = [*(config.reward_model or []), *filter(None, named)]
    check_rollout_lengths(prompts, config.max_new_tokens, [config.model, *judges], config)
    longest = longest_row(text, "input_ids") if text else 0
    fix = "lower `max_prompt_length` and `max_new_tokens`, to at most {} together"
    check_positions(longest, [config.model], config, "the longest row of `ptx_data`", fix)


def text_batches(config: PPOConfig, rows: Dataset, pad_id: int) -> Callable[[int], list[ResponseBatch]]:
    """Optimiser step -> this rank's micro-batches of an endless stream of text, in an order set by the seed."""
    collate, size, micro = DemonstrationCollator(pad_id), config.train_batch_size, config.micro_batch_size

    def batches(step: int) -> list[ResponseBatch]:
        step_rows = endless_rows(step * size, size, len(rows), config.seed, Purpose.PRETRAINING_TEXT)
        mine = step_rows[distributed.rank() :: distributed.world_size()]
        parts = [[rows[i] for i in mine[first : first + micro]] for first in range(0, len(mine), micro)]
        return [ResponseBatch.of(collate(part)) for part in parts]

    return batches
