"""Tiny models, prompts and a fit for PPO, made once; and runs of the command on them in this process."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models
import torch

from denserl.models.loading import match_embeddings
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.ppo_utils.config import normalizer_kind
from denserl.trainer.ppo_trainer import PPOTrainer

LINES = [0.3, -0.1, 0.2, 1.5]
# Near the middle of the entropies of an untrained model of some 300 tokens, so that segments differ in length.
THRESHOLD = 5.3
MEAN, STD = 0.1, 1.2
PROMPTS = ["The kettle", "A quiet river runs under the old bridge, why?", "Tell me.", "The garden and the rain", "Boats"]
TEXT = "The old kettle hums in the small garden."


class World(NamedTuple):
    """Folders and files that a PPO run needs, and the numbers that went into them."""

    root: Path
    sft: Path
    reward_model: Path
    prompts: Path
    fits: Path
    text: Path
    threshold: float = THRESHOLD
    lines: tuple = tuple(LINES)
    mean: float = MEAN
    std: float = STD

    def argv(self, output: Path, **options) -> list[str]:
        """Arguments of train-ppo for a run of a second, with these options laid over its own."""
        settings = {
            "model": self.sft,
            "reward_model": self.reward_model,
            "data": self.prompts,
            "output_dir": output,
            "entropy_threshold": THRESHOLD,
            "iterations": 1,
            "rollout_batch_size": 8,
            "train_batch_size": 8,
            "micro_batch_size": 4,
            "max_new_tokens": 8,
            "sample_batch_size": 4,
            "actor_lr": 1e-3,
            "critic_lr": 1e-3,
            "warmup_ratio": 0.0,
            "zero_stage": 0,
            "save_every": 0,
        }
        settings |= options
        kind = normalizer_kind(*(settings.get(name) for name in ("reward_level", "assignment", "normalizer")))
        fit = {"fit": self.fits} if kind == "location" else {}
        return tiny_models.as_argv(fit | settings)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("ppo")
    # A fifth of the vocabulary ends a response, so that an untrained policy's responses differ in length.
    sft = tiny_models.save_language_model(root / "sft", stops=60)
    tokenizer = load_tokenizer(str(sft))
    model = new_reward_model(str(sft), "fp32", seed=1)
    match_embeddings(model, tokenizer)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.config.segment_reward = {"sft_model": str(sft), "entropy_threshold": THRESHOLD}
    model.config.mean, model.config.std = MEAN, STD
    model.save_pretrained(root / "rm")
    tokenizer.save_pretrained(root / "rm")
    prompts, fits, text = root / "prompts.jsonl", root / "fits.json", root / "text.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    text.write_text(json.dumps({"text": TEXT}) + "\n")
    fits.write_text(json.dumps({f"peak/avg/{threshold:g}": {"constants": LINES} for threshold in (0.0, THRESHOLD)}))
    return World(root, sft, root / "rm", prompts, fits, text)


@pytest.fixture(autouse=True)
def environment():
    with tiny_models.restored_environment():
        yield


@pytest.fixture
def ppo(world, tmp_path):
    """Runs train-ppo in this process: options -> its output folder."""
    from denserl.cli import train_ppo

    def run(name: str = "run", **options) -> Path:
        tiny_models.run_command(train_ppo, "train-ppo", world.argv(tmp_path / name, **options))
        return tmp_path / name

    return run


@pytest.fixture
def scored(monkeypatch) -> list:
    """The responses of each rollout, and what they were scored."""
    kept, score = [], PPOTrainer.score

    def keep_scored(self, *args, **kw):
        found = score(self, *args, **kw)
        kept.append((args[0], found[0]))
        return found

    monkeypatch.setattr(PPOTrainer, "score", keep_scored)
    return kept
