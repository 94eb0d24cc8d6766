"""The report of a demo run: one table for the terminal and one self-contained HTML page.

Every number is computed or formatted here and none in the template (denserl/pages/).
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from denserl.errors import UserError
from denserl.evaluation.plots import LEVEL_COLOURS, Curve, plot_levels
from denserl.pages.rendering import data_uri, render
from denserl.pages.segments import Step, share_of
from denserl.terminal import visible
from denserl.trainer.trackers import read_metrics

SAMPLES_SHOWN = 3
REWARD_PER = {
    "segment": "each segment is paid what it changes in the score",
    "segment-published": "each segment is paid its own reward, as published",
    "token": "each token is paid what it changes in the score",
    "bandit": "one reward per response",
}


def write_report(folder: Path, results: dict, target: Path) -> None:
    """Write the HTML page of a finished demo run; it loads nothing from elsewhere and runs no script.

    Args:
        folder: holds ppo-NAME of every way to pay that the results name, and rm-LEVEL and (where rewards are normalised by
            place) fit-LEVEL of its level.
        results: what the demo writes to results.json.

    Raises:
        UserError: a file of the run is missing; it names the command that writes it.
    """
    levels = results["levels"]
    metrics = {name: _rows(folder / f"ppo-{name}/metrics.jsonl", "train-ppo") for name in levels}
    training = {got["level"]: _rows(folder / f"rm-{got['level']}/metrics.jsonl", "train-rm") for got in levels.values()}
    samples = {name: _rows(folder / f"ppo-{name}/eval_samples.jsonl", "train-ppo") for name in levels}
    pairs = {name: _pairs(rows)[:SAMPLES_SHOWN] for name, rows in samples.items()}
    paid = {name: "normalised" if got["assignment"] == "even" else "change" for name, got in levels.items()}
    scale = _colour_limit(
        abs(segment[paid[name]]) for name, shown in pairs.items() for pair in shown for s in pair for segment in s["segments"]
    )
    batch = results["rollout_batch_size"]
    with TemporaryDirectory() as drawings:
        page = {
            "facts": _facts(results, max(row["step"] for rows in metrics.values() for row in rows) * batch),
            "table": table_rows(results),
            "curves": _learning_curves(metrics, batch, results["target_true_reward"], Path(drawings)),
            "accuracy": _accuracy_curve(training, results["best_accuracy"], Path(drawings)),
            "normalizers": _normalizers(folder, levels),
            "legend_steps": _legend(scale),
            "samples": [_level_samples(name, shown, paid[name], scale, batch) for name, shown in pairs.items()],
            "colours": LEVEL_COLOURS,
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render("evaluation/report.html", page), encoding="utf-8")


def table_rows(results: dict) -> list[list[str]]:
    """The results as cells: one row of headings, then one row per level."""
    goal = f"rollouts to {results['target_true_reward']:g}"
    rows = [["level", "RM accuracy", "best", "share", "true before", "true after", "KL", goal]]
    for level, got in results["levels"].items():
        rollouts = got["rollouts_to_target"]
        rows.append(
            [
                level,
                f"{got['rm_accuracy']:.3f}",
                f"{results['best_accuracy']:.3f}",
                f"{got['rm_share_of_best']:.0%}",
                f"{got['true_before']:+.2f}",
                f"{got['true_after']:+.2f}",
                f"{got['kl']:.1f}",
                "not reached" if rollouts is None else str(rollouts),
            ]
        )
    return rows


def format_table(results: dict) -> str:
    """The results as plain text in aligned columns, headings first."""
    rows = table_rows(results)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        line[0] = row[0].ljust(widths[0])
    return "\n".join("  ".join(line) for line in [lines[0], ["-" * width for width in widths], *lines[1:]])


def _rows(path: Path, command: str) -> list[dict]:
    rows = read_metrics(path)
    if not rows:
        raise _missing(path, command)
    return rows


def _missing(path: Path, command: str) -> UserError:
    folder = path.parent
    return UserError(
        f"{path}: missing or empty; the report needs it, and `denserl {command} --output_dir {folder}` writes it",
        f"denserl demo --output_dir {folder.parent} runs every stage",
    )


def _facts(results: dict, rollouts: int) -> dict[str, str]:
    return {
        "levels": ", ".join(f"{level} ({REWARD_PER[level]})" for level in results["levels"]),
        "rollouts": str(rollouts),
        "best": f"{results['best_accuracy']:.3f}",
        "target": f"{results['target_true_reward']:g}",
        "seed": str(results["seed"]),
        "minutes": f"{results['minutes']:.1f}",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }


def _learning_curves(metrics: dict[str, list[dict]], batch: int, target: float, drawings: Path) -> list[dict]:
    """The held-out evaluations of every level, drawn four ways."""
    held_out = {
        level: [{**row, "rollouts": row["step"] * batch} for row in rows if "eval_kl" in row] for level, rows in metrics.items()
    }
    kl, goal = "KL (nats per response)", (target, f"target {target:g}")
    panels = [
        ("True reward", "rollouts", "eval_true_reward", "rollouts sampled", "true reward", goal),
        ("Distance from the SFT model", "rollouts", "eval_kl", "rollouts sampled", kl, None),
        ("Reward model's own reward", "rollouts", "eval_reward", "rollouts sampled", "mean raw reward", None),
        ("True reward for its distance", "eval_kl", "eval_true_reward", kl, "true reward", goal),
    ]
    drawn = []
    for number, (title, x, y, xlabel, ylabel, reference) in enumerate(panels):
        path = drawings / f"{number}.svg"
        curves = {level: _curve(rows, x, y) for level, rows in held_out.items()}
        plot_levels(curves, path, xlabel=xlabel, ylabel=ylabel, reference=reference)
        drawn.append({"title": title, "image": data_uri(path), "alt": f"{ylabel} against {xlabel}, held-out prompts"})
    return drawn


def _accuracy_curve(training: dict[str, list[dict]], best: float, drawings: Path) -> dict:
    path = drawings / "accuracy.svg"
    plot_levels(
        {level: _curve(rows, "step", "accuracy") for level, rows in training.items()},
        path,
        xlabel="optimiser step",
        ylabel="pair accuracy",
        reference=(best, f"best reachable {best:.3f}"),
        points={level: _curve(rows, "step", "eval_accuracy") for level, rows in training.items()},
    )
    return {"image": data_uri(path), "alt": "pair accuracy of the reward models against optimiser steps"}


def _curve(rows: list[dict], x: str, y: str) -> Curve:
    """The rows that have both values; a value that was not finite is None in the file."""
    both = [(row[x], row[y]) for row in rows if row.get(x) is not None and row.get(y) is not None]
    return Curve([point[0] for point in both], [point[1] for point in both])


def _normalizers(folder: Path, levels: dict[str, dict]) -> list[dict]:
    """The fit's plot of each level whose rewards are normalised by place."""
    drawn = []
    for level in (got["level"] for got in levels.values() if got["normalizer"] == "location"):
        path = folder / f"fit-{level}/normalizer.png"
        if not path.is_file():
            raise _missing(path, "fit-normalizer")
        alt = f"mean and standard deviation of {level} rewards by place, with fitted lines"
        drawn.append({"level": level, "image": data_uri(path), "alt": alt})
    return drawn


