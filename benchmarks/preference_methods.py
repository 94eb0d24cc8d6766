"""What preference models beyond a Bradley-Terry score cure, over seeds, every method with the same budget of rows.

In worlds whose training pairs are fair, prefer length, or prefer an artefact; held-out pairs are always fair. Every model is
made by an ordinary command, printed as it is run. Prints tables and writes RUNS/preference_methods.json and .md; what is
finished is not run again. docs/preference_models.md tells what came out.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from harness import ending_well, run_parts
from levels import TINY, make_language_model, shown, without_none
from process import tabled

from denserl.cli.pipeline import stage
from denserl.trainer.trackers import read_metrics

Part = Literal["judging", "best-of-n", "ppo", "few labels"]
Kind = Literal["fair", "length", "artefact"]
WORLDS: dict[Kind, dict] = {"fair": {}, "length": {"length_bias": 1.0}, "artefact": {"artefact": 0.5}}
TRUTH = "denserl.world.language:true_reward"
# What every method may read: PAIRS pairs, and so many rows in all.
PAIRS, ROWS = 3000, 12000
# Where few have labels: of so many pairs so many, and how often each pair is read.
FEW_PAIRS, LABELLED, FEW_EPOCHS = 1600, 200, 2
RM = {**TINY["rm"], "reward_level": "bandit", "limit": PAIRS, "batch_size": 32, "micro_batch_size": 32}
FEW = {"epochs": FEW_EPOCHS, "batch_size": 16, "micro_batch_size": 16}
BON = {"limit": 64, "samples": 64, "max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0, "resume": True, "device": "cpu"}
PPO = {**TINY["ppo"], "reward_level": "bandit", "kl_coefficient": 0.05, "iterations": 40}


class Method(NamedTuple):
    """A way to a preference model, made when first asked for, and further flags of the commands that use it."""

    model: Callable[["World"], Path]
    evaluate: dict = {}
    bon: dict = {}
    ppo: dict = {}


def trained(name: str, rows_a_pair: float = 1.0, **flags) -> Callable[["World"], Path]:
    """A reward model by flags of train-rm. rows_a_pair: what it makes of each pair, which says how many epochs it may have."""
    return lambda world: world.reward_model(name, **{"epochs": ROWS / PAIRS / rows_a_pair, **flags})


def compared(world: "World") -> Path:
    """A model that is shown both responses, in both orders, each of which is a row."""
    unread = dict.fromkeys(("reward_level", "max_prompt_length", "cache_dir"))
    flags = {"input": "pair", "head_type": "label", "both_orders": True, "symmetry": 0.2, "epochs": ROWS / PAIRS / 2}
    return world.reward_model("pairwise", **unread, **flags)


def gated(world: "World") -> Path:
    """A gate over rated attributes, fitted on the trunk of the Bradley-Terry model; all its pairs are those of that model."""
    rated = {"data": world.shared / "world/ratings_train.jsonl", "eval_data": world.shared / "world/ratings_test.jsonl"}
    stepwise = ("batch_size", "micro_batch_size", "lr", "warmup_ratio", "logging_steps", "save_steps", "eval_steps", "limit")
    fit = {"input": "ratings", "head_type": "attributes", "attribute_fit": "ridge", "rating_columns": RATINGS}
    trunk = METHODS["Bradley-Terry"].model(world)
    attributes = world.reward_model("attributes", model=trunk, **rated, **fit, **dict.fromkeys(stepwise))
    gate = {"head_type": "gated", "debias": "verbosity", "head_width": 64, "epochs": ROWS / PAIRS}
    return world.reward_model("gated", model=attributes, **gate)


RATINGS = ["apt", "on_topic", "harmless", "fresh", "verbosity"]
RRM = {"augment": "rrm", "augment_group": "group"}


def of_few(name: str, unlabelled: bool = True, **flags) -> Callable[["World"], Path]:
    """A reward model of LABELLED pairs with labels, and of the others without them, if it is to label those itself."""

    def model(world: "World") -> Path:
        few, others = world.few_labels()
        pool = {"unlabelled_data": others} if unlabelled else {}
        # What temperatures are fitted on, and rounds are ended by, is not what they are compared by.
        own = {"data": few, "eval_data": world.rows("preferences_val"), **FEW}
        return world.reward_model(name, **{**own, **pool, **flags})

    return model


METHODS: dict[str, Method] = {
    "Bradley-Terry": Method(trained("bt")),
    "length in its own head": Method(trained("odin", disentangle="length")),
    # Of the 14 rows that it makes of a pair one, or three.
    "RRM": Method(trained("rrm", 2, **RRM, augment_ratio=1 / 14)),
    "RRM, three rows a pair": Method(trained("rrm-3", 4, **RRM, augment_ratio=3 / 14)),
    "pairwise": Method(compared, bon={"rank": "win_rate"}, ppo={"reward_level": None}),
    "gate over attributes": Method(gated),
}


# With labels for some of the pairs alone. The second reads as many rows as the one that has all labels.
FEW_LABELS: dict[str, Method] = {
    "few": Method(of_few("few", unlabelled=False)),
    "few, read more often": Method(of_few("few-often", unlabelled=False, epochs=FEW_EPOCHS * FEW_PAIRS // LABELLED)),
    "few, others labelled": Method(of_few("few-hard")),
    "few, others labelled softly": Method(of_few("few-soft", pseudo_labels="soft")),
    "few, others labelled, lengths balanced": Method(of_few("few-balanced", pseudo_balance="length")),
    "all": Method(trained("all", limit=FEW_PAIRS, **FEW)),
}


@dataclass
class Options:
    """Judge, choose and train with preference models of every kind in the embedded world."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the worlds and of every run in them."""
    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    """What to run."""
    methods: list[str] = field(default_factory=lambda: [*METHODS, *FEW_LABELS])
    """The methods to run, by name."""
    worlds: list[Kind] = field(default_factory=lambda: list(WORLDS))
    """What is wrong with the training pairs: nothing (fair), or what they prefer."""
    runs: Path = Path("runs/preference_methods")
    """Folder for the runs."""


