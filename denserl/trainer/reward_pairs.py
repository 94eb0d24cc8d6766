"""Preferences as the reward-model trainer takes them: tokenised, with what the SFT model says of them; and in batches."""

import gc
import logging
from collections.abc import Container, Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from denserl.data.batching import pad_responses, pad_rows
from denserl.data.features import array_of
from denserl.data.order import shuffled
from denserl.data.preferences import load_preferences
from denserl.data.schemas import MARGIN, P_CHOSEN, PAIR_LABELS, SIDES, WEIGHT
from denserl.errors import require
from denserl.rewards.config import ObjectiveConfig
from denserl.rewards.pairs import prepare_pairs
from denserl.rewards.sources.reading import check_sft_model
from denserl.segmentation import Segmenter
from denserl.streams import Purpose, stream
from denserl.trainer.augmented import augmented
from denserl.trainer.reference import in_shares
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_labels import as_learned, plain, with_strength, without_margins
from denserl.trainer.reward_making import trunk_settings

log = logging.getLogger(__name__)


class GroupCollator:
    """Rows of tokenised candidates with entropies -> one padded batch, all first candidates before all second ones.

    Args:
        candidates: prefixes of the columns of each candidate: `chosen_ids`, `chosen_entropy` (nats, one a response token;
            0 where there is no such column).
        labels: columns of numbers, one a row. Without p_chosen and weight it is a row of 1.
        with_reference: the rows also hold the reference model's log-probabilities of the responses (`chosen_logprob`).
    """

    def __init__(
        self,
        pad_id: int,
        candidates: Sequence[str] = SIDES,
        labels: Sequence[str] = PAIR_LABELS,
        with_reference: bool = False,
    ):
        self.pad_id, self.candidates, self.labels, self.with_reference = pad_id, candidates, labels, with_reference

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        prompts = [row["prompt_ids"] for row in rows] * len(self.candidates)
        batch = pad_responses(prompts, self._column(rows, "ids"), self.pad_id)
        entropy = torch.zeros(batch.response_mask.shape)
        if f"{self.candidates[0]}_entropy" in rows[0]:
            entropy = pad_rows(self._column(rows, "entropy"), 0.0, torch.float32)
        rows = [{P_CHOSEN: 1.0, WEIGHT: 1.0, **row} for row in rows]
        labels = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in (*self.labels, WEIGHT)}
        reference = {}
        if self.with_reference:
            reference["ref_logps"] = torch.tensor(self._column(rows, "logprob"), dtype=torch.float32)
        return {**batch._asdict(), "entropy": entropy, **labels, **reference}

    def _column(self, rows: list[dict], name: str) -> list:
        return [row[f"{candidate}_{name}"] for candidate in self.candidates for row in rows]


