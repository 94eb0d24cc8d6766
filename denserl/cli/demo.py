"""The whole pipeline on the embedded world: SFT, then reward model and PPO at each level, a table and a report.

Every stage is an ordinary command, printed as it is run; nothing here is computed that a user could not compute by hand.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from denserl.cli.common import Level, launch
from denserl.cli.effects import normalizer_kind
from denserl.cli.recipes import read_table
from denserl.cli.stages import stage
from denserl.terminal import say

log = logging.getLogger(__name__)

TARGET_TRUE_REWARD = 0.4


@dataclass(kw_only=True)
class Options:
    """Run the pipeline on the embedded world at several reward levels and write OUTPUT_DIR/report.html."""

    output_dir: str = "runs/demo"
    """Folder for everything the demo makes."""
    levels: list[Level] = field(default_factory=lambda: ["segment", "token", "bandit"])
    """Reward levels to compare; the segment level also as published, with its own fit."""
    seed: int = 0
    """Seed of the world and of every run."""
    scale: float = 1.0
    """Share of the data and of the PPO iterations; below 1 for a quick look, which learns less."""


def run(options: Options) -> dict:
    """Returns the results that are also written to results.json."""
    from denserl.evaluation.report import format_table, write_report

    began = time.perf_counter()
    folder = Path(options.output_dir)
    world = stage("make-world", output_dir=folder / "world", seed=options.seed, scale=options.scale)
    stage(
        "train-sft",
        **SFT,
        model=folder / "world/base",
        data=folder / "world/sft.jsonl",
        output_dir=folder / "sft",
        seed=options.seed,
    )
    ways = [name for name, way in WAYS.items() if way.level in options.levels]
    levels = {name: _way(name, folder, world, options) for name in ways}
    results = {
        "seed": options.seed,
        "best_accuracy": world["best_accuracy_test"],
        "target_true_reward": TARGET_TRUE_REWARD,
        "rollout_batch_size": read_table()["model_types"]["tiny"]["ppo"]["rollout_batch_size"],
        "versions": _versions(),
        "minutes": (time.perf_counter() - began) / 60,
        "levels": levels,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    write_report(folder, results, folder / "report.html")
    say(f"\n{format_table(results)}\n\n{folder / 'report.html'}   ({results['minutes']:.1f} minutes)")
    return results


# For a 2-layer model; those of the reward model, the fit and PPO are the model type `tiny` of model_types.yaml.
SFT = {
    "epochs": 2,
    "batch_size": 16,
    "micro_batch_size": 16,
    "lr": 4e-3,
    "warmup_ratio": 0.05,
    "save_steps": 0,
    "max_length": 256,
    "device": "cpu",
}
ITERATIONS = 30


class Way(NamedTuple):
    """A level, and how its rewards are paid."""

    level: str
    assignment: str


WAYS = {
    "segment": Way("segment", "difference_end"),
    "segment-published": Way("segment", "even"),
    "token": Way("token", "difference_end"),
    "bandit": Way("bandit", "mean_last"),
}


def _way(name: str, folder: Path, world: dict, options: Options) -> dict:
    """Reward model (the level's, trained once), fit (where rewards are normalised by place) and PPO."""
    from denserl.trainer.trackers import read_metrics

    tiny, (level, assignment) = read_table()["model_types"]["tiny"], WAYS[name]
    data, seed, cache = folder / "world", options.seed, folder / "cache"
    threshold = {"segment": world["threshold"], "token": 0, "bandit": 1000}[level]
    at_level = {"reward_level": level, "entropy_threshold": threshold}
    reward_model, sft = folder / f"rm-{level}", folder / "sft"
    preferences = {"data": data / "preferences_train.jsonl", "cache_dir": cache, "seed": seed}
    if name == level:
        stage(
            "train-rm",
            **tiny["rm"],
            **at_level,
            **preferences,
            model=sft,
            eval_data=data / "preferences_test.jsonl",
            output_dir=reward_model,
            model_type="tiny",
        )
    normalizer, fitted = normalizer_kind(level, assignment, None), {}
    if normalizer == "location":
        params = folder / "param.json"
        stage(
            "fit-normalizer",
            **tiny["fit"],
            **preferences,
            reward_model=reward_model,
            dataset_tag="world",
            params=params,
            output_dir=folder / f"fit-{level}",
        )
        fitted = {"fit_tag": "world", "params": params}
    ppo = folder / f"ppo-{name}"
    stage(
        "train-ppo",
        **tiny["ppo"],
        **at_level,
        assignment=assignment,
        **fitted,
        model=sft,
        reward_model=reward_model,
        data=data / "prompts_train.jsonl",
        eval_prompts=data / "prompts_heldout.jsonl",
        true_reward="denserl.world.language:true_reward",
        iterations=max(2, round(ITERATIONS * options.scale)),
        output_dir=ppo,
        seed=seed,
    )
    batch = tiny["ppo"]["rollout_batch_size"]
    accuracy = read_metrics(reward_model / "metrics.jsonl")[-1]["eval_accuracy"]
    way = {"level": level, "threshold": threshold, "assignment": assignment, "normalizer": normalizer}
    return {**way, **_outcome(ppo, batch, accuracy, world["best_accuracy_test"])}


def _outcome(ppo: Path, rollout_batch: int, accuracy: float, best: float) -> dict:
    from denserl.trainer.trackers import read_metrics

    held_out = [row for row in read_metrics(ppo / "metrics.jsonl") if "eval_true_reward" in row]
    reached = [row["step"] for row in held_out if row["eval_true_reward"] >= TARGET_TRUE_REWARD]
    return {
        "rm_accuracy": accuracy,
        "rm_share_of_best": accuracy / best,
        "true_before": held_out[0]["eval_true_reward"],
        "true_after": held_out[-1]["eval_true_reward"],
        "kl": held_out[-1]["eval_kl"],
        "rollouts_to_target": reached[0] * rollout_batch if reached else None,
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("denserl", "torch", "transformers", "deepspeed")}


def main(argv: list[str] | None = None) -> None:
    launch(Options, "demo", run, argv)


if __name__ == "__main__":
    main()
