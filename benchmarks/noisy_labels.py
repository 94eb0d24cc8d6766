"""What strength of preferences does where a quarter of the labels is wrong, and what contrast and MetaRM do, over seeds.

In the embedded world: how well the strength that members vote finds the wrong labels; accuracy on unseen combinations with
each use of it; and accuracy of contrast and of MetaRM there and on samples of a policy that PPO has trained. Every model is
made by an ordinary command, printed as it is run. Writes RUNS/noisy_labels.json and .md; what is finished is not run again.
docs/noisy_labels.md tells what came out.
"""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from harness import ending_well
from preference_methods import BON, METHODS, RM, World, run_and_tabulate
from process import tabled
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from denserl.cli.pipeline import stage
from denserl.data.batching import pad_rows
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.strength_file import MEAN
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives.separation import separation
from denserl.trainer.trackers import read_metrics
from denserl.world.language import true_reward

Part = Literal["strength", "folds", "uses", "shift", "ahead"]
PAIRS, WRONG = 6000, 0.25
# Passes over the pairs after which wrong labels are hardly known by heart, and after which most are.
FEW, MANY = 2, 12
# Members that vote, those that judge pairs of their own folds or of others, and their passes.
MEMBERS, FOLDS, SEVERAL = 10, 5, 3
USES: dict[str, dict] = {
    "label smoothing .1": {"label_smoothing": 0.1},
    "flip below 0": {"strength_use": "flip", "strength_low": "negative"},
    "margin": {"strength_use": "margin"},
    "flip and margin": {"strength_use": "flip_margin", "strength_low": "negative"},
    "soft below 0": {"strength_use": "soft", "strength_low": "negative"},
    "soft and margin": {"strength_use": "soft_margin", "strength_low": "negative"},
    "votes": {"strength_use": "votes"},
    "without the incorrect part": {"strength_keep": ["ambiguous", "normal", "strong"]},
}
TERMS: dict[str, dict] = {
    "plain": {},
    # At the published weight, and where the other loss has most of the clipped gradient.
    "SimCSE, pairs": {"contrastive": "simcse"},
    "SimCSE, pairs, .02": {"contrastive": "simcse", "contrastive_coef": 0.02},
    "SimCSE, differences": {"contrastive": "simcse", "contrastive_on": "diff"},
    "SwAV, pairs": {"contrastive": "swav"},
    "SwAV, differences": {"contrastive": "swav", "contrastive_on": "diff"},
    # Weights moved ten times as far as a step's rate, and a hundred times.
    "MetaRM": {"meta_data": True},
    "MetaRM, 100": {"meta_data": True, "meta_lr": 100 * float(RM["lr"])},
    "MetaRM and SimCSE, .02": {"meta_data": True, "contrastive": "simcse", "contrastive_coef": 0.02},
}
# Samples of the policy that PPO has trained: prompts, and responses to each.
SHIFTED, META = {"limit": 64, "samples": 16}, {"limit": 256, "samples": 4}
AHEAD, LONG_STEP = (("prompts_train", META), ("prompts_heldout", SHIFTED)), "MetaRM, 100"


@dataclass
class Options:
    """Study preference strength, contrast and MetaRM in the embedded world."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the worlds and of every run in them."""
    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    """What to run."""
    runs: Path = Path("runs/noisy_labels")
    """Folder for the runs."""


