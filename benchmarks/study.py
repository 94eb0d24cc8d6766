"""What margins, label smoothing, ensembles and GRM's term do to reward models where a quarter of the labels is wrong.

In the embedded world: accuracy on unseen combinations, best-of-n and PPO against the true reward. On real pairs: accuracy, and
LLMBar. Every model is made by an ordinary command, printed as it is run. Writes RUNS/results.json and plots.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from harness import ending_well
from levels import THRESHOLDS, band, make_language_model, summarise

from denserl.cli.demo_ways import SFT
from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.errors import UserError
from denserl.evaluation.plots import plot_intervals, plot_over_optimisation
from denserl.terminal import say
from denserl.trainer.trackers import read_metrics
from denserl.world import language

# One head, one budget and one noise for all. GRM's coefficient is what the paper calls alpha.
HEAD = {"head_type": "mlp", "head_width": 64}
NOISE = {"flip_frac": 0.25}
METHODS = {
    "Bradley-Terry": {},
    "margin": {"use_margin": True},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "GRM 0.01": {"reg_type": "sft", "reg_coef": 0.01},
    "GRM 0.05": {"reg_type": "sft", "reg_coef": 0.05},
    "GRM 0.2": {"reg_type": "sft", "reg_coef": 0.2},
}
MEMBERS = 3  # of an ensemble, each of which has the whole budget
ENSEMBLES = {"ensemble, mean": "mean", "ensemble, mean - std": "mean_std"}
# What best-of-n is tried with.
PROXIES = ("Bradley-Terry", "label smoothing 0.1", "GRM 0.05", *ENSEMBLES)
PAIRS, SAMPLES, PROMPTS = 6000, 64, 64
PPO = {"kl_coefficient": 0.05, "iterations": 40}
REAL = {"hh-harmless": ("train.jsonl.gz", "test.jsonl.gz"), "ultrafeedback-1k": ("train.jsonl", "test.jsonl")}
UNRATED = ("hh-harmless",)  # without ratings there are no margins
Part = Literal["accuracy", "best-of-n", "ppo", "real"]


@dataclass
class Options:
    """Run the studies of reward models trained on noisy labels."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds; what is finished of one is not run again."""
    parts: list[Part] = field(default_factory=lambda: ["accuracy", "best-of-n", "ppo", "real"])
    """The studies to run."""
    data: Path = Path("../shared/data")
    """Folder with hh-harmless/, ultrafeedback-1k/, llmbar/ and text/, for the part on real pairs."""
    runs: Path = Path("runs/study")
    """Folder for the runs."""


def main(options: Options) -> None:
    options.runs.mkdir(parents=True, exist_ok=True)
    path = options.runs / "results.json"
    for part in options.parts:
        found = STUDIES[part](options)
        before = json.loads(path.read_text()) if path.exists() else {}
        # Other parts of the same seeds stay, and this one is kept whatever becomes of the next.
        kept = before if before.get("seeds") == options.seeds else {"seeds": options.seeds}
        path.write_text(json.dumps({**kept, part: found}, indent=2))
    say(f"\n{path}")


def accuracy_in_the_world(options: Options) -> dict:
    """Accuracy of every method on pairs of combinations that no training data held."""
    found = [world_of(seed, options).accuracies() for seed in options.seeds]
    return table(found, options.runs / "accuracy.png", "accuracy on unseen combinations, a quarter of the labels wrong")


def accuracy_on_real_pairs(options: Options) -> dict:
    """The same on the held-out pairs of real data sets, and on LLMBar for the first seed's models of UltraFeedback."""
    sets = {name: [RealPairs(name, seed, options) for seed in options.seeds] for name in REAL}
    found = {
        name: table([pairs.accuracies() for pairs in of_seeds], options.runs / f"{name}.png", f"accuracy on {name}")
        for name, of_seeds in sets.items()
    }
    first = sets["ultrafeedback-1k"][0]
    return {**found, "llmbar": {method: first.llmbar(method) for method in ("Bradley-Terry", "GRM 0.05")}}


def best_of_n(options: Options) -> dict:
    """Proxy and true reward of the best of n by several proxies, which all choose among the same samples."""
    found, gold = {}, {}
    for proxy in PROXIES:
        runs = [world_of(seed, options).best_of(proxy) for seed in options.seeds]
        gains = [np.array(run["gold"]) - run["gold"][0] for run in runs]
        curves = {"proxy": [run["proxy"] for run in runs], "gold": [run["gold"] for run in runs], "gold_gain": gains}
        found[proxy] = {"n": runs[0]["n"], "kl": runs[0]["kl"], **{name: over_seeds(values) for name, values in curves.items()}}
        gold[proxy] = band(runs[0]["kl"], found[proxy]["gold_gain"])
    labels = {"xlabel": "KL of best-of-n (nats)", "ylabel": "true reward, gain over one sample"}
    plot_over_optimisation(gold, options.runs / "best_of_n.png", **labels)
    return found