def _pairs(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Samples of the first and of the last evaluation, prompt by prompt."""
    steps = [row["step"] for row in rows]
    before, after = ([row for row in rows if row["step"] == step] for step in (min(steps), max(steps)))
    return list(zip(before, after, strict=False))


def _colour_limit(sizes: Iterable[float]) -> float:
    """The end of the colour scale on both sides of 0: 95 % of the shown payments lie within it, whatever the outliers."""
    sizes = list(sizes)
    return max(round(float(np.quantile(sizes, 0.95)), 1), 0.1) if sizes else 1.0


def _legend(limit: float) -> list[Step]:
    rewards = [limit * quarter / 4 for quarter in range(-4, 5)]
    return [Step(f"{reward:+.1f}", share_of(reward, limit)) for reward in rewards]


def _level_samples(name: str, pairs: list[tuple[dict, dict]], paid: str, limit: float, batch: int) -> dict:
    prompts = [
        {"text": visible(pair[0]["prompt"].strip()), "responses": [_response(sample, paid, limit, batch) for sample in pair]}
        for pair in pairs
    ]
    return {"level": name, "reward_per": REWARD_PER[name], "prompts": prompts}


def _response(sample: dict, paid: str, limit: float, batch: int) -> dict:
    true_reward, rollouts = sample.get("true_reward"), sample["step"] * batch
    return {
        "when": f"after {rollouts} rollouts" if rollouts else "before PPO",
        "true_reward": None if true_reward is None else f"{true_reward:+.2f}",
        "ended": sample["ended"],
        "segments": [_segment(segment, paid, limit) for segment in sample["segments"]],
    }


def _segment(segment: dict, paid: str, limit: float) -> dict[str, str | float]:
    raw, normalised, change = segment["raw"], segment["normalised"], segment["change"]
    return {
        "text": visible(segment["text"]).replace("\n", "↵\n"),
        "raw": f"{raw:+.2f}",
        "paid": f"{segment[paid]:+.2f}",
        "title": f"raw {raw:+.4f}, normalised {normalised:+.4f}; this segment changed the score by {change:+.4f}",
        "share": share_of(segment[paid], limit),
    }