class NoisyWorld(World):
    """One seed's world, and pairs of it of which a known quarter is labelled wrongly."""

    def __init__(self, seed: int, runs: Path):
        super().__init__("fair", seed, runs)
        self.noisy = self.folder / "noisy.jsonl"
        if not self.noisy.exists():
            write_rows(self.noisy, (turned(row) if wrong else row for row, wrong in zip(self.clean(), self.wrong())))

    def clean(self) -> list[dict]:
        return read_rows(self.rows("preferences_train"))[:PAIRS]

    def wrong(self) -> list[bool]:
        """Which of the pairs are labelled wrongly."""
        rng = random.Random(self.seed)
        return [rng.random() < WRONG for _ in range(PAIRS)]

    def strength(self, name: str, **flags) -> Path:
        """The strengths of the noisy pairs by members that are trained on them."""
        members, target = self.folder / f"{name}-members", self.folder / f"{name}-strength"
        if not (target / "strength.jsonl").exists():
            self.reward_model(members.name, data=self.noisy, limit=PAIRS, **flags)
            stage("strength", reward_model=members, data=self.noisy, output_dir=target, device="cpu")
        return target / "strength.jsonl"

    def found(self, strength: Path) -> dict[str, float]:
        """How well a strength below 0 tells the wrong labels."""
        below = [row[MEAN] < 0 for row in read_rows(strength)]
        both = sum(a and b for a, b in zip(below, self.wrong(), strict=True))
        return {"below 0": sum(below) / PAIRS, "recall": both / sum(self.wrong()), "precision": both / max(sum(below), 1)}

    def accuracy(self, name: str, **flags) -> float:
        """Accuracy on unseen combinations of a model trained on pairs of the world."""
        model = self.reward_model(name, **{"limit": PAIRS, "epochs": FEW, **flags})
        return self.accuracy_on(model, self.rows("preferences_test"))

    def accuracy_on(self, model: Path, pairs: Path) -> float:
        folder = self.folder / "evaluated" / f"{pairs.stem}-{model.name}"
        if not (folder / "results.json").exists():
            stage("evaluate", "pairs", pairs, scorer=model, output_dir=folder, device="cpu")
        return json.loads((folder / "results.json").read_text())["accuracy"]

    def policy_samples(self, prompts: str, **count) -> Path:
        """Samples of the policy that PPO has trained against the plain model."""
        folder = self.folder / f"samples-{prompts}"
        if not (folder / "results.json").exists():
            self.ppo(METHODS["Bradley-Terry"])
            source = {"model": self.folder / "ppo/bt", "data": self.rows(prompts)}
            stage("bon", **{**BON, **count}, **source, output_dir=folder, seed=self.seed)
        return folder / "samples.jsonl"

    def shifted_pairs(self) -> Path:
        """Pairs of such samples, the one of the higher true reward chosen."""
        path = self.folder / "shifted.jsonl"
        if not path.exists():
            samples = read_rows(self.policy_samples("prompts_heldout", **SHIFTED))
            write_rows(path, pairs_by_truth(samples, random.Random(self.seed)))
        return path


def pairs_by_truth(samples: list[dict], rng: random.Random) -> Iterable[dict]:
    """Each sample beside another one to its prompt, in the order of their true rewards; none of equal ones."""
    truth = true_reward([row["prompt"] for row in samples], [row["response"] for row in samples])
    for row, worth in zip(samples, truth):
        others = [(other, its) for other, its in zip(samples, truth) if other["id"] == row["id"] and its != worth]
        if others:
            other, its = rng.choice(others)
            better, worse = (row, other) if worth > its else (other, row)
            yield {"prompt": row["prompt"], "chosen": better["response"], "rejected": worse["response"]}


def turned(row: dict) -> dict:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def strengths(world: NoisyWorld) -> dict[str, dict[str, float]]:
    """How well strengths find wrong labels, by members that have read all pairs, or those of other folds."""
    several = {"epochs": SEVERAL, "members": FOLDS}
    ways = {
        f"{MEMBERS} members, {FEW} passes": few_passes(world),
        f"{FOLDS} members, {SEVERAL} passes": world.strength("several", **several),
        f"{FOLDS} members, {SEVERAL} passes over other folds": world.strength("folds", **several, strength_folds=FOLDS),
    }
    return {name: world.found(path) for name, path in ways.items()}


def by_heart(world: NoisyWorld) -> dict[str, dict[str, float]]:
    """The same of members that know most of their labels by heart."""
    many = {"epochs": MANY, "members": FOLDS}
    ways = {
        "all pairs": world.strength("many", **many),
        "other folds": world.strength("many-folds", **many, strength_folds=FOLDS),
    }
    return {f"{FOLDS} members, {MANY} passes, {name}": world.found(path) for name, path in ways.items()}


def few_passes(world: NoisyWorld) -> Path:
    return world.strength("few", epochs=FEW, members=MEMBERS)


