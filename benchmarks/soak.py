"""Twenty random SIGKILLs over a reward-model training and over a PPO run, resumed each time, against undisturbed runs.

Prints a table, and exits with 1 unless both ended with the same bits: weights, Adam's moments, metrics, samples (no timings).
"""

import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from real_runs import checkpoints, differences

WHERE = ("start", "step", "save")


@dataclass
class Options:
    """Kill and resume two trainings in the embedded world, and compare."""

    kills: int = 20
    """SIGKILLs of each training."""
    seed: int = 0
    """Seed of the moments of the kills."""
    runs: Path = Path("runs/soak")
    """Folder for the runs; what is there is removed."""


@dataclass
class Soaked:
    """A training: its command, its arguments without the output folder, and its optimiser steps or iterations."""

    name: str
    argv: list[str]
    steps: int

    def start(self, output: Path, log: Path) -> subprocess.Popen:
        resume = ["--resume"] if checkpoints(output) else []
        argv = [sys.executable, "-m", f"denserl.cli.{self.name}", *self.argv, "--output_dir", str(output), *resume]
        with open(log, "w") as file:
            return subprocess.Popen(argv, stdout=file, stderr=file)

    def finish(self, output: Path, log: Path) -> tuple[float, float]:
        """Run to the end; returns the seconds of the start and those of the training."""
        began, started, process = time.monotonic(), 0.0, self.start(output, log)
        while process.poll() is None:
            time.sleep(0.05)
            started = started or self.has_started(log) * time.monotonic()
        if process.returncode:
            sys.exit(f"{self.name} failed: {log.read_text()[-3000:]}")
        return started - began, time.monotonic() - started

    def has_started(self, log: Path) -> bool:
        """Whether the progress bar of the training is there."""
        return f"/{self.steps} [" in log.read_text(errors="replace")

    def killed_in(self, output: Path, log: Path, began: float) -> str:
        """What a killed run was at, by what it left."""
        if not self.has_started(log):
            return "start"
        unfinished = (output / "checkpoints").glob(".*")
        return "save" if any(path.stat().st_mtime > began for path in unfinished) else "step"


def main(options: Options) -> None:
    shutil.rmtree(options.runs, ignore_errors=True)
    world = options.runs / "world"
    subprocess.run([sys.executable, "-m", "denserl.cli.make_world", "--output_dir", str(world)], check=True)
    rows = [soak(training, options) for training in (reward_model(world, options.runs), policy(world, options.runs))]
    head = f"{'training':12}{'kills':>6}" + "".join(f"{where:>7}" for where in WHERE) + f"{'steps':>7}{'seconds':>9}  result"
    table = "\n".join([head, *(row for row, _ in rows)])
    print(table)
    (options.runs / "soak.txt").write_text(table + "\n")
    sys.exit(0 if all(equal for _, equal in rows) else 1)


def reward_model(world: Path, runs: Path) -> Soaked:
    """Logged every 3 steps and saved every 5, so that logs span checkpoints."""
    argv = as_words(
        model=world / "base",
        data=world / "preferences_train.jsonl",
        eval_data=world / "preferences_val.jsonl",
        cache_dir=runs / "cache",
        limit=3200,
        epochs=4,
        batch_size=16,
        micro_batch_size=8,
        lr=1e-3,
        logging_steps=3,
        save_steps=5,
        eval_steps=100,
        device="cpu",
    )
    return Soaked("train_rm", argv, steps=4 * 3200 // 16)


def policy(world: Path, runs: Path) -> Soaked:
    argv = as_words(
        model=world / "base",
        reward_model=runs / "train_rm",
        data=world / "prompts_train.jsonl",
        normalizer="none",
        iterations=60,
        rollout_batch_size=32,
        train_batch_size=16,
        micro_batch_size=8,
        max_new_tokens=32,
        actor_lr=1e-4,
        critic_lr=1e-3,
        kl_target=1.0,
        ema_decay=0.9,
        save_every=1,
        device="cpu",
    )
    return Soaked("train_ppo", argv, steps=60)


def as_words(**settings) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def soak(training: Soaked, options: Options) -> tuple[str, bool]:
    """The training's line of the table, and whether its outputs are equal."""
    whole, output, log = options.runs / training.name, options.runs / f"{training.name}-killed", options.runs / "log"
    start, seconds = training.finish(whole, log)
    moments, hits = random.Random(options.seed), Counter()
    while hits.total() < options.kills:
        began, process = time.time(), training.start(output, log)
        try:
            # Every life has a start, and together they have three quarters of the training that there is.
            code = process.wait(moments.uniform(0, start + 1.5 * seconds / options.kills))
            print(f"{training.name} ended with {code} before it was killed {options.kills} times", flush=True)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        hits[training.killed_in(output, log, began)] += 1
        reached = checkpoints(output)[-1].name if checkpoints(output) else "nothing"
        print(f"{training.name}: kill {hits.total()}, {reached} saved", flush=True)
    training.finish(output, log)
    found = differences(whole, output)
    print(*found, sep="\n")
    columns = "".join(f"{hits[where]:7}" for where in WHERE)
    result = f"{len(found)} differences" if found else "equal to the bit"
    return f"{training.name:12}{hits.total():6}{columns}{training.steps:7}{seconds:9.0f}  {result}", not found


if __name__ == "__main__":
    main(tyro.cli(Options))
