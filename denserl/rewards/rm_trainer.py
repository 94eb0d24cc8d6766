"""The reward-model trainer: transformers.Trainer with segment scores, the Bradley-Terry loss and exact pair evaluation."""

import torch
from torch import Tensor
from transformers import Trainer

from denserl import distributed
from denserl.data.batching import ResponseBatch, pad_responses, pad_rows, rank_batches
from denserl.data.entropies import SIDES
from denserl.rewards.objectives import bradley_terry
from denserl.rewards.scoring import pair_metrics, pair_sums, score_responses


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


class RewardTrainer(Trainer):
    """Trains `AutoModelForSequenceClassification(num_labels=1)` on preferences (spec dense-rlhf, section 3).

    Args beyond those of `Trainer`:
        threshold: entropy threshold in nats. agg_func: how segment scores make a sequence score.
        use_margin, label_smoothing, centring: options of the Bradley-Terry loss.
        eval_tokens: padded tokens per evaluation batch.
    """

    def __init__(
        self,
        *,
        threshold: float,
        agg_func: str = "avg",
        use_margin: bool = False,
        label_smoothing: float = 0.0,
        centring: float = 0.0,
        eval_tokens: int = 16384,
        pad_id: int,
        **kw,
    ):
        super().__init__(data_collator=PairCollator(pad_id), **kw)
        self.threshold, self.agg_func, self.eval_tokens = threshold, agg_func, eval_tokens
        self.use_margin, self.label_smoothing, self.centring = use_margin, label_smoothing, centring
        self._sums: dict[str, Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        scores, sums = self._score(model, inputs)
        margin = inputs["margin"] if self.use_margin else None
        loss = bradley_terry(*scores.chunk(2), margin, self.label_smoothing, self.centring)
        self._sums = add_sums(self._sums, sums)
        return (loss, {"scores": scores.detach()}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kw) -> None:
        """Adds the metrics of the pairs seen since the last log, over all ranks, to the training logs."""
        if "loss" in logs and self._sums:
            logs = {**logs, **pair_metrics(sum_over_ranks(self._sums))}
            self._sums = {}
        super().log(logs, *args, **kw)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and metrics over all pairs, each counted once on any number of ranks."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        lengths = [
            2 * (len(p) + max(len(c), len(r)))
            for p, c, r in zip(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
        ]
        model = self.model_wrapped
        model.eval()
        total: dict[str, Tensor] = {}
        for rows, counted in rank_batches(lengths, self.eval_tokens):
            inputs = self._prepare_inputs(self.data_collator([dataset[i] for i in rows]))
            with torch.no_grad():
                scores, sums = self._score(model, inputs)
                margin = inputs["margin"] if self.use_margin else None
                loss = bradley_terry(*scores.chunk(2), margin, self.label_smoothing, self.centring)
            sums["loss"] = loss.double() * len(rows)
            if counted:
                total = add_sums(total, sums)
            elif not total:
                total = {key: torch.zeros_like(value) for key, value in sums.items()}
        summed = sum_over_ranks(total)
        metrics = {"loss": summed["loss"] / max(summed["pairs"], 1.0), **pair_metrics(summed)}
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score(self, model, inputs) -> tuple[Tensor, dict[str, Tensor]]:
        batch = ResponseBatch(*(inputs[field] for field in ResponseBatch._fields))
        scores, segments = score_responses(model, batch, inputs["entropy"], self.threshold, self.agg_func)
        return scores, pair_sums(scores, segments, batch.response_mask.sum(1))


def add_sums(total: dict[str, Tensor], sums: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: total[key] + value if total else value for key, value in sums.items()}


def sum_over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    """One reduction for all sums; the same dictionary of numbers on every rank."""
    packed = distributed.all_sum(torch.stack(list(sums.values())))
    return dict(zip(sums, packed.tolist(), strict=True))
