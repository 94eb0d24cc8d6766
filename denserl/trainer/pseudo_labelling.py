"""A round's labels: what a model says of unlabelled pairs, those that are kept, and what is reported of them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset

from denserl import distributed
from denserl.data.features import array_of
from denserl.data.preferences import GROUP
from denserl.data.schemas import P_CHOSEN, WEIGHT
from denserl.data.unlabelled import Withheld
from denserl.errors import require
from denserl.files import replace_whole
from denserl.rewards.pair_chances import (
    Judge,
    calibration_error,
    chances_at,
    fit_temperature,
    load_judge,
    negative_log_likelihood,
    pair_log_odds,
    reliability,
)
from denserl.rewards.pseudo_labels import balanced, confident, pseudo_labelled, surest
from denserl.rewards.sources.pair_model import PairModel
from denserl.trainer.reward_config import RewardConfig


class Rows(NamedTuple):
    """What is labelled, what temperatures are fitted on, and what labels are checked by."""

    pool: Dataset  # prompt, first, second, source, first_length, second_length
    held_out: Dataset  # labelled pairs
    withheld: Withheld


def judge_held_out(config: RewardConfig, rows: Rows, model: Path, device: torch.device, dtype: str) -> dict[str, float]:
    """How sure a model may be, and how well it then does: temperature, loss and calibration error of weighed held-out pairs."""
    known = rows.held_out
    judge = _judge(config, model, device, dtype)
    log_odds = pair_log_odds(judge, known["prompt"], known["chosen"], known["rejected"], whole=True)
    weights = array_of(known, WEIGHT)
    read = ~np.isnan(log_odds[:, 0]) & (weights > 0)
    require(read.any(), "no held-out pair of a weight above 0 is within `max_length`, to fit chances on", "let it be larger")
    labels, log_odds, weights = array_of(known, P_CHOSEN)[read], log_odds[read], weights[read]
    # The log-odds of labels are of the model's own making; scores have no scale before one is found.
    temperature = 1.0 if isinstance(judge, PairModel) else fit_temperature(log_odds[:, 0], labels, weights)
    found = chances_at(temperature, log_odds)
    loss, error = negative_log_likelihood(found, labels, weights), _calibration_error(found, labels, weights)
    return {"temperature": temperature, "held_out_loss": loss, "held_out_calibration_error": error}


def label_pairs(
    config: RewardConfig, rows: Rows, path: Path, model: Path, temperature: float, device: torch.device, dtype: str
) -> dict:
    """Label the pool with a model, and write the pairs that are kept as a file of preferences; returns what is reported."""
    pool, judge = rows.pool, _judge(config, model, device, dtype)
    log_odds = pair_log_odds(judge, pool["prompt"], pool["first"], pool["second"], whole=True)
    p = chances_at(temperature, log_odds)
    longer = np.array(pool["first_length"]) - np.array(pool["second_length"])
    if config.pseudo_share is None:
        kept = confident(p, config.pseudo_confidence)
    else:
        kept = surest(p, np.array(pool["source"]), config.pseudo_share)
    if config.pseudo_balance == "length":
        kept = balanced(p, kept, longer)
    if distributed.rank() == 0:
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps(_labelled(config, pool[row], float(p[row]))) for row in np.flatnonzero(kept).tolist()]
        replace_whole(path, "".join(line + "\n" for line in lines))
    distributed.barrier()
    return _report(p, kept, longer, rows.withheld)


def _labelled(config: RewardConfig, row: dict, chance: float) -> dict:
    """A row as it is written, with the group that it is of where the training asks for groups."""
    group = {config.augment_group: row[GROUP]} if config.augment_group else {}
    return {**pseudo_labelled(row, chance, config.pseudo_labels), **group}


def _judge(config: RewardConfig, model: Path, device: torch.device, dtype: str) -> Judge:
    lengths = {"max_length": config.max_length, "score_tokens": config.score_tokens}
    return load_judge(str(model), device=device, dtype=dtype, **lengths, trusted=[config.segmenter], source=config)


def _report(p: np.ndarray, kept: np.ndarray, longer: np.ndarray, withheld: Withheld) -> dict:
    """What a round's labels come to, and how they agree with those that the rows withheld."""
    won, labels = p > 0.5, withheld.labels
    told = ~np.isnan(labels)
    both = told & ~np.isnan(p)
    return {
        "unlabelled": len(kept),
        "not_judged": int(np.isnan(p).sum()),
        "kept": int(kept.sum()),
        # Against the order of their rows, in which a better one that is known stands first.
        "turned": _mean((won == withheld.turned)[kept]),
        "agreement": _mean((won == (labels > 0.5))[kept & told & (labels != 0.5)]),
        "calibration_error": _calibration_error(p[both], labels[both]) if both.any() else None,
        "longer_by": _mean((np.where(won, 1, -1) * longer)[kept]),
    }


def _calibration_error(p: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of chances p that the first is the better, and of labels, the chance that it is."""
    right = np.where(p == 0.5, 0.5, np.where(p > 0.5, labels, 1 - labels))
    return calibration_error(reliability(np.maximum(p, 1 - p), right, weights=weights))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
