"""What segments are paid in the embedded world: levels and assignments side by side, over seeds, with confidence intervals.

Each seed is a world of its own, with its language model and reward models; every model is made by an ordinary command, printed
as it is run. Prints tables and writes RUNS/levels.json and plots; what is finished is not run again. docs/credit.md tells what
came out.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from harness import ending_well, run_parts
from scipy.stats import t as student

from denserl.cli.demo_ways import SFT
from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.evaluation.plots import Band, plot_side_by_side
from denserl.levels import LEVELS
from denserl.terminal import say
from denserl.trainer.trackers import read_metrics
from denserl.world import language, make
from denserl.world.checks import check_segments

Part = Literal["models", "credit", "further", "long", "sum", "asked", "noise", "lambda", "repeats", "picture"]
THRESHOLDS = LEVELS | {"segment": make.THRESHOLD}
COEFFICIENTS = (0.2, 0.05, 0.0125)
NATS = 2
TARGETS = (0.3, 0.5, 0.6)
TINY = read_table()["model_types"]["tiny"]


class Arm(NamedTuple):
    """A way of paying: a reward model's level, the assignment, and how the reward model's segments make its score;
    flags of train-ppo beside them, None to leave one out.
    """

    level: str
    assignment: str
    agg_func: str = "avg"
    flags: dict = {}


BANDIT = Arm("bandit", "mean_last")
# Ways of paying at both dense levels. A token is a segment of one, where the two differences are one.
AT_LEVEL = {"at the end": "score_last", "even": "even", "even / K": "even_mean", "difference": "difference"}
ARMS = {"bandit": BANDIT} | {
    f"{level}, {name}": Arm(level, kind) for level in ("segment", "token") for name, kind in AT_LEVEL.items()
}
AT_ENDS = {"segment, difference at ends": Arm("segment", "difference_end")}
FEW = {name: ARMS[name] for name in ("bandit", "segment, at the end", "segment, even", "segment, difference")} | AT_ENDS
IN_SUM = {
    "bandit": BANDIT,
    "sum, at the end": Arm("segment", "score_last", "sum"),
    "sum, difference at ends": Arm("segment", "difference_end", "sum"),
    "mean, even": Arm("segment", "even"),
    "mean, difference at ends": Arm("segment", "difference_end"),
}
PICTURED = {
    "bandit": "one reward, by a model of responses",
    "segment, at the end": "one reward, by the segment model",
    "segment, even": "each segment its reward (published)",
    "segment, difference at ends": "each segment what it changes, at its end",
}
# Beside lambda 0.95, which the arms have by themselves.
LAMBDAS = {name: FEW[name] for name in ("segment, at the end", "segment, difference", *AT_ENDS)}
LAMBDAS |= {f"{name}, lambda {x:g}": arm._replace(flags={"lam": x}) for name, arm in LAMBDAS.items() for x in (0.8, 0.9, 1.0)}

# What may keep the published sum from repeating itself: a reward for not doing so, credit by the worst segment, or a score paid
# by differences. The world's repetitions have a form of their own, which a function that compares texts takes for new.
NO_REPEATS = {"reward_function": "examples/my_reward.py:no_repeats"}
NO_FORMS = {"reward_function": "benchmarks/levels.py:no_forms_again"}
REPEATS = {
    "segment, even": ARMS["segment, even"],
    "segment, even, no_repeats": Arm("segment", "even", flags=NO_REPEATS),
    "segment, even, no_forms_again": Arm("segment", "even", flags=NO_FORMS),
    "segment, even, min credit": Arm("segment", "even", flags={"credit": "min"}),
    "bandit": BANDIT,
    "bandit, prefix differences": Arm("bandit", "difference_end", flags={"prefix_differences": True}),
    **AT_ENDS,
}

# The lambda that suits differences, for longer responses too.
LONGER = ("segment, difference at ends, lambda 0.8",)


class Kind(NamedTuple):
    """A world: how its data are drawn, what judges a response, and the longest response in tokens."""

    made_with: dict = {}
    truth: str = "true_reward"
    max_new_tokens: int = 40
    pairs: dict = {}  # further flags of train-rm


KINDS = {
    "short": Kind(),
    "long": Kind({"min_sentences": 6, "max_sentences": 12}, max_new_tokens=80),
    "sum": Kind({"truth": "sum"}, "true_reward_sum"),
    "asked": Kind({"truth": "asked"}, "true_reward_asked"),
    # The pairs of the study of noisy labels: few, and a quarter turned round.
    "noise": Kind(pairs={"limit": 6000, "flip_frac": 0.25}),
}


@dataclass
class Options:
    """Compare levels and assignments in the embedded world."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the worlds and of every run in them."""
    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    """What to run."""
    coefficients: list[float] = field(default_factory=lambda: list(COEFFICIENTS))
    """Weights of the KL penalty."""
    runs: Path = Path("runs/levels")
    """Folder for the runs."""


