"""A round's labels: what a model says of unlabelled pairs, those that are kept, and what is reported of them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset

from denserl import distributed
from denserl.data.preferences import GROUP
from denserl.data.unlabelled import Withheld
from denserl.errors import require
from denserl.files import replace_whole
from denserl.rewards.pair_chances import calibration_error, chances_at, fit_temperature, load_judge, pair_log_odds, reliability
from denserl.rewards.pseudo_labels import balanced, confident, pseudo_labelled, surest
from denserl.rewards.sources.pair_model import PairModel
from denserl.trainer.reward_config import RewardConfig


class Rows(NamedTuple):
    """What is labelled, what temperatures are fitted on, and what labels are checked by."""

    pool: Dataset  # prompt, first, second, source, first_length, second_length
    held_out: Dataset  # labelled pairs
    withheld: Withheld


class Judged(NamedTuple):
    """What a model says of the pool."""

    chances: np.ndarray  # (n,) that the first is the better; NaN of a pair that is not judged
    temperature: float
    held_out_error: float  # expected calibration error of held-out pairs, at that temperature


def label_pairs(config: RewardConfig, rows: Rows, path: Path, model: Path, device: torch.device, dtype: str) -> dict:
    """Label the pool with a model, and write the pairs that are kept as a file of preferences; returns what is reported."""
    judged = _judge(config, rows, model, device, dtype)
    longer = np.array(rows.pool["first_length"]) - np.array(rows.pool["second_length"])
    if config.pseudo_share is None:
        kept = confident(judged.chances, config.pseudo_confidence)
    else:
        kept = surest(judged.chances, np.array(rows.pool["source"]), config.pseudo_share)
    if config.pseudo_balance == "length":
        kept = balanced(judged.chances, kept, longer)
    if distributed.rank() == 0:
        path.parent.mkdir(exist_ok=True)
        lines = [
            json.dumps(_labelled(config, rows.pool[row], float(judged.chances[row]))) for row in np.flatnonzero(kept).tolist()
        ]
        replace_whole(path, "".join(line + "\n" for line in lines))
    distributed.barrier()
    return _report(judged, kept, longer, rows.withheld)


def _labelled(config: RewardConfig, row: dict, chance: float) -> dict:
    """A row as it is written, with the group that it is of where the training asks for groups."""
    group = {config.augment_group: row[GROUP]} if config.augment_group else {}
    return {**pseudo_labelled(row, chance, config.pseudo_labels), **group}


def _judge(config: RewardConfig, rows: Rows, model: Path, device: torch.device, dtype: str) -> Judged:
    lengths = {"max_length": config.max_length, "score_tokens": config.score_tokens}
    judge = load_judge(str(model), device=device, dtype=dtype, **lengths, trusted=[config.segmenter], source=config)
    known, pool = rows.held_out, rows.pool
    log_odds = pair_log_odds(judge, known["prompt"], known["chosen"], known["rejected"], whole=True)
    read = ~np.isnan(log_odds[:, 0])
    require(read.any(), "no held-out pair is within `max_length`, to fit chances on", "let it be larger")
    labels, log_odds = np.array(known["p_chosen"])[read], log_odds[read]
    # The log-odds of labels are of the model's own making; scores have no scale before one is found.
    temperature = 1.0 if isinstance(judge, PairModel) else fit_temperature(log_odds[:, 0], labels)
    error = _calibration_error(chances_at(temperature, log_odds), labels)
    log_odds = pair_log_odds(judge, pool["prompt"], pool["first"], pool["second"], whole=True)
    return Judged(chances_at(temperature, log_odds), temperature, error)


def _report(judged: Judged, kept: np.ndarray, longer: np.ndarray, withheld: Withheld) -> dict:
    """What a round's labels come to, and how they agree with those that the rows withheld."""
    won, labels = judged.chances > 0.5, withheld.labels
    told = ~np.isnan(labels)
    both = told & ~np.isnan(judged.chances)
    return {
        "unlabelled": len(kept),
        "not_judged": int(np.isnan(judged.chances).sum()),
        "temperature": judged.temperature,
        "held_out_calibration_error": judged.held_out_error,
        "kept": int(kept.sum()),
        # Against the order of their rows, in which a better one that is known stands first.
        "turned": _mean((won == withheld.turned)[kept]),
        "agreement": _mean((won == (labels > 0.5))[kept & told & (labels != 0.5)]),
        "calibration_error": _calibration_error(judged.chances[both], labels[both]) if both.any() else None,
        "longer_by": _mean((np.where(won, 1, -1) * longer)[kept]),
    }


def _calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    """Of chances p that the first is the better, and of labels, the chance that it is."""
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, labels, 1 - labels))
    return calibration_error(reliability(np.maximum(p, 1 - p), right))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
