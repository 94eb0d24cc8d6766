"""What preference models beyond a Bradley-Terry score come to on real pairs, over seeds, with the same budget of rows each.

Reward models stand on a small language model that was trained from nothing on the chosen answers, since no other is at hand:
they tell what a method changes, not how well real models judge. Every model is made by an ordinary command, printed as it is
run. Prints tables and writes RUNS/real_pairs.json and .md; what is finished is not run again. docs/preference_models.md tells
what came out.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from harness import REPOSITORY, ending_well
from levels import SFT
from preference_methods import FEW_LABELS, METHODS, Method, World, run_and_tabulate, trained
from process import tabled

from denserl.cli.pipeline import stage
from denserl.data.preferences import load_preferences
from denserl.errors import UserError

# Files of training and of held-out pairs.
SETS = {
    "hh-harmless": ("hh-harmless/train.jsonl.gz", "hh-harmless/test.jsonl.gz"),
    "ultrafeedback-1k": ("ultrafeedback-1k/train.jsonl", "ultrafeedback-1k/test.jsonl"),
}
# Training pairs that temperatures of self-training are fitted on, and no method learns from.
VALIDATION = 150
SHAPE = {"vocab_size": 2048, "hidden_size": 64, "num_layers": 2, "num_heads": 2}
# None has ratings of several attributes, for a gate to weigh.
ON_PAIRS = {name: METHODS[name] for name in ("Bradley-Terry", "length in its own head", "pairwise")} | {
    "RRM": Method(trained("rrm", 2, augment="rrm", augment_ratio=1 / 14)),
    **{name: FEW_LABELS[name] for name in ("few", "few, others labelled")},
}


@dataclass
class Options:
    """Judge real pairs with preference models of every kind."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of every run."""
    parts: list[str] = field(default_factory=lambda: list(SETS))
    """The sets of pairs."""
    data: Path = REPOSITORY.parent / "shared/data"
    """Folder with the sets."""
    runs: Path = Path("runs/real_pairs")
    """Folder for the runs."""


class RealPairs(World):
    """A set of real pairs, and a language model trained on the chosen answers of its training part."""

    def __init__(self, name: str, seed: int, options: Options):
        self.seed, self.shared = seed, options.runs / name / f"seed{seed}"
        self.folder, self.sft, self.pairs = self.shared, self.shared / "sft", options.runs / name / "data"
        if not (self.pairs / "demonstrations.jsonl").exists():
            write_parts(options.data, name, self.pairs)
        if not (self.sft / "model.safetensors").exists():
            demonstrations, base = self.rows("demonstrations"), self.shared / "base"
            stage("new-model", **SHAPE, data=demonstrations, output_dir=base, seed=seed)
            stage("train-sft", **{**SFT, "epochs": 3}, model=base, data=demonstrations, output_dir=self.sft, seed=seed)

    @property
    def data(self) -> Path:
        return self.pairs

    def by_agreement(self, method: Method) -> dict[str, float]:
        """How a method's model agrees with the held-out labels, and its score with length."""
        found = self.evaluated(method, self.rows("preferences_test"))
        return {
            "accuracy": found["accuracy"],
            "calibration error": found["calibration"]["ece"],
            "corr. of score and length": found["length_bias"]["correlation"],
        }


def write_parts(source: Path, name: str, folder: Path) -> None:
    """The pairs of a set as files of training, validation and held-out pairs, and its chosen answers as demonstrations."""
    paths = [source / path for path in SETS[name]]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"no data: {missing[0]} does not exist", "give --data FOLDER, the folder with the sets")
    train, test = (list(load_preferences([str(path)], on_bad_row="skip")) for path in paths)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"preferences_train": train[:-VALIDATION], "preferences_val": train[-VALIDATION:], "preferences_test": test}
    for part, rows in parts.items():
        write_rows(folder / f"{part}.jsonl", ({key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows))
    chosen = ({"prompt": row["prompt"], "response": row["chosen"]} for row in parts["preferences_train"])
    write_rows(folder / "demonstrations.jsonl", chosen)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def judged(options: Options, name: str) -> dict:
    """A part: every method on a set, over seeds."""
    worlds = [RealPairs(name, seed, options) for seed in options.seeds]
    return tabled([{kind: world.by_agreement(method) for kind, method in ON_PAIRS.items()} for world in worlds])


PARTS = {name: (lambda options, name=name: judged(options, name)) for name in SETS}


if __name__ == "__main__":
    options = tyro.cli(Options)
    ending_well(lambda: run_and_tabulate(PARTS, options, options.runs / "real_pairs.json"))
