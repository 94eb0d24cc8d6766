"""When dense rewards pay: credit alone, learned rewards, and the paper's own ablations, in embedded worlds, over seeds.

Every run is an ordinary command and stands in the one table of evidence_settings.py. Writes RUNS/evidence.json, tables and
pictures; what is finished is not run again, so that a run that was stopped goes on. docs/evidence.md tells what came out.
"""

import json
import os
import random
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tyro
from evidence_settings import ARMS, LENGTHS, THRESHOLDS, Arm, Model, Part, most_tokens
from evidence_tables import DETAILS, SHOWN_WHOLE, Runs, draw, filled, gaps, measured, table
from harness import ending_well
from levels import held_out, summarise, without_none

from denserl.cli.demo_ways import SFT
from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.errors import UserError
from denserl.files import replace_whole
from denserl.trainer.trackers import read_metrics
from denserl.world import language
from denserl.world.checks import agreement

TINY = read_table()["model_types"]["tiny"]
POSITIONS = 512  # tokens of prompt and response
AGREEMENT = "agreement.json"
PLACES = {"all": (0, 1), "first third": (0, 1 / 3), "middle third": (1 / 3, 2 / 3), "last third": (2 / 3, 1)}
REPEATS = 3  # of so many pairs one is replaced by one that loses for repeating itself


@dataclass
class Options:
    """Make the runs of the evidence and the page of what came out."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the worlds and of every run in them."""
    only: str = ""
    """A regular expression: of the runs, whose names are "PART: ARM", those that have it."""
    jobs: int = 2
    """Processes, of one thread each; a world belongs to one of them."""
    runs: Path = Path("runs/evidence")
    """Folder for the runs."""
    page: Path | None = None
    """A page whose tables are written anew, between its marks."""
    dry: bool = False
    """List the runs, and what of them is there, and make none."""


