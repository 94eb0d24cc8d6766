"""The world of sums: models that judge steps, best-of-n by them, and PPO against every kind of reward, over seeds.

Each seed is a world of its own; every model is made by an ordinary command, printed as it is run. Prints tables and writes
RUNS/process.json; what is finished is not run again. docs/process_rewards.md tells what came out.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from harness import ending_well, run_parts
from levels import shown, summarise
from scipy.stats import spearmanr

from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.data.batching import map_responses
from denserl.data.step_encoding import encode_steps
from denserl.evaluation.solutions import f1
from denserl.models.loading import load_policy
from denserl.models.scoring import response_logprobs_entropies
from denserl.models.tokenizers import load_tokenizer
from denserl.terminal import say
from denserl.trainer.trackers import read_metrics
from denserl.world import sums

Part = Literal["judges", "answers", "ppo"]
# For a 3-layer model.
TRAINED = {"warmup_ratio": 0.05, "max_length": 128, "save_steps": 0, "device": "cpu"}
SFT = {**TRAINED, "epochs": 2, "batch_size": 32, "micro_batch_size": 32, "lr": 3e-3}
LABELS = {
    **TRAINED,
    "epochs": 4,
    "batch_size": 64,
    "micro_batch_size": 64,
    "lr": 2e-3,
    "max_prompt_length": 64,
    "eval_steps": 0,
    "head_type": "label",
}
PPO = {
    **read_table()["model_types"]["tiny"]["ppo"],
    "max_new_tokens": 48,
    "kl_coefficient": 0.02,
    "iterations": 20,
    "eval_every": 10,
    "samples_logged": 256,
}
ANSWERS_ERROR_RATE = 0.25
TRUTH = "denserl.world.sums:true_reward"


# Name, what stands in the context, and the rows that are learned from.
JUDGES = (
    ("no signs", "none", "steps_train"),
    ("always +", "plus", "steps_train"),
    ("true signs", "true", "steps_train"),
    ("no signs, soft labels", "none", "steps_train_soft"),
)
BON = {"final_answer": "denserl.world.sums:final_answer"}
# How PPO is paid: a world -> flags of train-ppo.
ARMS: dict[str, Callable[["World"], dict]] = {
    "outcome": lambda w: {"reward_function": TRUTH},
    "verifier of steps": lambda w: {"reward_function": "denserl.world.sums:true_steps"},
    "steps, difference": lambda w: {"reward_model": w.judge_of_steps()},
    "steps, centred, sum": lambda w: {"reward_model": w.judge_of_steps(), "step_reward": "centred"},
    "steps, min": lambda w: {"reward_model": w.judge_of_steps(), "credit": "min"},
    "steps, min, and the outcome": lambda w: {
        "reward_model": w.judge_of_steps(),
        "credit": "min",
        "outcome_function": TRUTH,
    },
    "steps, prefix_min": lambda w: {"reward_model": w.judge_of_steps(), "credit": "prefix_min"},
    "steps, prob, sum": lambda w: {"reward_model": w.judge_of_steps(), "step_reward": "prob"},
    "steps, prob, sum, twice as long": lambda w: {
        "reward_model": w.judge_of_steps(),
        "step_reward": "prob",
        "iterations": 2 * PPO["iterations"],
    },
    "implicit": lambda w: {"implicit_reward": w.sft(), "implicit_beta": 0.1},
    "outcome model at the end": lambda w: {"reward_model": w.judge_of_outcomes(from_steps=True)},
    "outcome model, prefix differences": lambda w: {
        "reward_model": w.judge_of_outcomes(from_steps=True),
        "prefix_differences": True,
    },
}


@dataclass
class Options:
    """Judge steps, choose answers and run PPO in the world of sums."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the worlds and of every run in them."""
    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    """What to run."""
    runs: Path = Path("runs/process")
    """Folder for the runs."""


