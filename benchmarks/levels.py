"""Segment, token and bandit level side by side in the embedded world, over seeds, with confidence intervals.

Each seed is one `denserl demo`: its own world, models and random choices. Prints a table and writes RUNS/levels.json.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import t as student

from denserl.world.checks import check_segments

MEASURES = ("rm_share_of_best", "true_before", "true_after", "kl", "rollouts_to_target")


@dataclass
class Options:
    """Run the demo at several seeds and compare the levels."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds; a finished one is not run again."""
    runs: Path = Path("runs/levels")
    """Folder for the runs."""


def main(options: Options) -> None:
    results = [one_seed(seed, options.runs / f"seed{seed}") for seed in options.seeds]
    levels = {
        level: {
            measure: summarise([result["levels"][level][measure] for result in results])
            for measure in (*MEASURES, *("f1", "spearman") * (level == "segment"))
        }
        for level in results[0]["levels"]
    }
    (options.runs / "levels.json").write_text(json.dumps({"seeds": options.seeds, "levels": levels}, indent=2))
    for level, measures in levels.items():
        print(f"\n{level}")
        for measure, summary in measures.items():
            interval = f"{summary['mean']:8.3f} +- {summary['half_width']:.3f}" if summary["n"] else "       -"
            print(f"  {measure:20}{interval}   {summary['values']}")


def one_seed(seed: int, folder: Path) -> dict:
    """The demo's results of one seed, with the checks of the segment reward model against the world's sentences."""
    finished = folder / "checked.json"
    if not finished.exists():
        command = [sys.executable, "-m", "denserl.cli.demo", "--seed", str(seed), "--output_dir", str(folder)]
        subprocess.run(command, check=True)
        results = json.loads((folder / "results.json").read_text())
        segment = results["levels"]["segment"]
        pairs = folder / "world/preferences_test.jsonl"
        segment |= check_segments(str(folder / "sft"), str(folder / "rm-segment"), pairs, segment["threshold"])
        finished.write_text(json.dumps(results))
    return json.loads(finished.read_text())


def summarise(values: list[float | None]) -> dict:
    """Mean and half-width of the 95 % t interval over the seeds that have a value."""
    known = np.array([value for value in values if value is not None], dtype=float)
    half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    shown = [None if value is None else round(value, 3) for value in values]
    return {"mean": float(known.mean()) if len(known) else None, "half_width": float(half), "n": len(known), "values": shown}


if __name__ == "__main__":
    main(tyro.cli(Options))
