"""Preferences as the reward-model trainer takes them: tokenised, with what the SFT model says of them; and in batches."""

import gc
import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from denserl.data.batching import pad_responses, pad_rows
from denserl.data.order import shuffled
from denserl.data.preferences import flip_labels, load_preferences
from denserl.data.reference_cache import SIDES
from denserl.errors import require
from denserl.rewards.config import ObjectiveConfig
from denserl.rewards.pairs import prepare_pairs
from denserl.streams import Purpose, stream
from denserl.trainer.reference import in_shares
from denserl.trainer.reward_config import RewardConfig

log = logging.getLogger(__name__)


class GroupCollator:
    """Rows of tokenised candidates with entropies -> one padded batch, all first candidates before all second ones.

    Args:
        candidates: prefixes of the columns of each candidate: `chosen_ids`, `chosen_entropy` (nats, one a response token).
        labels: columns of numbers, one a row.
        with_reference: the rows also hold the reference model's log-probabilities of the responses (`chosen_logprob`).
    """

    def __init__(
        self,
        pad_id: int,
        candidates: Sequence[str] = SIDES,
        labels: Sequence[str] = ("margin",),
        with_reference: bool = False,
    ):
        self.pad_id, self.candidates, self.labels, self.with_reference = pad_id, candidates, labels, with_reference

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        prompts = [row["prompt_ids"] for row in rows] * len(self.candidates)
        batch = pad_responses(prompts, self._column(rows, "ids"), self.pad_id)
        entropy = pad_rows(self._column(rows, "entropy"), 0.0, torch.float32)
        labels = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in self.labels}
        reference = {}
        if self.with_reference:
            reference["ref_logps"] = torch.tensor(self._column(rows, "logprob"), dtype=torch.float32)
        return {**batch._asdict(), "entropy": entropy, **labels, **reference}

    def _column(self, rows: list[dict], name: str) -> list:
        return [row[f"{candidate}_{name}"] for candidate in self.candidates for row in rows]


def pairs_of(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: str, labels: Sequence[str]
) -> tuple[Dataset, Dataset]:
    """Training and evaluation pairs, tokenised, with their labels and what the reference model says of them."""
    own: dict[str, Any] = {"labels": [name for name in labels if name != "margin"]}
    if config.eval_data:
        train = load_preferences(**config.source(), seed=config.seed, **own)
        held_out = load_preferences(config.eval_data, split=config.eval_split, **config.source_beside(), **own)
    else:
        parts = load_preferences(**config.source(), seed=config.seed, **own)
        size = min(config.eval_size, len(parts) // 10)
        require(size > 0, f"{len(parts)} pairs are too few to split some off for evaluation", "give `eval_data`")
        order = shuffled(len(parts), stream(config.seed, Purpose.HELD_OUT))
        held_out, train = parts.select(order[:size]), parts.select(order[size:])
    _check_ratings(config, train["margin"])
    how: dict[str, Any] = {"on_bad_row": config.on_bad_row, "in_shares": in_shares(config, dtype, device)}
    train, held_out = (
        prepare_pairs(part, config, config, config.model, tokenizer, device, dtype, **how) for part in (train, held_out)
    )
    if how["in_shares"]:
        # An engine refers to itself; what it holds is needed for training.
        gc.collect()
    return flip_labels(train, config.flip_frac, config.seed), held_out


def _check_ratings(config: ObjectiveConfig, margins: list[float]) -> None:
    for name, asked in (("use_margin", config.use_margin), ("soft_label_scale", config.soft_label_scale)):
        fix = f"leave `{name}` out, or give rows with ratings"
        require(not asked or any(margins), f"`{name}` has no effect: no row of the data has ratings that differ", fix)
