"""The whole pipeline on the embedded world: SFT, then reward model and PPO at each level, a table and a report.

Every stage is an ordinary command, printed as it is run; nothing here is computed that a user could not compute by hand.
"""

import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Interval

from denserl.cli.demo_ways import ITERATIONS, SFT, TARGET_TRUE_REWARD, WAYS, outcome, threshold_of
from denserl.cli.launch import launch
from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.config import FIRST, Config, Level
from denserl.ppo_utils.config import normalizer_kind
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(Config):
    """Run the pipeline on the embedded world at several reward levels and write OUTPUT_DIR/report.html."""

    output_dir: Annotated[str, FIRST] = "runs/demo"
    """Folder for everything the demo makes."""
    levels: Annotated[list[Level], FIRST] = field(default_factory=lambda: ["segment", "token", "bandit"])
    """Reward levels to compare; the segment level also as published, with its own fit."""
    seed: Annotated[int, FIRST, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of the world and of every run."""
    scale: Annotated[float, FIRST, Gt(0)] = 1.0
    """Share of the data and of the PPO iterations; below 1 for a quick look, which learns less."""


def run(options: Options) -> dict:
    """Returns the results that are also written to results.json."""
    from denserl.report.build import PAGE, report_of, write_report
    from denserl.report.demo import format_table

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
        "versions": {package: version(package) for package in ("denserl", "torch", "transformers", "deepspeed")},
        "minutes": (time.perf_counter() - began) / 60,
        "levels": levels,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    write_report(folder / PAGE, report_of([str(folder)]))
    say(f"\n{format_table(results)}\n\n{folder / PAGE}   ({results['minutes']:.1f} minutes)")
    return results


def _way(name: str, folder: Path, world: dict, options: Options) -> dict:
    """Reward model (the level's, trained once), fit (where rewards are normalised by place) and PPO."""
    tiny, (level, assignment) = read_table()["model_types"]["tiny"], WAYS[name]
    data, seed, cache = folder / "world", options.seed, folder / "cache"
    threshold = threshold_of(level, world)
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
        )
    normalizer = normalizer_kind(level, assignment, None)
    if normalizer == "location":
        fit = folder / f"fit-{level}"
        stage("fit-normalizer", **tiny["fit"], **preferences, reward_model=reward_model, output_dir=fit)
    ppo = folder / f"ppo-{name}"
    stage(
        "train-ppo",
        **tiny["ppo"],
        **at_level,
        assignment=assignment,
        model=sft,
        reward_model=reward_model,
        data=data / "prompts_train.jsonl",
        eval_prompts=data / "prompts_heldout.jsonl",
        true_reward="denserl.world.language:true_reward",
        iterations=max(2, round(ITERATIONS * options.scale)),
        output_dir=ppo,
        seed=seed,
    )
    way = {"level": level, "threshold": threshold, "assignment": assignment, "normalizer": normalizer}
    return {**way, **outcome(ppo, reward_model, tiny["ppo"]["rollout_batch_size"], world["best_accuracy_test"])}


def main(argv: list[str] | None = None) -> None:
    launch(Options, "demo", run, argv)


if __name__ == "__main__":
    main()