def load_pairs(config: RewardConfig, labels: Sequence[str] = ()) -> tuple[Dataset, Dataset]:
    """Training pairs, those of `pseudo_data` behind the others, and evaluation pairs, as `load_preferences` gives them.

    Training pairs have, in columns, what `with_strength` knows of them.
    """
    own: dict[str, Any] = {"labels": [name for name in labels if name not in PAIR_LABELS]}
    seed = config.seed_of_data()
    train = with_strength(config, load_preferences(**config.source(), seed=seed, group=config.augment_group, **own))
    if config.eval_data:
        held_out = load_preferences(config.eval_data, split=config.eval_split, **config.source_beside(), **own)
    else:
        size = min(config.eval_size, len(train) // 10)
        require(size > 0, f"{len(train)} pairs are too few to split some off for evaluation", "give `eval_data`")
        order = shuffled(len(train), stream(seed, Purpose.HELD_OUT))
        held_out, train = plain(train.select(order[:size])), train.select(order[size:])
    if config.pseudo_data:
        train = concatenate_datasets([train, load_preferences(config.pseudo_data, group=config.augment_group, **own)])
    return train, without_margins(config, held_out)


def checked_pairs(config: RewardConfig, labels: Sequence[str]) -> tuple[Dataset, Dataset]:
    """The pairs of `load_pairs`, those to train on with what is made of them. UserError where they say too little."""
    train, held_out = load_pairs(config, labels)
    check_labels(config, train)
    none = "no held-out pair says which response is the better one: p_chosen is .5 in all of them, or their weight is 0"
    require(told_pairs(held_out), none, "give other `eval_data`, or a larger `eval_size`")
    return augmented(config, train), held_out


def pairs_of(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
    labels: Sequence[str],
    sft_model: str | None,
) -> tuple[Dataset, Dataset]:
    """Training and evaluation pairs, tokenised, with their labels and what the SFT model says of them (see `asked_model`)."""
    how: dict[str, Any] = {"on_bad_row": config.on_bad_row, "in_shares": in_shares(config, dtype, device)}
    how["read_by"] = [config.model]
    train, held_out = (
        prepare_pairs(part, config, config, sft_model, tokenizer, device, dtype, **how)
        for part in checked_pairs(config, labels)
    )
    if how["in_shares"]:
        # An engine refers to itself; what it holds is needed for training.
        gc.collect()
    return as_learned(config, train), held_out


def cutting_model(config: RewardConfig, segmenter: Segmenter) -> str | None:
    """The language model whose entropies cut the responses: `model`, or of a reward model's trunk the one that cut for that.

    None of such a trunk where no entropies are read. UserError where that model is not known.
    """
    stored = trunk_settings(config)
    if stored is None:
        return config.model
    if not segmenter.reads_entropy:
        return None
    require(
        stored.sft_model is not None,
        f"{config.model}/config.json names no SFT model (sft_model) whose entropies cut responses",
        "let `reward_level` be bandit",
    )
    check_sft_model(stored, config.model, "correct it there, or let `reward_level` be bandit")
    return stored.sft_model


def asked_model(config: RewardConfig, segmenter: Segmenter, reads: Container[str]) -> str | None:
    """`cutting_model`, where segments or objectives, which read such things of a batch, need what it says; else None."""
    return cutting_model(config, segmenter) if segmenter.reads_entropy or "ref_logps" in reads else None


def check_labels(config: ObjectiveConfig, pairs: Dataset) -> None:
    """UserError where the options ask for ratings that no pair has, or where two things say how likely its label is right."""
    for name, asked in (("use_margin", config.use_margin), ("soft_label_scale", config.soft_label_scale)):
        fix = f"leave `{name}` out, or give rows with ratings"
        require(
            not asked or array_of(pairs, MARGIN).any(),
            f"`{name}` has no effect: no row of the data has ratings that differ",
            fix,
        )
    soft = config.soft_label_scale is not None and (array_of(pairs, P_CHOSEN) != 1).any()
    found = "`soft_label_scale` makes labels of ratings, and rows of the data have some of their own (p_chosen)"
    require(not soft, found, "leave it out, or leave those of the rows unread with `columns` p_chosen=")
    unread = "correct them, or leave weights unread with `columns` weight="
    require(array_of(pairs, WEIGHT).any(), "all rows that are trained on have weight 0", unread)


def told_pairs(pairs: Dataset) -> int:
    """How many pairs of one weight would tell as much of an accuracy: (sum w)^2 / sum w^2 (Kish) of those that are no ties."""
    weights = array_of(pairs, WEIGHT)[array_of(pairs, P_CHOSEN) != 0.5]
    squares = (weights**2).sum()
    return round(weights.sum() ** 2 / squares) if squares else 0


def contents_of(pairs: Dataset, labels: Sequence[str]) -> Dataset:
    """What of tokenised pairs does not follow from weights and ids; a p_chosen or weight that is 1 in all rows is left out."""
    said = {name for name in (P_CHOSEN, WEIGHT) if (array_of(pairs, name) != 1).any()}
    read = {*labels} - {P_CHOSEN} | said
    return pairs.select_columns([name for name in pairs.column_names if name.endswith("_ids") or name in read])