def ppo_against_noise(options: Options) -> dict:
    """KL and rewards of held-out rollouts while PPO runs against reward models of noisy labels, at every level."""
    found = {}
    for level in ("segment", "token", "bandit"):
        runs = [world_of(seed, options).ppo(level) for seed in options.seeds]
        found[level] = {name: over_seeds([run[name] for run in runs]) for name in ("kl", "proxy", "gold")}
    kl = {level: [point["mean"] for point in part["kl"]] for level, part in found.items()}
    sides = {name: {level: band(kl[level], found[level][name]) for level in found} for name in ("proxy", "gold")}
    labels = {"xlabel": "KL on held-out prompts (nats)", "ylabel": "true reward"}
    plot_over_optimisation(sides["gold"], options.runs / "ppo.png", proxy=sides["proxy"], **labels)
    return found


def over_seeds(curves: list) -> list[dict]:
    """Mean and interval of each point of a curve that every seed has."""
    return [summarise(list(map(float, points))) for points in zip(*curves, strict=True)]


STUDIES = {"accuracy": accuracy_in_the_world, "best-of-n": best_of_n, "ppo": ppo_against_noise, "real": accuracy_on_real_pairs}


def table(found: list[dict[str, float]], plot: Path, name: str) -> dict:
    """Mean and 95 % t interval of each method over seeds, and of its difference from the first one; printed and drawn."""
    base, summaries = next(iter(found[0])), {}
    say(f"\n{name}")
    for method in found[0]:
        summary = summarise([of_seed[method] for of_seed in found])
        gain = summarise([of_seed[method] - of_seed[base] for of_seed in found])
        summaries[method] = {**summary, "difference": gain}
        shown = f"{summary['mean']:.3f} +- {summary['half_width']:.3f}   {gain['mean']:+.3f} +- {gain['half_width']:.3f}"
        say(f"  {method:24}{shown}   {summary['values']}")
    plot_intervals({m: (s["mean"], s["half_width"]) for m, s in summaries.items()}, plot, xlabel=name)
    return summaries


class Pairs:
    """Reward models of one seed, trained on one set of pairs by every method."""

    methods = (*METHODS, *ENSEMBLES)

    def __init__(self, folder: Path, sft: Path, train: Path, test: Path, seed: int, settings: dict):
        self.folder, self.sft, self.train, self.test, self.seed, self.settings = folder, sft, train, test, seed, settings

    def reward_model(self, method: str, member: int = 0, **flags) -> Path:
        """The folder of a method's reward model, trained now if it is not there."""
        target = self.folder / f"{method}-{member}".replace(" ", "-")
        if not (target / "model.safetensors").exists():
            stage(
                "train-rm",
                **{**self.settings, **HEAD, **NOISE, **METHODS.get(method, {}), **flags},
                model=self.sft,
                data=self.train,
                eval_data=self.test,
                cache_dir=self.folder / "cache",
                output_dir=target,
                seed=self.seed + 1000 * member,
            )
        return target

    def scorer(self, method: str) -> tuple[list[str], dict]:
        """A method's reward model, or those of its ensemble, and the flags that make one scorer of them."""
        if method not in ENSEMBLES:
            return [str(self.reward_model(method))], {}
        members = [str(self.reward_model("Bradley-Terry", member)) for member in range(MEMBERS)]
        return members, {"ensemble": ENSEMBLES[method]}

    def evaluate(self, suite: str, path: Path, method: str) -> dict:
        """What `denserl evaluate` writes of a method."""
        target = self.folder / f"{suite}-{method}".replace(" ", "-").replace(",", "")
        if not (target / "results.json").exists():
            models, combined = self.scorer(method)
            more = {"output_dir": target, "device": "cpu", "on_bad_row": "skip"}
            stage("evaluate", suite, path, scorer=models, **combined, **more)
        return json.loads((target / "results.json").read_text())

    def accuracies(self) -> dict[str, float]:
        return {method: self.evaluate("pairs", self.test, method)["accuracy"] for method in self.methods}

    def llmbar(self, method: str) -> dict:
        """Accuracy on LLMBar by subset."""
        subsets = self.evaluate("llmbar", self.test.parent.parent / "llmbar", method)["subsets"]
        return {name: {key: part[key] for key in ("n", "accuracy", "interval")} for name, part in subsets.items()}


