"""Self-training of a reward model, in rounds: it labels pairs, those it is sure of are learned from with the labelled ones.

Each round is an ordinary training in a folder of its own, round_0, round_1, ..., whose pairs stand in a file of it. What rows
of unlabelled pairs know of themselves is read for the report alone (arXiv 2409.06903).
"""

import dataclasses
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from denserl import distributed
from denserl.config import options_of
from denserl.data.schemas import PAIR_LABELS, SIDES
from denserl.data.unlabelled import TWO, load_unlabelled, load_withheld, with_lengths
from denserl.errors import require
from denserl.files import COMMAND_FILE, replace_whole
from denserl.models.card import CARD, Making
from denserl.models.publishing import publish
from denserl.models.reward_settings import KEY
from denserl.rewards.objectives import all_labels
from denserl.rewards.pair_metrics import wilson
from denserl.trainer.pseudo_labelling import Rows, judge_held_out, label_pairs
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_making import make_objectives
from denserl.trainer.reward_pairs import load_pairs
from denserl.trainer.self_training_config import ROUNDS, SelfTrainingConfig
from denserl.trainer.several import (
    Record,
    Train,
    begin,
    common_settings,
    common_tokenizer,
    evaluation_of,
    let_go,
    own_config,
    train_once,
)
from denserl.trainer.summaries import PERCENT

log = logging.getLogger(__name__)

PSEUDO_LABELLED = "pseudo_labelled.jsonl"
# What of a round's folder is of its training, and no part of its model.
_OF_TRAINING = {COMMAND_FILE, PSEUDO_LABELLED, CARD, "metrics.jsonl", "checkpoints", "skipped"}


@dataclasses.dataclass
class Rounds(Record):
    """What is known of the rounds so far."""

    rounds: list[dict] = dataclasses.field(default_factory=list)  # a report of each that has ended
    labels: dict | None = None  # the first part of the next one's report

    def best(self) -> dict:
        """The first round with the lowest held-out loss, each model at its own temperature.

        Learning sure labels makes surer scores, which alone would raise the loss.
        """
        return min(self.rounds, key=lambda one: one["held_out_loss"] if math.isfinite(one["held_out_loss"]) else math.inf)

    def is_over(self, rounds: int) -> bool:
        """Whether there were so many after the first, or the last one's held-out loss is no lower than that of one before."""
        return len(self.rounds) > rounds or (len(self.rounds) > 1 and self.best() is not self.rounds[-1])


def train_in_rounds(config: RewardConfig, train: Train = train_once) -> dict[str, float]:
    """Train on `data`; then, round by round, on it and on the pairs of `unlabelled_data` that the last model is sure of.

    Each round labels all of them anew. Rounds end when the held-out loss no longer falls, or no pair is sure enough; the model
    with the lowest is copied into the output folder, whose rounds.json tells of each. `resume` goes on wherever it was ended.

    train: trains what the config of a round says, and returns its evaluation metrics.

    Returns: those of the best round.

    Raises:
        UserError: options, or data, that do not go together.
    """
    require(config.unlabelled_data, "no `unlabelled_data` is given", "give pairs to label")
    device, dtype, before = begin(config, ROUNDS, Rounds)
    folder = Path(config.output_dir)
    rows, settings, config = _prepare(config, before, dtype)
    record = Rounds(folder / ROUNDS, settings) if before is None else dataclasses.replace(before, settings=settings)
    record.write()
    while not record.is_over(config.rounds):
        number = len(record.rounds)
        if number and record.labels is None:
            last, temperature = _round(folder, number - 1), record.rounds[-1]["temperature"]
            record.labels = label_pairs(config, rows, _labelled(folder, number), last, temperature, device, dtype)
            record.write()
        report = {"round": number, **(record.labels or {})}
        if report.get("kept") == 0:
            log.warning("round %d: no pair is sure enough, and the rounds end", number)
            break
        report |= evaluation_of(train(_config_of(config, number)))
        let_go()
        report |= judge_held_out(config, rows, _round(folder, number), device, dtype)
        record.rounds, record.labels = [*record.rounds, report], None
        record.write()
        _say(record.rounds)
    best = record.best()
    _take(_round(folder, best["round"]), folder)
    log.info("%s: the model of round %d, whose held-out loss is the lowest", folder, best["round"])
    accuracy = best["eval_accuracy"], len(rows.held_out)
    low, high = wilson(*accuracy)
    told = f"accuracy {accuracy[0]:.3f}, {PERCENT} interval [{low:.3f}, {high:.3f}], on {accuracy[1]} pairs"
    figures = [f"{told}, of the model of round {best['round']}, of rounds 0 to {len(record.rounds) - 1}"]
    publish(folder, Making("train-rm", config, figures, accuracy, settings["precision"]))
    return evaluation_of(best)


