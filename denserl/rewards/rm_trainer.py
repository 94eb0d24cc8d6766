"""The reward-model trainer: segment scores, the Bradley-Terry loss, and the metrics of pairs.

Optimiser steps, averages, evaluation and logs are those of every supervised training (denserl/supervised.py).
"""

import torch
from torch import Tensor

from denserl.data.batching import ResponseBatch, pad_responses, pad_rows
from denserl.data.entropies import SIDES
from denserl.rewards.objectives import pair_losses
from denserl.rewards.scoring import pair_metrics, pair_sums, score_responses
from denserl.supervised import SupervisedTrainer


class PairCollator:
    """Rows of tokenised preferences with entropies -> one padded batch, the chosen responses first, then the rejected."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = pad_responses(
            [row["prompt_ids"] for row in rows] * 2, [row[f"{side}_ids"] for side in SIDES for row in rows], self.pad_id
        )
        entropy = pad_rows([row[f"{side}_entropy"] for side in SIDES for row in rows], 0.0, torch.float32)
        margin = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        return {**batch._asdict(), "entropy": entropy, "margin": margin}


class RewardTrainer(SupervisedTrainer):
    """Trains `AutoModelForSequenceClassification(num_labels=1)` on preferences (spec dense-rlhf, section 3).

    Args beyond those of `SupervisedTrainer`:
        threshold: entropy threshold in nats. agg_func: how segment scores make a sequence score.
        use_margin, label_smoothing, centring: options of the Bradley-Terry loss.
    """

    def __init__(
        self,
        *,
        threshold: float,
        agg_func: str = "avg",
        use_margin: bool = False,
        label_smoothing: float = 0.0,
        centring: float = 0.0,
        pad_id: int,
        **kw,
    ):
        super().__init__(data_collator=PairCollator(pad_id), **kw)
        self.threshold, self.agg_func = threshold, agg_func
        self.use_margin, self.label_smoothing, self.centring = use_margin, label_smoothing, centring

    def count(self, batch):
        return batch["counted"].sum()

    def sums(self, model, batch):
        responses, counted = ResponseBatch.of(batch), batch["counted"]
        scores, segments = score_responses(model, responses, batch["entropy"], self.threshold, self.agg_func)
        margin = batch["margin"] if self.use_margin else None
        losses = pair_losses(*scores.chunk(2), margin, self.label_smoothing, self.centring)
        lengths = responses.response_mask.sum(1)
        return {"loss": torch.where(counted, losses, 0.0).sum(), **pair_sums(scores, segments, lengths, counted)}

    def metrics(self, sums):
        return pair_metrics(sums)

    def lengths(self, rows):
        columns = (rows["prompt_ids"], *(rows[f"{side}_ids"] for side in SIDES))
        return [2 * (len(prompt) + max(map(len, sides))) for prompt, *sides in zip(*columns, strict=True)]