class World:
    """One seed's world of one kind; worlds of one seed share all but their training pairs, and so their language model."""

    def __init__(self, kind: Kind, seed: int, runs: Path):
        self.kind, self.seed, self.shared = kind, seed, runs / f"seed{seed}"
        self.sft, self.folder = self.shared / "sft", self.shared / kind
        make_language_model(self.shared, seed, groups=True, ratings=True)

    @cached_property
    def data(self) -> Path:
        """The folder of its data files."""
        return self._data(self.kind)

    def rows(self, name: str) -> Path:
        """One of its data files."""
        return self.data / f"{name}.jsonl"

    def reward_model(self, name: str, **flags) -> Path:
        """The folder of a reward model on the training pairs, trained now if it is not there.

        flags: of train-rm; None leaves out one that others have.
        """
        target = self.folder / name
        if not (target / "model.safetensors").exists():
            own = {"model": self.sft, "data": self.rows("preferences_train"), "eval_data": self.rows("preferences_test")}
            asked = {**RM, **own, "cache_dir": self.shared / "cache", **flags}
            stage("train-rm", **without_none(asked), output_dir=target, seed=self.seed)
        return target

    def few_labels(self) -> tuple[Path, Path]:
        """The training pairs in two files: those that have labels, and those whose labels are withheld."""
        rows = self.rows("preferences_train").read_text(encoding="utf-8").splitlines(keepends=True)[:FEW_PAIRS]
        parts = self.folder / "labelled.jsonl", self.folder / "unlabelled.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, part in zip(parts, (rows[:LABELLED], rows[LABELLED:]), strict=True):
            path.write_text("".join(part), encoding="utf-8")
        return parts

    def labelled(self, method: Method) -> dict[str, float]:
        """The same as `by_true_reward`, and what a model's own labels came to in its last round."""
        found, rounds = self.by_true_reward(method), method.model(self) / "rounds.json"
        last = json.loads(rounds.read_text())["rounds"][-1] if rounds.is_file() else {}
        own = {"kept": "kept", "right": "agreement", "longer by": "longer_by", "label calibration error": "calibration_error"}
        return {**found, **{name: last[key] for name, key in own.items() if key in last}}

    def evaluated(self, method: Method, pairs: Path) -> dict:
        """What `evaluate` finds of a method's model on a file of pairs, run once."""
        model = method.model(self)
        folder = self.folder / "evaluated" / f"{pairs.stem}-{model.name}"
        if not (folder / "results.json").exists():
            stage("evaluate", "pairs", pairs, scorer=model, output_dir=folder, device="cpu", **method.evaluate)
        return json.loads((folder / "results.json").read_text())

    def judged(self, method: Method) -> dict[str, float]:
        """What a method's model makes of held-out pairs: of the true reward, and of one worth with the artefact on one side."""
        artefact = self.evaluated(method, self._data("artefact") / "preferences_artefact.jsonl")
        return {**self.by_true_reward(method), "won by the artefact": artefact["accuracy"]}

    def by_true_reward(self, method: Method) -> dict[str, float]:
        """What a method's model makes of held-out pairs of the true reward."""
        found = self.evaluated(method, self.rows("preferences_test"))
        best = json.loads((self.data / "world.json").read_text())["best_accuracy_test"]
        return {
            "accuracy": found["accuracy"],
            "share of the best": found["accuracy"] / best,
            "calibration error": found["calibration"]["ece"],
            "corr. of score and length": found["length_bias"]["correlation"],
        }

    def best_of(self, method: Method) -> dict[str, float]:
        """True reward of the best of n by a method's model; all of a seed choose among the same samples."""
        model = method.model(self)
        folder = self.folder / "bon" / model.name
        if not (folder / "results.json").exists():
            judge = {"reward_model": model, "true_reward": TRUTH, **method.bon}
            samples = {"samples_file": self.shared / "samples/samples.jsonl", "data": self.rows("prompts_heldout")}
            stage("bon", **BON, **judge, **samples, model=self.sft, output_dir=folder, seed=self.seed)
        curve = json.loads((folder / "results.json").read_text())
        gold = {f"best of {n}": value for n, value in zip(curve["n"], curve["gold"]) if n in (1, 4, 16, 64)}
        return {**gold, "lost since best": max(curve["gold"]) - curve["gold"][-1]}

    def ppo(self, method: Method) -> dict[str, float]:
        """True reward, KL and length of held-out responses after PPO against a method's model."""
        model = method.model(self)
        folder = self.folder / "ppo" / model.name
        if not (folder / "model.safetensors").exists():
            prompts = {"data": self.rows("prompts_train"), "eval_prompts": self.rows("prompts_heldout")}
            judge = {"reward_model": model, "true_reward": TRUTH, **method.ppo}
            stage("train-ppo", **without_none({**PPO, **judge}), **prompts, model=self.sft, output_dir=folder, seed=self.seed)
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval_true_reward" in row]
        names = {"true reward": "true_reward", "KL": "kl", "tokens": "response_length"}
        best = max(row["eval_true_reward"] for row in rows)
        last = {name: rows[-1][f"eval_{key}"] for name, key in names.items()}
        return {**last, "lost since best": best - last["true reward"]}

    def _data(self, kind: Kind) -> Path:
        folder = self.shared / "world" if kind == "fair" else self.shared / kind / "world"
        if not (folder / "world.json").exists():
            stage("make-world", **WORLDS[kind], groups=True, output_dir=folder, seed=self.seed)
        return folder


