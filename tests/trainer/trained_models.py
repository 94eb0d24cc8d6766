"""Tiny reward models trained by the command, and what they were trained on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models

from denserl.cli import train_rm

# Enough to learn ninety rows, and none of what takes time beside that.
LEARNING = {
    "batch_size": 16,
    "micro_batch_size": 8,
    "lr": 5e-3,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "save_steps": 0,
    "eval_steps": 0,
}


class Trained(NamedTuple):
    """A tiny model trained by the command, and what it was trained on."""

    root: Path
    folder: Path
    metrics: dict
    said: str


def train_on(root: Path, rows: Path, made: Sequence[dict], folder: Path, argv: list[str]) -> Trained:
    """Write rows, and train with the arguments, which name them and the language model sft, into the folder."""
    tiny_models.save_language_model(root / "sft")
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    with tiny_models.restored_environment(), pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("denserl.trainer.group_trainer.log.info", lambda words, *values: said.append(words % values))
        metrics = tiny_models.run_command(train_rm, "train-rm", argv)
    return Trained(root, folder, metrics, "\n".join(said))
