"""What each kind of preference model costs to train beside plain Bradley-Terry: CPU seconds of an optimiser step, and memory.

The pairs are those of ultrafeedback-1k, 16 a step. Each training is a process of its own, run for few steps and for more, whose
difference is free of loading and encoding; the largest memory is that of the longer one. Of several repetitions the median.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import fixtures
import numpy as np
from harness import REPOSITORY, Options, arguments, as_options, ending_well

from denserl.flags import as_flags

STEP_PAIRS = 16
EPOCHS = (1, 3)
PAIRS = 160
PLAIN = {"batch_size": STEP_PAIRS, "micro_batch_size": STEP_PAIRS, "reward_level": "bandit", "max_prompt_length": 512}
FOUR = {"micro_batch_size": STEP_PAIRS // 4}
PAIRWISE = {"input": "pair", "head_type": "label", "reward_level": None, "max_prompt_length": None, "cache_dir": None}
RATED = {"input": "ratings", "head_type": "attributes", "rating_columns": "score:0..10"}
METHODS: dict[str, dict] = {
    "Bradley-Terry": {},
    "Bradley-Terry, four micro-batches": FOUR,
    "length in a head of its own": {"disentangle": "length"},
    "length in a head of its own, four micro-batches": {"disentangle": "length", **FOUR},
    "contrast (SimCSE)": {"contrastive": "simcse"},
    "contrast (SimCSE), four micro-batches": {"contrastive": "simcse", **FOUR},
    "contrast (SwAV)": {"contrastive": "swav"},
    "pairwise, one order": PAIRWISE,
    "pairwise, both orders": {**PAIRWISE, "both_orders": True},
    "rated attributes, 32 responses a step": {**RATED, "batch_size": 2 * STEP_PAIRS, "micro_batch_size": 2 * STEP_PAIRS},
    "gate over attributes": {"head_type": "gated"},
}


class Spent(NamedTuple):
    """What one train-rm took."""

    steps: int
    seconds: float  # of CPU time
    memory: float  # largest resident MiB


def train(options: Options, output: Path, flags: dict) -> Spent:
    """One train-rm in a process of its own."""
    asked = {"max_length": fixtures.LONGEST, "save_steps": 0, "eval_steps": 0, "device": "cpu", **flags, "output_dir": output}
    words = [word for name, value in asked.items() if value is not None for word in as_flags(name, value)]
    command = [sys.executable, "-m", "denserl.cli.train_rm", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(REPOSITORY)}
    with output.with_suffix(".log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        said = log.read()
    if status:
        raise RuntimeError(f"{' '.join(command)} failed: {said[-2000:]}")
    steps = re.search(r"trained to step (\d+)", said)
    return Spent(int(steps[1]) if steps else 0, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def cost(options: Options, common: dict, flags: dict) -> tuple[float, float]:
    """CPU seconds of a step, and the largest MiB, of one method."""
    found = []
    for _ in range(options.repeats or 3):
        with tempfile.TemporaryDirectory(dir=options.runs) as folder:
            few, more = [train(options, Path(folder) / f"run{n}", {**common, **flags, "epochs": n}) for n in EPOCHS]
        found.append(((more.seconds - few.seconds) / (more.steps - few.steps), more.memory))
    seconds, memory = np.median(found, axis=0)
    return float(seconds), float(memory)


def data(options: Options) -> Path:
    """Pairs, with the ratings that stand beside their responses under names of their own."""
    target = options.runs / "rated_pairs.jsonl"
    rows = map(json.loads, fixtures.pairs_file(options).read_text(encoding="utf-8").splitlines())
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        ratings = {f"{side}_score": row["metadata"][f"score_{side}"] for side in ("chosen", "rejected")}
        lines.append(json.dumps({**{key: row[key] for key in ("prompt", "chosen", "rejected")}, **ratings}) + "\n")
    target.write_text("".join(lines), encoding="utf-8")
    return target


def main() -> None:
    """Print a table with a row for each method."""
    options = as_options(arguments(__doc__).parse_args())
    shape = options.model or "4x128"
    model, rows = fixtures.language_model(options, shape), data(options)
    common = {**PLAIN, "model": model, "data": rows, "limit": PAIRS, "eval_size": STEP_PAIRS, "on_bad_row": "skip"}
    attributes = options.runs / "attributes" / "model"
    if not attributes.exists():
        attributes.parent.mkdir(parents=True, exist_ok=True)
        train(options, attributes, {**common, **RATED, "epochs": 1})
    found = {
        name: cost(options, common, {**flags, **({"model": attributes} if name.startswith("gate") else {})})
        for name, flags in METHODS.items()
    }
    plain = found["Bradley-Terry"]
    print(
        f"| {shape}, {STEP_PAIRS} pairs a step | CPU seconds a step | beside plain | largest MiB |\n| --- | --- | --- | --- |"
    )
    for name, (seconds, memory) in found.items():
        print(f"| {name} | {seconds:.2f} | {seconds / plain[0]:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    ending_well(main)