class World:
    """One seed's world: its language models, judges and PPO runs, each made when first asked for."""

    def __init__(self, seed: int, runs: Path):
        self.seed, self.folder = seed, runs / f"seed{seed}"
        self.data = self.folder / "world"
        if not (self.data / "world.json").exists():
            stage("make-world", kind="sums", output_dir=self.data, seed=seed)

    def sft(self, erring: bool = False) -> Path:
        """The language model of demonstrations without errors, or of those with."""
        name = "sft_erring" if erring else "sft"
        return self._made(name, "train-sft", SFT, model=self.data / "base", data=self._rows(name))

    def judge_of_steps(self, signs: str = "none", rows: str = "steps_train") -> Path:
        """A model that judges steps, started from the language model without errors."""
        name = f"prm-{signs}-{rows}"
        flags = {"input": "steps", "context_signs": signs, "data": self._rows(rows), "eval_data": self._rows("steps_test")}
        return self._made(name, "train-rm", LABELS, model=self.sft(), **flags)

    def judge_of_outcomes(self, from_steps: bool = False) -> Path:
        """A model that judges whole solutions, started from the language model, or from the judge of steps."""
        flags = {"input": "response", "data": self._rows("outcomes_train"), "eval_data": self._rows("outcomes_test")}
        start = self.judge_of_steps() if from_steps else self.sft()
        return self._made(f"orm{'-from-prm' * from_steps}", "train-rm", {**LABELS, "epochs": 1}, model=start, **flags)

    def evaluated(self, model: Path, suite: str, path: Path, name: str = "", **flags) -> Path:
        """The folder with what `evaluate` finds, run once."""
        folder = self.folder / "evaluated" / f"{suite}-{model.name}{name}"
        if not (folder / "results.json").exists():
            stage("evaluate", suite, path, scorer=model, output_dir=folder, device="cpu", **flags)
        return folder

    def answers(self) -> Path:
        """Problems with 16 answers each, of more errors than elsewhere."""
        folder = self.folder / "answers"
        if not (folder / "world.json").exists():
            flags = {"error_rate": ANSWERS_ERROR_RATE, "scale": 0.2}
            stage("make-world", kind="sums", output_dir=folder, seed=self.seed, **flags)
        return folder / "answers_test.jsonl"

    def _rows(self, name: str) -> Path:
        return self.data / f"{name}.jsonl"

    def _made(self, name: str, command: str, settings: dict, **flags) -> Path:
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            stage(command, **{**settings, **flags}, output_dir=folder, seed=self.seed)
        return folder

    def ppo(self, name: str, flags: dict) -> dict:
        """Held-out measures before and after PPO from the language model with errors."""
        folder = self.folder / "ppo" / name.replace(" ", "-").replace(",", "").replace("+", "and")
        if not (folder / "model.safetensors").exists():
            stage(
                "train-ppo",
                **{**PPO, **flags},
                model=self.sft(erring=True),
                data=self._rows("prompts_train"),
                eval_prompts=self._rows("prompts_heldout"),
                true_reward=TRUTH,
                output_dir=folder,
                seed=self.seed,
            )
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_true_reward" in row]
        steps = written_steps(folder / "eval_samples.jsonl")
        names = {"solved": "true_reward", "kl": "kl", "ended": "ended", "tokens": "response_length"}
        found = [{name: row[f"eval_{key}"] for name, key in names.items()} | steps[row["step"]] for row in rows]
        before, after = found[0], found[-1]
        return {**{f"{name} before": before[name] for name in ("solved", "paid", "steps")}, **after}