class World:
    """One seed's world of one kind: its language model, reward models, fits and PPO runs, each made when first asked for."""

    def __init__(self, kind: str, seed: int, runs: Path):
        self.kind, self.seed, self.folder = KINDS[kind], seed, runs / kind / f"seed{seed}"
        self.data, self.sft = self.folder / "world", self.folder / "sft"
        make_language_model(self.folder, seed, **self.kind.made_with)

    def reward_model(self, level: str, agg_func: str = "avg") -> Path:
        target = self.folder / f"rm-{level}-{agg_func}"
        if not (target / "model.safetensors").exists():
            stage(
                "train-rm",
                **TINY["rm"],
                **self._level(level),
                **self._pairs(),
                **self.kind.pairs,
                model=self.sft,
                eval_data=self.data / "preferences_test.jsonl",
                output_dir=target,
                agg_func=agg_func,
            )
        return target

    def fit(self, level: str, agg_func: str = "avg") -> dict:
        """The flags that name a reward model's location lines."""
        model, target = self.reward_model(level, agg_func), self.folder / f"fit-{level}-{agg_func}"
        if not (target / "normalizer.png").exists():
            stage(
                "fit-normalizer",
                **TINY["fit"],
                **self._pairs(),
                reward_model=model,
                output_dir=target,
            )
        return {"fit": model / "fits.json"}

    def ppo(self, name: str, arm: Arm, coefficient: float, iterations: int) -> list[dict]:
        """The held-out evaluations of a run, with the share of repeated sentences in each."""
        target = (
            self.folder / "ppo" / f"{name}-{coefficient:g}-{iterations}".replace(" ", "-").replace("/", "over").replace(",", "")
        )
        if not (target / "model.safetensors").exists():
            numbers = {"kl_coefficient": coefficient, "iterations": iterations, "samples_logged": 64}
            located = arm.assignment in ("even", "even_mean")
            stage(
                "train-ppo",
                **without_none({**TINY["ppo"], "max_new_tokens": self.kind.max_new_tokens, **numbers, **arm.flags}),
                **(self._prefixes() if "prefix_differences" in arm.flags else self._level(arm.level)),
                **(self.fit(arm.level, arm.agg_func) if located else {}),
                assignment=arm.assignment,
                model=self.sft,
                reward_model=self.reward_model(arm.level, arm.agg_func),
                data=self.data / "prompts_train.jsonl",
                eval_prompts=self.data / "prompts_heldout.jsonl",
                true_reward=f"denserl.world.language:{self.kind.truth}",
                output_dir=target,
                seed=self.seed,
            )
        return held_out(target)

    def models(self) -> dict[str, float]:
        """How good the reward models are, and how well the segment model's rewards agree with sentences and their values."""
        best = json.loads((self.data / "world.json").read_text())["best_accuracy_test"]
        found = {}
        for level in THRESHOLDS:
            rows = read_metrics(self.reward_model(level) / "metrics.jsonl")
            found[f"{level}: share of the best accuracy"] = rows[-1]["eval_accuracy"] / best
        pairs, model = self.data / "preferences_test.jsonl", self.reward_model("segment")
        return found | check_segments(str(self.sft), str(model), pairs, THRESHOLDS["segment"])

    def _level(self, level: str) -> dict:
        return {"reward_level": level, "entropy_threshold": THRESHOLDS[level]}

    def _prefixes(self) -> dict:
        """Segments and the scale of the model of whole responses, where prefixes are paid what they change in its score."""
        model = self.reward_model("bandit")
        std = json.loads((model / "config.json").read_text())["std"]
        return {**self._level("segment"), "normalizer": "scalar", "reward_mean": 0.0, "reward_std": std}

    def _pairs(self) -> dict:
        return {"data": self.data / "preferences_train.jsonl", "cache_dir": self.folder / "cache", "seed": self.seed}


def make_language_model(folder: Path, seed: int, **made_with) -> None:
    """A world in world/, and the language model of its demonstrations in sft/, made now if they are not there."""
    world, sft = folder / "world", folder / "sft"
    if not (sft / "model.safetensors").exists():
        stage("make-world", output_dir=world, seed=seed, **made_with)
        stage("train-sft", **SFT, model=world / "base", data=world / "sft.jsonl", output_dir=sft, seed=seed)


