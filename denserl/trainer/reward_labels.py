"""What tokenised pairs are learned as: noise is put into labels first, then what is known of their strength is used.

Until then rows keep in columns how strong their pairs are, as the data has them, and their folds: what the frozen model says of
them is the same for all members and all uses, and is asked for once.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from denserl import distributed
from denserl.data.features import NUMBER, array_of, with_column
from denserl.data.folds import folds_of
from denserl.data.hub import split_revision
from denserl.data.preferences import exchanged, labels_to_turn
from denserl.data.readers import is_hub_source
from denserl.data.schemas import MARGIN, P_CHOSEN
from denserl.data.strength_file import STRENGTH_FILE, Strength, read_strength, write_strength
from denserl.errors import require
from denserl.rewards.members import MEMBERS_FILE
from denserl.rewards.pair_chances import load_judge
from denserl.rewards.strength_uses import MARGINS, Learned, in_part, learned_as
from denserl.rewards.voting import measure_strength
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.start import device_and_precision

log = logging.getLogger(__name__)

# Columns that pairs have on their way to the trainer.
MEAN, VOTES, FOLD = "strength_mean", "strength_votes", "fold"


def with_strength(config: RewardConfig, pairs: Dataset) -> Dataset:
    """The pairs with their strength, as the options have it, and with their folds, in columns. UserError where rows differ."""
    if config.leave_out_fold is not None:
        folds = folds_of(pairs["prompt"], config.strength_folds, config.seed_of_data())
        pairs = _with_numbers(pairs, FOLD, folds)
    if not config.strength_from:
        return pairs
    own = (array_of(pairs, P_CHOSEN) != 1).any()
    said = "`strength_from` says how likely labels are right, and rows of the data say so themselves (p_chosen)"
    require(not own, said, "leave it out, or leave those of the rows unread with `columns` p_chosen=")
    found = strength_of(config, pairs)
    return _with_numbers(_with_numbers(pairs, MEAN, found.mean), VOTES, found.votes)


def strength_of(config: RewardConfig, pairs: Dataset) -> Strength:
    """The strength of pairs as `load_preferences` gives them, read from a file or measured by models. Collective."""
    paths = config.strength_from
    if measures_strength(config):
        paths = [str(measured_file(config))]
        device, dtype = device_and_precision(config)
        how: dict[str, Any] = {"max_length": config.max_length, "score_tokens": config.score_tokens}
        load = partial(load_judge, device=device, dtype=dtype, **how, trusted=[config.segmenter], source=config)
        kept = Path(config.output_dir) / "scores"
        votes = measure_strength(config.strength_from, pairs, load, config, dtype, kept, f"max_length {config.max_length}")
        if distributed.rank() == 0:
            write_strength(paths[0], pairs, votes.chosen, votes.rejected)
        distributed.barrier()
    return read_strength(paths[0], pairs, config.split, config.on_bad_row)


def measures_strength(config: RewardConfig) -> bool:
    """Whether `strength_from` names models. UserError for a file among several names."""
    names = config.strength_from or []
    files = [name for name in names if not _is_model(name)]
    found = f"`strength_from` names {', '.join(names)}, of which {', '.join(files)} holds strengths, or is not there"
    require(not files or len(names) == 1, found, "give one file of strength, or reward models alone")
    return bool(names) and not files


def _is_model(name: str) -> bool:
    """Whether it is a folder with a model or with members, or a name on the hub."""
    if Path(name).exists():
        return any((Path(name) / file).is_file() for file in ("config.json", MEMBERS_FILE))
    return is_hub_source(split_revision(name)[0])


def measured_file(config: RewardConfig) -> Path:
    """Where the strength stands that a training has measured."""
    return Path(config.output_dir) / STRENGTH_FILE


def as_learned(config: RewardConfig, rows: Dataset) -> Dataset:
    """Tokenised pairs as they are learned, without the columns of `with_strength`; fewer where some are left out."""
    kept = np.ones(len(rows), dtype=bool)
    turned = labels_to_turn(len(rows), config.flip_frac, config.seed_of_data())
    if MEAN in rows.column_names:
        # Strength is of two responses: where noise turns a label round, it is the strength of what is then chosen.
        mean, votes = (array_of(rows, name) for name in (MEAN, VOTES))
        mean, votes = np.where(turned, -mean, mean), np.where(turned, 1 - votes, votes)
        found, kept = _used(config, mean, votes)
        log.info("%s", _in_words(mean, found, kept))
        rows = _with_labels(rows, found, ~np.isnan(mean))
        turned = turned ^ found.turned
    if FOLD in rows.column_names:
        of_fold = array_of(rows, FOLD) == config.leave_out_fold
        left = f"`leave_out_fold` {config.leave_out_fold}: {of_fold.sum()} of {len(rows)} pairs are of that fold"
        require(of_fold.any() and not of_fold.all(), left, "give fewer `strength_folds`, or more prompts")
        log.info("%s", left)
        kept = kept & ~of_fold
    require(kept.any(), "`strength_keep` leaves no pair to train on", "name a larger part")
    rows = plain(exchanged(rows, turned))
    return rows if kept.all() else rows.select(np.flatnonzero(kept))


def plain(pairs: Dataset) -> Dataset:
    """Pairs without the columns of `with_strength`."""
    return pairs.remove_columns([name for name in (MEAN, VOTES, FOLD) if name in pairs.column_names])


def without_margins(config: RewardConfig, held_out: Dataset) -> Dataset:
    """Held-out pairs, whose margins are not those of ratings where strengths are learned as margins: theirs are not known."""
    return _with_numbers(held_out, MARGIN, np.zeros(len(held_out))) if config.strength_use in MARGINS else held_out


def _used(config: RewardConfig, mean: np.ndarray, votes: np.ndarray) -> tuple[Learned, np.ndarray]:
    """What rows are learned as, and (N,) whether each is kept, as rows are that were made of several and have no strength."""
    kept = np.isnan(mean) | np.any([in_part(mean, part) for part in config.strength_keep or ["0-1"]], axis=0)
    if config.strength_use is None:
        return Learned(np.zeros(len(mean), dtype=bool)), kept
    how = (config.strength_low, config.strength_scale, config.strength_clip, config.strength_smoothing)
    return learned_as(config.strength_use, mean, votes, *how), kept


def _with_labels(rows: Dataset, found: Learned, known: np.ndarray) -> Dataset:
    """The rows with what those of known strength are learned as; ratings, where they stay, follow the turned labels."""
    ratings = array_of(rows, MARGIN)
    margin = np.where(found.turned, -ratings, ratings) if found.margin is None else np.where(known, found.margin, ratings)
    rows = _with_numbers(rows, MARGIN, margin)
    if found.p_chosen is not None:
        rows = _with_numbers(rows, P_CHOSEN, np.where(known, found.p_chosen, array_of(rows, P_CHOSEN)))
    return rows


def _in_words(mean: np.ndarray, found: Learned, kept: np.ndarray) -> str:
    """What was done with the strength of pairs."""
    known = ~np.isnan(mean)
    low, middle, high = np.quantile(mean[known], (0, 0.5, 1))
    words = [f"strength of {known.sum()} pairs: means from {low:.3g} to {high:.3g}, {middle:.3g} in the middle"]
    words.append(f"{found.turned.sum()} labels turned round" if found.turned.any() else "no label turned round")
    if found.p_chosen is not None:
        softer = found.p_chosen[known]
        words.append(f"{(softer != 1).sum()} softened, right with a chance of {softer.mean():.3f} on average")
    if found.margin is not None:
        margins = found.margin[known]
        words.append(f"margins from {margins.min():.3g} to {margins.max():.3g}, {margins.mean():.3g} on average")
    return "; ".join([*words, f"{(~kept).sum()} left out"])


def _with_numbers(rows: Dataset, name: str, values: np.ndarray) -> Dataset:
    return with_column(rows, name, np.asarray(values, dtype=np.float64), NUMBER)