class World:
    """One seed's world of one length: its language model, reward models, fits and PPO runs, each made when first asked for."""

    def __init__(self, length: int, seed: int, runs: Path):
        self.length, self.seed, self.folder = length, seed, runs / f"{length}-sentences" / f"seed{seed}"
        self.data, self.sft = self.folder / "world", self.folder / "sft"
        self.sentences = {"min_sentences": 3 * length // 4, "max_sentences": 5 * length // 4}

    def run(self, arm: Arm) -> Path:
        """The folder of a PPO run."""
        folder = self.run_folder(arm)
        if not is_there(folder):
            self._language_model()
            lengths = {"max_new_tokens": most_tokens(self.length), "iterations": arm.iterations, "samples_logged": 64}
            # Of a model this small a step for all held-out rows costs hardly more than one for 64.
            together = {"sample_batch_size": 256}
            stage(
                "train-ppo",
                **without_none({**TINY["ppo"], **lengths, **together, **self._paid(arm)}),
                model=self.sft,
                data=self.data / "prompts_train.jsonl",
                eval_prompts=self.data / "prompts_heldout.jsonl",
                true_reward=f"denserl.world.language:true_reward{'_sum' * (arm.truth == 'sum')}",
                cache_dir=self.folder / "cache",
                output_dir=folder,
                seed=self.seed,
            )
        return folder

    def run_folder(self, arm: Arm) -> Path:
        """Its place, which all that was set decides; arms of the same settings have the same."""
        model = arm.model and (self.model_folder(arm.model).name, arm.model.members, arm.model.fitted)
        return self.folder / "ppo" / key(self._sft_flags, TINY["ppo"], arm._replace(model=None), model, TINY["fit"])

    def agreement(self, model: Model) -> dict[str, float]:
        """How good a reward model is, and how well its segments' rewards agree with sentences and their values."""
        folder = self.reward_model(model)
        path = folder / AGREEMENT
        if not path.exists():
            rightly = accuracy(folder)
            best = json.loads((self.data / "world.json").read_text())["best_accuracy_test"]
            found = {"accuracy": rightly, "of the best": rightly / best}
            if model.level != "bandit":
                pairs = self.data / "preferences_test.jsonl"
                segments = agreement(str(self.sft), str(folder), pairs, self._threshold(model))
                places = {f"rank correlation, {name}": segments.spearman(*ends) for name, ends in PLACES.items()}
                found |= {"F1 of starts": segments.f1, **places}
            replace_whole(path, json.dumps(found))
        return json.loads(path.read_text())

    def reward_model(self, model: Model, member: int = 0) -> Path:
        """The folder of a reward model, or of one of an ensemble."""
        folder = self.model_folder(model, member)
        if not is_there(folder):
            self._language_model()
            stage(
                "train-rm",
                **{**TINY["rm"], "max_length": POSITIONS, **model.flags},
                model=self.sft,
                data=self._pairs(model),
                eval_data=self.data / "preferences_test.jsonl",
                cache_dir=self.folder / "cache",
                reward_level=model.level,
                entropy_threshold=self._threshold(model),
                agg_func=model.agg_func,
                output_dir=folder,
                # Members read the same pairs in another order, from another head.
                seed=self.seed + 1000 * member,
            )
        return folder

    def model_folder(self, model: Model, member: int = 0) -> Path:
        """Its place; what only says how a model is used makes no other of it."""
        own = model._replace(threshold=self._threshold(model), members=1, fitted=False)
        return self.folder / "rm" / f"{key(self._sft_flags, TINY['rm'], own)}-{member}"

    def _paid(self, arm: Arm) -> dict:
        """The flags of what is paid, and of its penalty."""
        if arm.model is None:
            values = {"reward_function": "denserl.world.language:true_sentences", "kl_coefficient": arm.kl}
            return {**values, "agg_func": "avg" if arm.truth == "mean" else "sum", **arm.paid}
        members = [self.reward_model(arm.model, member) for member in range(arm.model.members)]
        if arm.model.fitted:
            self._fit(arm.model, members[0])
        named = {name: arm.model.flags[name] for name in ("segmenter",) if name in arm.model.flags}
        if arm.paid.get("prefix_differences"):
            std = json.loads((members[0] / "config.json").read_text())["std"]
            scale = {"normalizer": "scalar", "reward_mean": 0.0, "reward_std": std}
            named |= {"reward_level": "segment", "entropy_threshold": THRESHOLDS["segment"], **scale}
        return {"reward_model": members, "kl_coefficient": arm.kl, **named, **arm.paid}

    def _fit(self, model: Model, folder: Path) -> None:
        if not (folder / "fits.json").exists():
            settings = {**TINY["fit"], "max_length": POSITIONS, "seed": self.seed, "cache_dir": self.folder / "cache"}
            stage("fit-normalizer", **settings, data=self._pairs(model), reward_model=folder, output_dir=folder / "fit")

    def _pairs(self, model: Model) -> Path:
        """A file of the first pairs of the world, and of what else the model is to read."""
        path = self.folder / f"pairs-{model.pairs}{'-repeats' * model.repeats}.jsonl"
        if not path.exists():
            lines = (self.data / "preferences_train.jsonl").read_text(encoding="utf-8").splitlines()[: model.pairs]
            rows = [json.loads(line) for line in lines]
            if model.repeats:
                rows[::REPEATS] = with_repeats(rows[::REPEATS], random.Random(self.seed))
            replace_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _threshold(self, model: Model) -> float:
        return THRESHOLDS[model.level] if model.threshold is None else model.threshold

    @property
    def _sft_flags(self) -> dict:
        """Long demonstrations are read once, others twice."""
        return {**SFT, "epochs": 2 if self.length <= 8 else 1, "max_length": POSITIONS}

    def _language_model(self) -> None:
        """The world and its language model, made now if they are not there."""
        if not is_there(self.sft):
            stage("make-world", output_dir=self.data, seed=self.seed, large=True, **self.sentences)
            sft = {"model": self.data / "base", "data": self.data / "sft.jsonl", "seed": self.seed}
            stage("train-sft", **self._sft_flags, **sft, output_dir=self.sft)


def key(*settings: object) -> str:
    """A name for settings, another one for others."""
    return f"{zlib.crc32(repr(settings).encode()):08x}"


def with_repeats(rows: list[dict], rng: random.Random) -> list[dict]:
    """Pairs of the chosen responses, each beside itself with a sentence said again in a later one's place, which loses."""
    found = []
    for row in rows:
        said = [row["chosen"][start:end] for start, end in language.sentences(row["chosen"])]
        fresh = [i for i, sentence in enumerate(said) if sentence in language.MEANINGS]
        if len(fresh) > 1:
            first, later = sorted(rng.sample(fresh, 2))
            said[later] = language.again(said[first])
            row = {**row, "rejected": " ".join(said)}
        found.append(row)
    return found


def chosen(options: Options) -> list[tuple[Part, str]]:
    """The runs that are asked for. UserError where there is none."""
    try:
        re.compile(options.only)
    except re.error as error:
        raise UserError(f"{options.only!r} is no regular expression ({error})", "give the text that names have") from error
    found = [(part, name) for part, arms in ARMS.items() for name in arms if re.search(options.only, f"{part}: {name}")]
    if not found:
        raise UserError(f"no run is called {options.only!r}", "list the names: .venv/bin/python benchmarks/evidence.py --dry")
    return found


def make(length: int, seed: int, runs: Path, asked: list[tuple[Part, str]]) -> str:
    """All runs in one world, in a process of its own; what they print is in a log beside them."""
    world = World(length, seed, runs)
    world.folder.mkdir(parents=True, exist_ok=True)
    for part, name in asked:
        if not parent_process().is_alive():
            raise SystemExit  # killed, so that nobody would stop this process
        arm, begun = ARMS[part][name], time.monotonic()
        if not is_there(world.run_folder(arm)):
            world.run(arm)
            print(f"seed {seed}, {part}: {name} ({time.monotonic() - begun:.0f} s)", file=SHOWN, flush=True)
        if part == "models" and arm.model:
            world.agreement(arm.model)
    return f"{length} sentences, seed {seed}: all {len(asked)} runs are there"


SHOWN = sys.stdout


def begin(runs: Path) -> None:
    """A worker: one thread, and its output in a log; lines for the terminal go to SHOWN."""
    global SHOWN
    import torch

    torch.set_num_threads(1)
    SHOWN = os.fdopen(os.dup(1), "w")
    log = os.open(runs / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)


def main(options: Options) -> None:
    asked = chosen(options)
    if options.page and not options.page.is_file():
        raise UserError(f"there is no page {options.page}", "give a file with marks for tables, as docs/evidence.md has")
    worlds = {(n, seed): [(p, a) for p, a in asked if ARMS[p][a].length == n] for n in LENGTHS[::-1] for seed in options.seeds}
    if options.dry:
        for part, name in asked:
            folders = [
                World(ARMS[part][name].length, seed, options.runs).run_folder(ARMS[part][name]) for seed in options.seeds
            ]
            print("\n  ".join([f"{part}: {name}", *(f"{path}{' is there' * is_there(path)}" for path in folders)]))
        return
    options.runs.mkdir(parents=True, exist_ok=True)
    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"), initializer=begin, initargs=(options.runs,))
    # Those of most work first, so that none is left alone at the end.
    order = sorted(filter(worlds.get, worlds), key=lambda world: -work(world[0], worlds[world]))
    try:
        for done in as_completed([pool.submit(make, *world, options.runs, worlds[world]) for world in order]):
            print(done.result(), flush=True)
    except BaseException as ended:
        # Of a world that failed, or a stop, the others are not waited for.
        for worker in active_children():
            worker.kill()
        if isinstance(ended, KeyboardInterrupt):
            raise UserError("stopped", "run the same command to go on") from None
        raise
    pool.shutdown()
    report(options)


def work(length: int, asked: Iterable[tuple[Part, str]]) -> float:
    """About how long the runs of a world take, in tokens of rollouts."""
    return sum(length * ARMS[part][name].iterations for part, name in asked)


def is_there(folder: Path) -> bool:
    """Whether a training has ended in a folder."""
    return (folder / "model.safetensors").exists()


def report(options: Options) -> None:
    """Everything that is there, of whatever seeds, as numbers, tables and pictures."""
    runs: dict[Part, Runs] = {
        part: {name: runs_of(arm, options.runs) for name, arm in arms.items()} for part, arms in ARMS.items()
    }
    found = measured(runs)
    tables = {part: table(of_names) for part, of_names in found.items()}
    agreed, lost = agreements(options.runs), gaps(runs["models"])
    tables |= {name: table(rows) for name, rows in (("agreement", agreed), ("gap", lost)) if rows}
    seeds = {part: {name: list(of_seeds) for name, of_seeds in of_names.items()} for part, of_names in runs.items()}
    every = json.dumps({"seeds": seeds, **found, "agreement": agreed, "gap": lost})
    # Of one seed there is no interval, and JSON has no NaN.
    known = json.loads(every, parse_constant=lambda name: None)
    (options.runs / "evidence.json").write_text(json.dumps(known, indent=1))
    text = "\n".join(f"## {name}\n\n{rows}" for name, rows in tables.items())
    (options.runs / "evidence.md").write_text(text, encoding="utf-8")
    draw(runs, options.runs)
    if options.page:
        shorter = {part: table(of_names, DETAILS) for part, of_names in found.items() if part not in SHOWN_WHOLE}
        write_page(options.page, tables | shorter, options.runs)
    print(f"\n{options.runs / 'evidence.md'}")


def worlds_of(length: int, runs: Path) -> list[World]:
    """The worlds of a length that are there, by seed."""
    seeds = (int(folder.name.removeprefix("seed")) for folder in (runs / f"{length}-sentences").glob("seed*"))
    return [World(length, seed, runs) for seed in sorted(seeds)]


def runs_of(arm: Arm, runs: Path) -> dict[int, list[dict]]:
    """The runs of an arm that have ended: held-out evaluations by seed, each with the accuracy of the reward model."""
    found = {}
    for world in worlds_of(arm.length, runs):
        folder = world.run_folder(arm)
        if is_there(folder):
            judge = {"accuracy": accuracy(world.model_folder(arm.model))} if arm.model else {}
            found[world.seed] = [{**row, **judge} for row in held_out(folder)]
    return found


def accuracy(model: Path) -> float:
    """Of a reward model, on pairs of unseen combinations."""
    return read_metrics(model / "metrics.jsonl")[-1]["eval_accuracy"]


def write_page(page: Path, tables: dict[str, str], pictures: Path) -> None:
    """The tables of a page, and the pictures that it shows from a folder beside it."""
    text = filled(page.read_text(encoding="utf-8"), tables)
    page.write_text(text, encoding="utf-8")
    for link in re.findall(r"!\[.*?\]\((.+?\.png)\)", text):
        if (drawn := pictures / Path(link).name).exists():
            (page.parent / link).parent.mkdir(exist_ok=True)
            shutil.copy(drawn, page.parent / link)


def agreements(runs: Path) -> dict[str, dict[str, dict]]:
    """Of every reward model of the part "models": means and intervals over the seeds that have it."""
    found: dict[str, dict[str, dict]] = {}
    for name, arm in ARMS["models"].items():
        if arm.model:
            paths = [world.model_folder(arm.model) / AGREEMENT for world in worlds_of(arm.length, runs)]
            of_seeds = [json.loads(path.read_text()) for path in paths if path.exists()]
            if of_seeds:
                own = f"{name.partition(':')[0]}, {arm.model.level}"
                found[own] = {measure: summarise([seed[measure] for seed in of_seeds]) for measure in of_seeds[0]}
    return found


if __name__ == "__main__":
    ending_well(lambda: main(tyro.cli(Options)))