def held_out(folder: Path) -> list[dict]:
    """The held-out evaluations of a PPO run, with the share of repeated sentences in each."""
    repeats = repeated(folder / "eval_samples.jsonl")
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_true_reward" in row]
    return [
        {
            "rollouts": row["step"] * TINY["ppo"]["rollout_batch_size"],
            "true": row["eval_true_reward"],
            "kl": row["eval_kl"],
            "proxy": row["eval_normalised_reward"],
            "length": row["eval_response_length"],
            "segments": row["eval_segments"],
            "repeats": repeats[row["step"]],
        }
        for row in rows
    ]


def without_none(flags: dict) -> dict:
    """The flags that have a value."""
    return {name: value for name, value in flags.items() if value is not None}


def repeated(path: Path) -> dict[int, float]:
    """Step -> share of the sentences of the sampled responses that had been said before."""
    kinds: dict[int, list[str]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        prompt = row["prompt"].split("\n")[1]
        kinds.setdefault(row["step"], []).extend(language.kinds(prompt, row["response"]))
    return {step: said.count("repeated") / max(len(said), 1) for step, said in kinds.items()}


def no_forms_again(prompts: list, responses: list[str]) -> list[list[tuple[int, float]]]:
    """examples/my_reward.py:no_repeats, where a sentence counts as said before in whatever form it was said."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        kinds = language.kinds(prompt[-1]["content"], response)
        ends = [end for _, end in language.sentences(response)]
        found.append([(end, -float(kind == "repeated")) for end, kind in zip(ends, kinds, strict=True)])
    return found


def reward_models(options: Options) -> dict:
    """How good the reward models of the world are."""
    found = [World("short", seed, options.runs).models() for seed in options.seeds]
    summaries = {name: summarise([of_seed[name] for of_seed in found]) for name in found[0]}
    for name, summary in summaries.items():
        say(f"  {name:36}{shown(summary)}   {summary['values']}")
    return summaries


def compared(kind: str, arms: dict[str, Arm], iterations: int, baseline: str = "bandit") -> Callable[[Options], dict]:
    """A part: these arms in a kind of world, at every coefficient."""

    def part(options: Options) -> dict:
        runs = {
            (coefficient, name): [
                World(kind, seed, options.runs).ppo(name, arm, coefficient, iterations) for seed in options.seeds
            ]
            for coefficient in options.coefficients
            for name, arm in arms.items()
        }
        found = {}
        for coefficient in options.coefficients:
            of_arms = {name: runs[coefficient, name] for name in arms}
            say(f"\n{kind} world, {iterations} iterations, KL coefficient {coefficient:g}")
            found[f"{coefficient:g}"] = {name: outcome(of_arms, name, baseline) for name in arms}
            for name, measures in found[f"{coefficient:g}"].items():
                line = "  ".join(f"{measure} {shown(measures[measure])}" for measure in ("true at end", "best", "kl at end"))
                say(f"  {name:34}{line}")
        draw(runs, options, kind, iterations)
        return found

    return part


def outcome(runs: dict[str, list[list[dict]]], name: str, baseline: str) -> dict:
    """Means and intervals over seeds of what a run came to, alone and seed by seed against the baseline's and others' runs."""
    measured = [measures(run) for run in runs[name]]
    found = {measure: summarise([of_seed[measure] for of_seed in measured]) for measure in measured[0]}
    for other in runs:
        if other != name and other in (baseline, "segment, at the end", "token, at the end", "sum, at the end"):
            best = [max(row["true"] for row in run) for run in runs[other]]
            reached = [when(run, "true", goal) for run, goal in zip(runs[name], best)]
            theirs = [when(run, "true", goal) for run, goal in zip(runs[other], best)]
            shares = [ours / their if ours is not None and their else None for ours, their in zip(reached, theirs)]
            gains = [ours[-1]["true"] - their[-1]["true"] for ours, their in zip(runs[name], runs[other])]
            at_kl = [tuple(when(run, "kl", NATS, "true") for run in pair) for pair in zip(runs[name], runs[other])]
            found[f"share of the rollouts to the best of: {other}"] = summarise(shares)
            found[f"end above: {other}"] = summarise(gains)
            found[f"at {NATS} nats above: {other}"] = summarise([None if None in pair else pair[0] - pair[1] for pair in at_kl])
    return found


def measures(run: list[dict]) -> dict:
    """Numbers of one run, from its held-out evaluations."""
    last, best = run[-1], max(run, key=lambda row: row["true"])
    at = {f"true at {rollouts} rollouts": when(run, "rollouts", rollouts, "true") for rollouts in (640, 1280)}
    at |= {f"true at {kl} nats": when(run, "kl", kl, "true") for kl in (1, 2, 3)}
    reached = {f"rollouts to {target:g}": when(run, "true", target) for target in TARGETS}
    ends = {f"{name} at end": last[name] for name in ("true", "kl", "proxy", "length", "segments", "repeats")}
    return {
        **ends,
        "best": best["true"],
        "kl at best": best["kl"],
        "lost since best": best["true"] - last["true"],
        **at,
        **reached,
    }


def when(run: list[dict], column: str, reaches: float, read: str = "rollouts") -> float | None:
    """What is read where a column first reaches a value, interpolated between evaluations; None where it does not."""
    if run[0][column] >= reaches:
        return run[0][read]
    for before, row in zip(run, run[1:]):
        if row[column] >= reaches:
            share = (reaches - before[column]) / (row[column] - before[column])
            return before[read] + share * (row[read] - before[read])
    return None


def draw(runs: dict[tuple[float, str], list[list[dict]]], options: Options, kind: str, iterations: int) -> None:
    """True reward against rollouts, and against KL, one picture for each coefficient."""
    for coefficient in options.coefficients:
        curves = {name: of_seeds for (c, name), of_seeds in runs.items() if c == coefficient}
        by = {"rollouts": {}, "KL of held-out rollouts (nats)": {}}
        for name, of_seeds in curves.items():
            x, kl, true = (over_seeds(of_seeds, column) for column in ("rollouts", "kl", "true"))
            for label, points in zip(by, (x, kl)):
                by[label][name] = band([point["mean"] for point in points], true)
        for (label, bands), short in zip(by.items(), ("rollouts", "kl")):
            path = options.runs / f"{kind}-{iterations}-{coefficient:g}-{short}.png"
            plot_side_by_side({"true reward": bands}, path, xlabel=label)


def picture(options: Options) -> dict:
    """The picture of docs/credit.md: true reward against rollouts, of shorter and of longer responses."""
    panels = {"true reward, 2-6 sentences": "short", "true reward, 6-12 sentences": "long"}
    found = {label: {} for label in panels}
    for label, kind in panels.items():
        for name, told in PICTURED.items():
            runs = [World(kind, seed, options.runs).ppo(name, FEW[name], COEFFICIENTS[0], 40) for seed in options.seeds]
            x = [point["mean"] for point in over_seeds(runs, "rollouts")]
            found[label][told] = band(x, over_seeds(runs, "true"))
    plot_side_by_side(found, options.runs / "credit.png", xlabel="rollouts")
    return {}


def over_seeds(runs: list[list[dict]], column: str) -> list[dict]:
    """Mean and interval of each point of a curve that every seed has."""
    return [summarise([row[column] for row in rows]) for rows in zip(*runs, strict=True)]


def band(x: Sequence[float], points: list[dict]) -> Band:
    """A curve of means with their intervals."""
    middle, half = (np.array([point[name] for point in points]) for name in ("mean", "half_width"))
    return Band(list(x), middle.tolist(), (middle - half).tolist(), (middle + half).tolist())


def summarise(values: Sequence[float | None]) -> dict:
    """Mean and half-width of the 95 % t interval over the `n` seeds that have a value, of all in `values`."""
    known = np.array([value for value in values if value is not None], dtype=float)
    half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5 if len(known) > 1 else float("nan")
    rounded = [None if value is None else round(value, 3) for value in values]
    return {"mean": float(known.mean()) if len(known) else None, "half_width": float(half), "n": len(known), "values": rounded}


def shown(summary: dict) -> str:
    n, of = summary["n"], len(summary["values"])
    return f"{summary['mean']:.3f} +- {summary['half_width']:.3f}{f' ({n} of {of})' * (n < of)}" if n else "-"


PARTS: dict[str, Callable[[Options], dict]] = {
    "models": reward_models,
    "credit": compared("short", ARMS | AT_ENDS, 40),
    "further": compared("short", FEW, 120),
    "long": compared("long", FEW | {name: LAMBDAS[name] for name in LONGER}, 40),
    "sum": compared("sum", IN_SUM, 40),
    "asked": compared("asked", FEW, 40),
    "noise": compared("noise", FEW, 40),
    "picture": picture,
    "lambda": compared("short", LAMBDAS, 40, "segment, at the end"),
    "repeats": compared("short", REPEATS, 40),
}


def main(options: Options) -> None:
    run_parts(PARTS, options, options.runs / "levels.json")


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
