"""The trainings that faults befall, PPO and reward model at ZeRO 0 and 2, and what they make when nothing goes wrong."""

import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models
from real_runs import Training, start_server
from trainer.conftest import World, world  # noqa: F401

# Whatever has a state of its own is switched on: held-out rollouts, both sample files, a moving average, an adaptive KL
# coefficient, running moments of rewards, pretraining text, several steps per rollout batch.
PPO = {
    "iterations": 6,
    "train_batch_size": 4,
    "micro_batch_size": 2,
    "ppo_epochs": 2,
    "eval_every": 2,
    "samples_logged": 2,
    "ema_decay": 0.5,
    "kl_target": 0.1,
    "kl_horizon": 100,
    "normalizer": "running",
    "score_clip": 0.8,
    "save_every": 1,
    "keep_checkpoints": 10,
}
# Logged every 3 steps and saved every 2, so that a log spans a checkpoint; 3 epochs of 5 steps.
RM = {
    "entropy_threshold": 5.3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "epochs": 3,
    "lr": 1e-3,
    "logging_steps": 3,
    "save_steps": 2,
    "save_total_limit": 10,
    "eval_steps": 4,
    "max_length": 64,
    "max_prompt_length": 48,
}
# What draws, or has weights, beside a reward model: both passes of a contrast, its prototypes, and the meta step.
TERMS = {"contrastive": "swav", "prototypes": 4, "meta_lr": 0.05, "meta_samples": 2, "meta_prompts": 2}


class Done(NamedTuple):
    """A training, the output folder of an uninterrupted run of it, and how long that took."""

    training: Training
    output: Path
    seconds: float


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A folder with an SFT model, twenty pairs of text, and samples of five prompts."""
    root = tmp_path_factory.mktemp("pairs")
    tiny_models.save_language_model(root / "sft")
    # With ratings, so that margins can be asked for.
    rows = [{**row, "score_chosen": i % 3, "score_rejected": 0} for i, row in enumerate(tiny_models.boat_pairs(20))]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"prompt": row["prompt"], "responses": [row["rejected"], row["chosen"], "Boats!"]} for row in rows[:5]]
    (root / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return root


@pytest.fixture(scope="session")
def trainings(world, pairs) -> dict[str, Training]:  # noqa: F811
    """Name -> training."""

    def rm_argv(output: Path, **options) -> list[str]:
        files = {"model": pairs / "sft", "data": pairs / "pairs.jsonl", "eval_data": pairs / "pairs.jsonl"}
        return tiny_models.as_argv({**files, "output_dir": output, "cache_dir": pairs / "cache", **options})

    start_server()
    ppo = {**PPO, "eval_prompts": world.prompts, "ptx_data": world.text}
    made = {}
    for stage in (0, 2):
        made[f"ppo-zero{stage}"] = Training("train_ppo", world.argv, {**ppo, "zero_stage": stage})
        made[f"rm-zero{stage}"] = Training("train_rm", rm_argv, {**RM, "zero_stage": stage})
    made["rm-terms"] = Training("train_rm", rm_argv, {**RM, **TERMS, "meta_data": pairs / "samples.jsonl"})
    return made


@pytest.fixture(scope="session")
def finished(trainings, tmp_path_factory):
    """Name of a training -> the training and the output of its uninterrupted run, made at the first call."""
    made = {}

    def run(name: str) -> Done:
        if name not in made:
            output = tmp_path_factory.mktemp(name) / "run"
            began = time.monotonic()
            code, said = trainings[name].run(output)
            assert code == 0, said[-3000:]
            made[name] = Done(trainings[name], output, time.monotonic() - began)
        return made[name]

    return run


@pytest.fixture
def half_done(finished, tmp_path):
    """Name of a training -> the training and an output folder as a kill after its last checkpoint leaves it."""

    def copy(name: str) -> Done:
        done = finished(name)
        output = tmp_path / "run"
        for kept in ("checkpoints", "metrics.jsonl", "samples.jsonl", "eval_samples.jsonl"):
            source = done.output / kept
            if source.is_dir():
                shutil.copytree(source, output / kept)
            elif source.exists():
                shutil.copy(source, output / kept)
        return done._replace(output=output)

    return copy