def uses(world: NoisyWorld) -> dict[str, dict[str, float]]:
    """Accuracy after many passes with each use of strength, and how much it wins back of what wrong labels cost by then.

    Beside them after few passes, without any.
    """
    stopped = {
        f"right labels, {FEW} passes": world.accuracy("clean"),
        f"wrong labels, {FEW} passes": world.accuracy("noisy", data=world.noisy),
    }
    clean = world.accuracy("clean-many", epochs=MANY)
    noisy = world.accuracy("noisy-many", data=world.noisy, epochs=MANY)
    found = {**stopped, "right labels": clean, "wrong labels": noisy}
    for name, flags in USES.items():
        read = {} if name.startswith("label") else {"strength_from": few_passes(world)}
        found[name] = world.accuracy(name.replace(" ", "-"), data=world.noisy, epochs=MANY, **read, **flags)
    return {name: {"accuracy": x, "won back": (x - noisy) / (clean - noisy)} for name, x in found.items()}


def shift(world: NoisyWorld) -> dict[str, dict[str, float]]:
    """Accuracy of contrast and MetaRM on unseen combinations, and on samples of the policy that PPO has trained.

    Of such samples to held-out prompts also how far apart they are scored (J).
    """
    found = {}
    for name in TERMS:
        unseen, model = with_term(world, name)
        shifted = world.accuracy_on(model, world.shifted_pairs())
        found[name] = {"unseen": unseen, "shifted": shifted, "J": last_separation(model)}
    return found


def with_term(world: NoisyWorld, name: str) -> tuple[float, Path]:
    """Accuracy on unseen combinations of a model with one of the TERMS, and its folder."""
    flags: dict = {**TERMS[name], "meta_eval": world.policy_samples("prompts_heldout", **SHIFTED)}
    if "meta_data" in flags:
        flags["meta_data"] = world.policy_samples("prompts_train", **META)
    own = name.replace(" ", "-").replace(",", "")
    return world.accuracy(own, **flags), world.folder / own


def ahead(world: NoisyWorld) -> dict[str, dict[str, float]]:
    """J of the policy's samples by the weights theta of trained models, and where MetaRM's long step takes them from there.

    Read by the stock classifier, and moved along the gradient over all samples to training prompts at once.
    """
    moved_along, told_of = (as_sequences(world, world.policy_samples(*one[:1], **one[1])) for one in AHEAD)
    found = {}
    for name in ("plain", LONG_STEP):
        model = AutoModelForSequenceClassification.from_pretrained(with_term(world, name)[1], dtype="float32").eval()
        at = {"J at theta": mean_separation(model, told_of).item()}
        mean_separation(model, moved_along).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter += TERMS[LONG_STEP]["meta_lr"] * parameter.grad
        found[name] = {**at, "J ahead": mean_separation(model, told_of).item()}
    return found


def as_sequences(world: NoisyWorld, samples: Path) -> list[list[int]]:
    """Token ids of prompt and response of the first samples to each prompt, prompt by prompt."""
    tokenizer, by_prompt = load_tokenizer(str(world.sft)), {}
    for row in read_rows(samples):
        by_prompt.setdefault(row["id"], []).append(row)
    rows = [row for of_prompt in by_prompt.values() for row in of_prompt[: META["samples"]]]
    return [
        encode_prompt(tokenizer, row["prompt"]) + encode_response(tokenizer, row["prompt"], row["response"]) for row in rows
    ]


def mean_separation(model: PreTrainedModel, sequences: list[list[int]]) -> Tensor:
    """J of the scores at the sequences' last tokens, the mean over prompts, with graph."""
    ends = torch.tensor([len(ids) for ids in sequences]) - 1
    ids = pad_rows(sequences, model.config.pad_token_id)
    scores = model.score(model.base_model(ids, attention_mask=torch.arange(ids.shape[1]) <= ends[:, None]).last_hidden_state)
    return separation(scores[torch.arange(len(ends)), ends, 0].view(-1, META["samples"])).mean()


def last_separation(model: Path) -> float:
    """How far apart a trained model scores the samples of its `meta_eval`."""
    return next(row["eval_separation"] for row in reversed(read_metrics(model / "metrics.jsonl")) if "eval_separation" in row)


def part(measure: Callable[[NoisyWorld], dict[str, dict[str, float]]]) -> Callable[[Options], dict]:
    return lambda options: tabled([measure(NoisyWorld(seed, options.runs)) for seed in options.seeds])


PARTS: dict[Part, Callable[[Options], dict]] = {
    "strength": part(strengths),
    "folds": part(by_heart),
    "uses": part(uses),
    "shift": part(shift),
    "ahead": part(ahead),
}


def main(options: Options) -> None:
    run_and_tabulate(PARTS, options, options.runs / "noisy_labels.json")


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
