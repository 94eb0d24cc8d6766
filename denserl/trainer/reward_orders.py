"""Preferences as the trainer of pairwise models takes them: both responses in one text, in the orders that are read."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from denserl.data.batching import pad_responses
from denserl.data.features import IDS, longest_row, with_column
from denserl.data.pair_encoding import PairLayout, tokenize_orders
from denserl.data.schemas import SIDES, WEIGHT
from denserl.models.positions import check_positions
from denserl.streams import Purpose, stream
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_labels import as_learned
from denserl.trainer.reward_pairs import checked_pairs

LAYOUT: PairLayout = "denserl"
BOTH = list(range(len(SIDES)))


class OrderCollator:
    """Rows of `with_orders`, all with as many orders -> one padded batch, all first orders before all second ones.

    chosen_first: (G, M) bool, whether the chosen response stands first. labels: columns of numbers, one a row.
    """

    def __init__(self, pad_id: int, labels: Sequence[str]):
        self.pad_id, self.labels = pad_id, labels

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        orders = torch.tensor([row["orders"] for row in rows])
        responses = [row[f"{SIDES[order]}_ids"] for place in orders.T for row, order in zip(rows, place, strict=True)]
        batch = pad_responses([row["prompt_ids"] for row in rows] * orders.shape[1], responses, self.pad_id)
        labels = {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in (*self.labels, WEIGHT)}
        return {**batch._asdict(), **labels, "chosen_first": orders == 0}


def orders_of(config: RewardConfig, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> tuple[Dataset, Dataset]:
    """Training and evaluation rows (see `tokenize_orders`, `with_orders`); the latter are read in both orders."""
    how = {"max_length": config.max_length, "on_bad_row": config.on_bad_row, "cache_dir": config.cache_dir}
    train, held_out = (tokenize_orders(part, tokenizer, LAYOUT, **how) for part in checked_pairs(config, labels))
    longest = max(longest_row(part, "prompt_ids", "chosen_ids") for part in (train, held_out))
    fix = "give a `max_length` of at most {}"
    check_positions(longest, [config.model], config, "the longest pair of responses with its prompt", fix)
    train = as_learned(config, train)
    return with_orders(train, None if config.both_orders else config.seed), with_orders(held_out, None)


def with_orders(rows: Dataset, seed: int | None) -> Dataset:
    """The rows with a column `orders`: the numbers of the sides that stand first in the texts that are read.

    seed: of one fair coin a row, which says which of both it is; None: both are read.
    """
    if seed is None:
        return with_column(rows, "orders", [BOTH] * len(rows), IDS)
    coins = np.random.default_rng(stream(seed, Purpose.ORDERS)).integers(len(SIDES), size=len(rows))
    return with_column(rows, "orders", coins[:, None].tolist(), IDS)