def measured(measure: Callable[[World, Method], dict[str, float]], methods: dict[str, Method]) -> Callable[[Options], dict]:
    """A part: what `measure` tells of methods in every world of the options, over seeds."""

    def part(options: Options) -> dict:
        kept = {name: method for name, method in methods.items() if name in options.methods}
        found = [
            {
                f"{kind}: {name}": measure(World(kind, seed, options.runs), method)
                for kind in options.worlds
                for name, method in kept.items()
            }
            for seed in options.seeds
        ]
        return tabled(found)

    return part


PARTS: dict[str, Callable[[Options], dict]] = {
    "judging": measured(World.judged, METHODS),
    "best-of-n": measured(World.best_of, METHODS),
    "ppo": measured(World.ppo, METHODS),
    "few labels": measured(World.labelled, FEW_LABELS),
}


def markdown(results: dict[str, dict]) -> str:
    """Every part as a table: a row for each world and method, a column for each measure, means with 95 % intervals."""
    lines = []
    for part, found in results.items():
        rows = {name: row for name, row in found.items() if name != "seeds"}
        columns = list(dict.fromkeys(measure for row in rows.values() for measure in row))
        lines += [f"## {part}, seeds {' '.join(map(str, found['seeds']))}", "", f"| | {' | '.join(columns)} |"]
        lines += [f"|---{'|---' * len(columns)}|"]
        cells = {name: [shown(row[column]) if column in row else "-" for column in columns] for name, row in rows.items()}
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
        lines.append("")
    return "\n".join(lines)


def run_and_tabulate(parts: Mapping[str, Callable[[Any], dict]], options: Any, path: Path) -> None:
    """`run_parts`, and what it writes once more as tables, in a file of that name that ends in .md."""
    run_parts(parts, options, path)
    path.with_suffix(".md").write_text(markdown(json.loads(path.read_text())), encoding="utf-8")


def main(options: Options) -> None:
    run_and_tabulate(PARTS, options, options.runs / "preference_methods.json")


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
