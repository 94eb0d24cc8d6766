"""The reward-model trainer of preferences whose two responses stand in one text, of which the model names the better one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from denserl.data.features import list_lengths
from denserl.data.schemas import P_CHOSEN, PAIR_LABELS, SIDES
from denserl.errors import require
from denserl.models.measured import stock_model
from denserl.models.scoring import RewardReading
from denserl.rewards.objectives import Groups, Objective, Orders, PairLabels, all_labels, all_reads
from denserl.rewards.order_metrics import order_metrics, order_sums
from denserl.segmentation import Segments, segments_from_starts
from denserl.trainer.group_trainer import Given, GroupTrainer, Prepared
from denserl.trainer.reward_orders import LAYOUT, OrderCollator, orders_of
from denserl.trainer.reward_pairs import told_pairs
from denserl.trainer.summaries import pair_model_lines, pair_model_remarks


class PairTrainer(GroupTrainer):
    """Trains a language model to answer a context and two responses with the label of the better one (arXiv 2405.07863).

    A group is one pair, its candidates the orders in which it is read: one in training, or both; both in evaluation. A score is
    the log-odds that the response that stands first is the better one. Rows as `with_orders` makes them; other args as those of
    `GroupTrainer`.
    """

    def __init__(
        self, *, objectives: Sequence[Objective] = (PairLabels(),), pad_id: int, labels: Sequence[str] = PAIR_LABELS, **kw: Any
    ):
        own: dict[str, Any] = {"data_collator": OrderCollator(pad_id, labels), "labels": labels}
        super().__init__(segmenter=None, objectives=objectives, pad_id=pad_id, **own, **kw)

    @classmethod
    def prepare(cls, given: Given) -> Prepared:
        config, tokenizer, *_, objectives = given
        others = sorted({"steps", "first_logps", "logps", "ref_logps"} & all_reads(objectives))
        found = f"an objective reads {', '.join(others)}, which two responses in one text do not have"
        require(not others, found, "let `input` be pairs, or steps")
        labels = all_labels(objectives)
        train, held_out = orders_of(config, tokenizer, labels)
        settings = {"input": config.input, "pair_layout": LAYOUT}
        return Prepared(train, held_out, train, settings, {"labels": labels})

    def lengths(self, rows: Dataset) -> np.ndarray:
        # Both texts of a pair are as long.
        prompt, text, orders = (list_lengths(rows, name) for name in ("prompt_ids", f"{SIDES[0]}_ids", "orders"))
        return np.repeat((prompt + text)[:, None], orders.max(), 1)

    def segments(self, batch: dict[str, Tensor]) -> Segments:
        mask = batch["response_mask"]
        return segments_from_starts(torch.zeros_like(mask), mask)

    def row_sums(self, groups: Groups) -> dict[str, Tensor]:
        return order_sums(groups.scores, groups.labels["chosen_first"], groups.labels[P_CHOSEN], groups.weights())

    def row_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return order_metrics(sums)

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        pairs = told_pairs(self.eval_dataset)
        return pair_model_lines(metrics, pairs), pair_model_remarks(metrics, pairs)

    def _one_pass(self, model: nn.Module, batch: dict[str, Tensor], **also: Any) -> tuple[Groups, RewardReading]:
        if "label_logp" in self.reads:
            # The last token, behind which the label stands.
            length = batch["response_mask"].sum(1, keepdim=True)
            at = batch["response_start"].to(length.device)[:, None] + length - 1
            also["label"] = (at, stock_model(model).score.rows[0])
        groups, found = super()._one_pass(model, batch, **also)
        chosen_first, p_chosen = batch["chosen_first"], batch[P_CHOSEN][:, None]
        margins = groups.scores[..., None] if groups.outputs is None else groups.outputs
        logp = None if found.label is None else found.label.view(-1, len(chosen_first)).T
        orders = Orders(margins, torch.where(chosen_first, p_chosen, 1 - p_chosen), logp)
        return groups._replace(orders=orders, labels={**groups.labels, "chosen_first": chosen_first}), found