def _prepare(config: RewardConfig, before: Rounds | None, dtype: str) -> tuple[Rows, dict, RewardConfig]:
    """The rows; what a resumed run must agree with; and the config, with one date for the chat templates of all rounds."""
    others = ", ".join(sorted({*all_labels(make_objectives(config))} - {*PAIR_LABELS}))
    read = f"an objective reads {others}, which pairs that a model has labelled do not have"
    require(not others, read, "leave the objective out, or `unlabelled_data`")
    tokenizer = common_tokenizer(config, before)
    how: dict[str, Any] = {"split": config.split, "seed": config.seed, **config.source_beside()}
    found = load_unlabelled(config.unlabelled_data, **how, group=config.augment_group)
    pool = with_lengths(found, TWO, tokenizer, config.on_bad_row, cache_dir=config.cache_dir)
    del how["cache_dir"]
    withheld = load_withheld(config.unlabelled_data, **how).rows(np.array(pool["row"], dtype=int))
    train, held_out = load_pairs(config)
    contents = {"data": train, "held-out rows": held_out, "unlabelled_data": pool}
    settings, config = common_settings(config, before, tokenizer, dtype, contents)
    held_out = with_lengths(held_out, SIDES, tokenizer, config.on_bad_row, cache_dir=config.cache_dir)
    return Rows(pool, held_out, withheld), settings, config


def _round(folder: Path, number: int) -> Path:
    return folder / f"round_{number}"


def _labelled(folder: Path, number: int) -> Path:
    """The pairs that a round learns beside the labelled ones."""
    return _round(folder, number) / PSEUDO_LABELLED


def _config_of(config: RewardConfig, number: int) -> RewardConfig:
    """The config of a round's own training."""
    folder = Path(config.output_dir)
    plain = {option.name: option.default for option in options_of(SelfTrainingConfig)}
    if number:
        plain["pseudo_data"] = [str(_labelled(folder, number))]
        plain["start_from"] = str(_round(folder, number - 1)) if config.round_start == "last" else None
    return own_config(config, _round(folder, number), **plain)


def _say(rounds: list[dict]) -> None:
    """The last round in words, beside the one before it."""
    report, before = rounds[-1], rounds[-2] if len(rounds) > 1 else None
    if before is not None:
        found = "round {round}: {kept} of {unlabelled} pairs learned from ({not_judged} over the length); {turned:.1%} "
        found += "of them turned round"
        agreed = "" if report["agreement"] is None else "; {agreement:.1%} agree with withheld labels"
        log.info("%s", (found + agreed).format(**report))
    was = f", after {before['held_out_loss']:.4f}, {before['eval_accuracy']:.4f}" if before else ""
    now = f"{report['held_out_loss']:.4f} at temperature {report['temperature']:.3f}, accuracy {report['eval_accuracy']:.4f}"
    log.info("round %d: held-out loss %s%s", report["round"], now, was)


def _take(folder: Path, into: Path) -> None:
    """Copy the model of a round into the output folder."""
    if distributed.rank() == 0:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in _OF_TRAINING:
                shutil.copytree(path, into / path.name, dirs_exist_ok=True)
            elif path.name not in _OF_TRAINING:
                shutil.copy2(path, into / path.name)
        for config in (into / "config.json", into / "adapter" / "config.json"):
            if config.is_file():
                _move_ways(config, folder, into)
    distributed.barrier()


def _move_ways(config: Path, folder: Path, into: Path) -> None:
    """Let the way to the SFT model, which a config tells from its model's folder, begin at the folder it was copied to."""
    values = json.loads(config.read_text(encoding="utf-8"))
    way = values.get(KEY, {}).get("sft_from_here")
    if way is not None:
        values[KEY]["sft_from_here"] = os.path.relpath(folder / way, into)
        replace_whole(config, json.dumps(values, indent=2, sort_keys=True) + "\n")