def written_steps(path: Path) -> dict[int, dict]:
    """Of the held-out responses after so many iterations: what they are paid, steps in each, less those due, and shares of
    steps that are right, and that are other ones than are due.
    """
    found: dict[int, list[list[float]]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        prompt, paid = row["prompt"].split("\n")[1], sum(segment["paid"] for segment in row["segments"])
        kinds = sums.kinds(prompt, row["response"])
        counts = [len(kinds), len(sums.read_problem(prompt).changes), kinds.count("right"), kinds.count("other")]
        found.setdefault(row["step"], []).append([paid, *counts])
    return {step: _of_steps(np.mean(rows, axis=0).tolist()) for step, rows in found.items()}


def _of_steps(means: list[float]) -> dict[str, float]:
    paid, written, due, right, other = means
    return {
        "paid": paid,
        "steps": written,
        "more than due": written - due,
        "right steps": right / max(written, 1e-9),
        "other steps": other / max(written, 1e-9),
    }


def judges(options: Options) -> dict:
    """How well models of every layout find wrong steps, the language model's own likelihoods among them."""
    return tabled([_judged(World(seed, options.runs)) for seed in options.seeds])


def _judged(world: World) -> dict[str, dict[str, float]]:
    path = world.data / "processbench.jsonl"
    rows = read_rows(path)
    chances = {}
    for name, signs, labelled in JUDGES:
        model = world.judge_of_steps(signs, labelled)
        folder = world.evaluated(model, "processbench", path)
        chances[name] = [row["chances"] for row in read_rows(folder / f"{model.name}_steps.jsonl")]
    chances["likelihood of the language model"] = likelihoods(world.sft(), rows)
    found = {name: judgements(rows, of_rows) for name, of_rows in chances.items()}
    hard, soft = (np.concatenate(chances[name]) for name in ("no signs", "no signs, soft labels"))
    found["no signs, soft labels"]["Spearman with hard"] = float(spearmanr(hard, soft).statistic)
    return found


def judgements(rows: list[dict], chances: list) -> dict[str, float]:
    """What the chances of steps, held for wrong below one half, say of the solutions of rows in ProcessBench's columns."""
    labels = [sums.step_labels(row["problem"], sums.SEPARATOR.join(row["steps"])) for row in rows]
    said = [np.asarray(of_row) >= 0.5 for of_row in chances]
    first = np.array([[_first_wrong(of_row) for of_row in side] for side in (labels, said)])
    wrong = first[0] >= 0
    error, correct = ((first[0] == first[1])[part].mean() for part in (wrong, ~wrong))
    later = [(mine[k], true[k]) for mine, true, at in zip(said, labels, first[0]) if at >= 0 for k in range(at + 1, len(true))]
    steps, true = np.concatenate(said), np.concatenate(labels)
    return {
        "F1": float(f1(error, correct)),
        "first errors found": float(error),
        "right ones passed": float(correct),
        "later wrong steps found": float(np.mean([not mine for mine, right in later if not right])),
        "steps judged rightly": float((steps == true).mean()),
        "all steps held for right": float(true.mean()),
    }


def likelihoods(model: Path, rows: list[dict]) -> list[np.ndarray]:
    """The likelihood of the least likely token of each step of the solutions, by a language model."""
    tokenizer, policy = load_tokenizer(str(model)), load_policy(str(model), "fp32").eval()
    pieces = [[*(step + sums.SEPARATOR for step in row["steps"][:-1]), row["steps"][-1]] for row in rows]
    messages = [[{"role": "user", "content": row["problem"]}] for row in rows]
    encoded = [encode_steps(tokenizer, message, steps) for message, steps in zip(messages, pieces, strict=True)]
    logprobs = map_responses(
        [row.prompt_ids for row in encoded],
        [row.response_ids for row in encoded],
        lambda batch: response_logprobs_entropies(policy, batch)[..., 0],
        pad_id=tokenizer.pad_token_id,
        max_tokens=16384,
        device="cpu",
        progress="likelihoods",
    )
    starts = [[0, *(at + 1 for at in ids.read_at[:-1])] for ids in encoded]
    # Without the token that ends the turn.
    return [np.exp(np.minimum.reduceat(logprobs[i][:-1], of_row)) for i, of_row in enumerate(starts)]


def answers(options: Options) -> dict:
    """Which of 16 answers judges choose, of problems whose answers err more often than what the judges learned from."""
    return tabled([_chosen(World(seed, options.runs)) for seed in options.seeds])


def _chosen(world: World) -> dict[str, dict[str, float]]:
    steps, found = world.judge_of_steps(), {}
    ways = {f"steps, {how}": (steps, {"aggregate": how}) for how in ("min", "prod", "mean", "last")}
    ways["outcomes"] = (world.judge_of_outcomes(), {})
    ways["outcomes, started from steps"] = (world.judge_of_outcomes(from_steps=True), {})
    for name, (model, flags) in ways.items():
        folder = world.evaluated(model, "bon_answers", world.answers(), flags.get("aggregate", ""), **flags, **BON)
        summary = json.loads((folder / "results.json").read_text())
        found[name] = {way: summary[way] for way in ("best", "weighted", "majority", "oracle", "pass@1")}
    return found


def ppo(options: Options) -> dict:
    """PPO from the language model with errors, paid in every way."""
    runs = [World(seed, options.runs) for seed in options.seeds]
    # One way in all seeds before the next.
    found = {name: [world.ppo(name, arm(world)) for world in runs] for name, arm in ARMS.items()}
    return tabled([{name: of_seeds[i] for name, of_seeds in found.items()} for i in range(len(runs))])


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tabled(found: list[dict[str, dict[str, float]]]) -> dict:
    """Mean and interval over seeds of every measure of every row, printed."""
    rows = {}
    for name, measures in found[0].items():
        rows[name] = {measure: summarise([of_seed[name][measure] for of_seed in found]) for measure in measures}
        say(f"  {name}")
        for measure, summary in rows[name].items():
            say(f"    {measure:28}{shown(summary)}   {summary['values']}")
    return rows


def _first_wrong(labels) -> int:
    return next((k for k, right in enumerate(labels) if not right), -1)


PARTS: dict[str, Callable[[Options], dict]] = {"judges": judges, "answers": answers, "ppo": ppo}


def main(options: Options) -> None:
    run_parts(PARTS, options, options.runs / "process.json")


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
