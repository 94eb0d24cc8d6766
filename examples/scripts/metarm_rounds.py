"""Rounds of PPO and MetaRM by denserl's commands: reward model -> PPO -> samples -> reward model with a meta step -> PPO -> ...

usage: metarm_rounds.py --model SFT --data PAIRS --prompts PROMPTS [--rounds 3] [--output_dir runs/metarm]
The same command goes on where it was ended, however that was; with other options it is refused. --help names the rest.
"""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from denserl.cli.launch import launch
from denserl.cli.options import parse
from denserl.cli.pipeline import stage
from denserl.cli.record import resolved_settings
from denserl.config import FIRST, INPUT, Config, resumable_options
from denserl.files import COMMAND_FILE
from denserl.flags import as_flags
from denserl.terminal import say
from denserl.trainer.checkpoint import check_settings
from denserl.trainer.start import with_defaults
from denserl.trainer.trackers import read_metrics


@dataclass(kw_only=True)
class Options(Config):
    """Train a reward model and a policy, then both anew for so many rounds, the reward model told what the last policy says."""

    model: Annotated[str, FIRST]
    """SFT model, from which all are trained: folder or hub name."""
    data: Annotated[list[str], INPUT, FIRST]
    """Preferences."""
    prompts: Annotated[list[str], INPUT, FIRST]
    """What policies are trained on, and sampled for."""
    output_dir: Annotated[str, FIRST] = "runs/metarm"
    """Folder for everything."""
    rounds: Annotated[int, FIRST, Ge(1)] = 3
    """Rounds after the first reward model and policy."""
    samples: Annotated[int, FIRST, Ge(2)] = 4
    """Responses to each prompt that are sampled of the last policy, and compared."""
    rm_config: str | None = None
    """YAML file of further options of train-rm, e.g. eval_data, reward_level."""
    meta_config: str | None = None
    """The same for the reward models of the rounds, e.g. with meta_lr; default: rm_config."""
    ppo_config: str | None = None
    """YAML file of further options of train-ppo."""
    bon_config: str | None = None
    """YAML file of further options of bon."""


def run(options: Options) -> None:
    """Every stage that has not finished, one after the other; then a line for each round."""
    folder = Path(options.output_dir)
    for number in range(options.rounds + 1):
        told: dict[str, Any] = {"config": options.rm_config}
        if number:
            samples = folder / f"samples-{number}"
            drawn = {"model": folder / f"ppo-{number - 1}", "data": options.prompts, "samples": options.samples, "resume": True}
            finish("bon", samples, **drawn, config=options.bon_config)
            told = {"meta_data": samples / "samples.jsonl", "meta_samples": options.samples}
            told["config"] = options.meta_config or options.rm_config
        reward_model = folder / f"rm-{number}"
        finish("train-rm", reward_model, model=options.model, data=options.data, **told)
        paid = {"model": options.model, "reward_model": reward_model, "data": options.prompts}
        finish("train-ppo", folder / f"ppo-{number}", **paid, config=options.ppo_config)
    for number in range(options.rounds + 1):
        say(outcome(folder, number))


def finish(command: str, folder: Path, **flags: Any) -> None:
    """Run a command unless it has finished in its output folder, from where it was stopped.

    Raises:
        UserError: it has finished there with other options.
    """
    given = {name: value for name, value in flags.items() if value is not None} | {"output_dir": folder}
    record = folder / COMMAND_FILE
    entry = json.loads(record.read_text(encoding="utf-8"))[-1] if record.is_file() else {"outcome": None}
    if entry["outcome"] != "finished":
        stage(command, **given)
        return
    argv = [word for name, value in given.items() for word in as_flags(name, value)]
    options = parse(importlib.import_module(f"denserl.cli.{command.replace('-', '_')}").Options, command, argv)
    saved, now = with_defaults(entry["settings"], type(options)), json.loads(json.dumps(resolved_settings(options)))
    check_settings(saved | {"resume": now["resume"]}, now, resumable_options(type(options)), folder)


def outcome(folder: Path, number: int) -> str:
    """What a round came to."""
    rows = read_metrics(folder / f"rm-{number}" / "metrics.jsonl")
    apart = [row["separation"] for row in rows if "separation" in row]
    shown = f", last policy's responses told apart {apart[0]:.4f} at the start, {apart[-1]:.4f} at the end" if apart else ""
    rewards = [row["reward"] for row in read_metrics(folder / f"ppo-{number}" / "metrics.jsonl") if "reward" in row]
    return f"round {number}: held-out accuracy {rows[-1]['eval_accuracy']:.4f}{shown}; reward {rewards[-1]:.3f}"


def main(argv: list[str] | None = None) -> None:
    launch(Options, "examples/scripts/metarm_rounds.py", run, argv, program="python")


if __name__ == "__main__":
    main()
