"""What a training adds to its pairs: others that are made of them."""

import logging
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from denserl.data.augmentation import augment_pairs, is_unknown
from denserl.data.bad_rows import BadRow
from denserl.data.features import NUMBER, with_column
from denserl.data.order import shuffled
from denserl.errors import UserError
from denserl.rewards.pair_chances import load_judge, pair_chances
from denserl.streams import Purpose, stream
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_labels import MEAN, VOTES
from denserl.trainer.start import device_and_precision

log = logging.getLogger(__name__)


def augmented(config: RewardConfig, pairs: Dataset) -> Dataset:
    """The training pairs, and behind them those that are made of them, where the options ask for such. Collective."""
    if config.augment is None:
        return pairs
    # What is known of how strong a pair is says nothing of those that are made of it.
    strengths = [name for name in (MEAN, VOTES) if name in pairs.column_names]
    how: dict[str, Any] = {"ratio": config.augment_ratio, "neutrals": config.augment_neutrals, "seed": config.seed_of_data()}
    made = augment_pairs(pairs.remove_columns(strengths), **how)
    if config.augment_filter is not None:
        made = _unknown_to(config.augment_filter, config, made)
    for name in strengths:
        made = with_column(made, name, np.full(len(made), np.nan), NUMBER)
    return concatenate_datasets([pairs, made])


def _unknown_to(path: str, config: RewardConfig, made: Dataset) -> Dataset:
    """Of half of the rows, drawn by the seed, those of which the model at the path says otherwise than they do."""
    drawn = shuffled(len(made), stream(config.seed_of_data(), Purpose.AUGMENTATION, 1))[: len(made) // 2]
    half = made.select(sorted(drawn))
    device, dtype = device_and_precision(config)
    lengths = {"max_length": config.max_length, "score_tokens": config.score_tokens}
    judge = load_judge(path, device=device, dtype=dtype, **lengths, trusted=[config.segmenter], source=config)
    try:
        chances = pair_chances(judge, half["prompt"], half["chosen"], half["rejected"])
    except BadRow as error:
        fix = "give a model of another chat template, or leave `augment_filter` out"
        raise UserError(f"`augment_filter` {path}: it cannot be asked of an augmented row: {error}", fix) from error
    kept = is_unknown(chances, np.array(half["p_chosen"]), config.augment_threshold)
    log.info("augmentation: of %d rows that %s was asked of, %d are kept", len(half), path, kept.sum())
    return half.select(np.flatnonzero(kept))
