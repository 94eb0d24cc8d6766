"""Rated responses as the reward-model trainer takes them: loaded, split by questions, tokenised."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from denserl.data.features import longest_row
from denserl.data.rated_rows import ATTRIBUTES, load_ratings, tokenize_ratings
from denserl.errors import require
from denserl.models.positions import check_positions
from denserl.rewards.pairs import with_entropies
from denserl.segmentation import Segmenter
from denserl.trainer.reference import in_shares
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_pairs import cutting_model
from denserl.trainer.reward_steps import split_by_question

SIDE = "response"


def ratings_of(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase, segmenter: Segmenter, device: torch.device, dtype: str
) -> tuple[Dataset, Dataset]:
    """Training and evaluation rows, tokenised, with entropies where the segmenter cuts by them.

    UserError where an attribute has no rating to learn from.
    """
    names = config.rating_words(config.data)
    train = load_ratings(**config.source(), seed=config.seed, names=names)
    if config.eval_data:
        held_out = load_ratings(config.eval_data, split=config.eval_split, **config.source_beside(), names=names)
    else:
        train, held_out = split_by_question(train, config.eval_size, config.seed)
    how: dict[str, Any] = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    how |= {"on_bad_row": config.on_bad_row, "cache_dir": config.cache_dir}
    parts = [tokenize_ratings(part, tokenizer, **how) for part in (train, held_out)]
    check_rated(parts[0], config.rating_names(config.data))
    longest = max(longest_row(part, "prompt_ids", "response_ids") for part in parts)
    fix = "give a `max_length` of at most {}, with a `max_prompt_length` below it"
    check_positions(longest, [config.model], config, "the longest response with its prompt", fix)
    if segmenter.reads_entropy:
        cut_by = (cutting_model(config, segmenter), tokenizer, device, dtype, in_shares(config, dtype, device))
        parts = [with_entropies(part, config, config, *cut_by, sides=(SIDE,)) for part in parts]
    return parts[0], parts[1]


def check_rated(rows: Dataset, names: Sequence[str]) -> None:
    """UserError for an attribute that no row has."""
    rated = (~torch.tensor(rows[ATTRIBUTES], dtype=torch.float32).isnan()).sum(0).tolist()
    lacking = ", ".join(name for name, count in zip(names, rated, strict=True) if not count)
    require(not lacking, f"no row that is trained on has a rating for {lacking}", "leave it out of `rating_columns`")