class World(Pairs):
    """The embedded world of one seed, its language model, and reward models of few and noisy labels."""

    def __init__(self, seed: int, folder: Path):
        tiny = read_table()["model_types"]["tiny"]
        world = folder / "world"
        make_language_model(folder, seed)
        rated = folder / "pairs.jsonl"
        rated.write_text("".join(json.dumps(row) + "\n" for row in rated_pairs(world / "preferences_train.jsonl", seed)))
        settings = {**tiny["rm"], "reward_level": "bandit", "limit": PAIRS}
        super().__init__(folder, folder / "sft", rated, world / "preferences_test.jsonl", seed, settings)
        self.world, self.tiny = world, tiny

    def best_of(self, proxy: str) -> dict:
        """Curves of the best of n by one proxy; all proxies are shown the same samples."""
        target, samples = self.folder / f"bon-{proxy}".replace(" ", "-").replace(",", ""), self.folder / "samples"
        if not (target / "results.json").exists():
            models, combined = self.scorer(proxy)
            stage(
                "bon",
                model=self.sft,
                data=self.world / "prompts_heldout.jsonl",
                limit=PROMPTS,
                samples=SAMPLES,
                max_new_tokens=40,
                temperature=1.0,
                top_p=1.0,
                reward_model=models,
                **combined,
                true_reward="denserl.world.language:true_reward",
                samples_file=samples / "samples.jsonl",
                resume=True,
                output_dir=target,
                seed=self.seed,
                device="cpu",
            )
        return json.loads((target / "results.json").read_text())

    def ppo(self, level: str) -> dict[str, list[float]]:
        """KL, proxy and true reward of held-out rollouts during PPO against a reward model of noisy labels."""
        target = self.folder / f"ppo-{level}"
        at_level = {"reward_level": level, "entropy_threshold": THRESHOLDS[level]}
        if not (target / "model.safetensors").exists():
            proxy, fitted = self.reward_model(f"Bradley-Terry {level}", **at_level), {}
            if level != "bandit":
                fit = {"reward_model": proxy, "data": self.train}
                stage("fit-normalizer", **self.tiny["fit"], **fit, cache_dir=self.folder / "cache", output_dir=target / "fit")
                fitted = {"assignment": "even"}
            stage(
                "train-ppo",
                **{**self.tiny["ppo"], **at_level, **PPO, **fitted},
                model=self.sft,
                reward_model=proxy,
                data=self.world / "prompts_train.jsonl",
                eval_prompts=self.world / "prompts_heldout.jsonl",
                true_reward="denserl.world.language:true_reward",
                output_dir=target,
                seed=self.seed,
            )
        held_out = [row for row in read_metrics(target / "metrics.jsonl") if "eval_true_reward" in row]
        keys = {"kl": "eval_kl", "proxy": "eval_reward", "gold": "eval_true_reward"}
        return {name: [row[key] for row in held_out] for name, key in keys.items()}


def rated_pairs(path: Path, seed: int) -> list[dict]:
    """The pairs of a file of the world, each side rated from 1 to 5 by a rater who sees it alone and is not sure."""
    rng, rows = random.Random(seed), []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ratings = []
        for side in ("chosen", "rejected"):
            worth = language.response_reward(row["prompt"], row[side])
            ratings.append(min(5, max(1, round(3 + 2 * worth + rng.gauss(0, 0.5)))))
        # The label stands; how far apart the two are is what a margin takes from the ratings.
        rows.append({**row, "score_chosen": abs(ratings[0] - ratings[1]), "score_rejected": 0})
    return rows


def world_of(seed: int, options: Options) -> World:
    return World(seed, options.runs / f"seed{seed}")


class RealPairs(Pairs):
    """A real data set, a small language model trained on its chosen responses, and reward models of noisy labels."""

    SETTINGS = {
        "reward_level": "bandit",
        "epochs": 1,
        "batch_size": 32,
        "micro_batch_size": 8,
        "lr": 5e-4,
        "max_length": 256,
        "max_prompt_length": 128,
        "eval_steps": 0,
        "save_steps": 0,
        "on_bad_row": "skip",
        "device": "cpu",
    }

    def __init__(self, name: str, seed: int, options: Options):
        folder = options.runs / f"real-seed{seed}" / name
        train, test = (options.data / name / file for file in REAL[name])
        if not train.exists():
            raise UserError(f"there is no {train}", "give the folder of the data sets with --data, or leave the part real out")
        if not (folder / "sft/model.safetensors").exists():
            text = [options.data / "text/wiki_demo.txt", options.data / "text/c4_demo.jsonl", train]
            base = {"data": list(map(str, text)), "on_bad_row": "skip", "seed": seed}
            shape = {"vocab_size": 2048, "hidden_size": 64, "num_layers": 2, "num_heads": 4}
            stage("new-model", **base, **shape, output_dir=folder / "base")
            sft = {**SFT, "epochs": 1, "max_length": 128}
            stage("train-sft", **{**sft, **base}, model=folder / "base", output_dir=folder / "sft")
        super().__init__(folder, folder / "sft", train, test, seed, self.SETTINGS)
        if name in UNRATED:
            self.methods = tuple(method for method in self.methods if method != "margin")


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
