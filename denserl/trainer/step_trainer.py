"""The reward-model trainer of solutions whose steps, or outcomes, are labelled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from denserl.data.schemas import PAIR_LABELS
from denserl.errors import require
from denserl.models.measured import stock_model
from denserl.models.scoring import RewardReading
from denserl.rewards.objectives import Groups, Objective, StepLabels, Steps, all_labels, all_reads
from denserl.rewards.step_metrics import step_metrics, step_sums
from denserl.segmentation import Segments, segments_from_starts
from denserl.trainer.group_trainer import Given, GroupTrainer, Prepared
from denserl.trainer.reward_steps import StepCollator, step_settings, steps_of
from denserl.trainer.summaries import step_model_lines, step_model_remarks


class StepTrainer(GroupTrainer):
    """Trains a reward model on solutions whose steps, or outcomes, are labelled; a step's score is the logit that it is right.

    A group is one solution. Rows as `tokenize_steps` makes them; other args as those of `GroupTrainer`.
    """

    def __init__(self, *, objectives: Sequence[Objective] = (StepLabels(),), pad_id: int, **kw: Any):
        own: dict[str, Any] = {"data_collator": StepCollator(pad_id), "candidates": ("response",), "labels": ()}
        super().__init__(segmenter=None, agg_func="min", objectives=objectives, pad_id=pad_id, **own, **kw)

    @classmethod
    def prepare(cls, given: Given) -> Prepared:
        config, tokenizer, *_, objectives = given
        of_pairs = sorted({"ref_logps"} & all_reads(objectives) | {*all_labels(objectives)} - {*PAIR_LABELS})
        shown = ", ".join(of_pairs)
        require(not of_pairs, f"an objective reads {shown}, which rows of labelled steps do not have", "let `input` be pairs")
        settings = step_settings(config, tokenizer)
        train, held_out = steps_of(config, tokenizer)
        return Prepared(train, held_out, train, settings, {})

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        if self.units == "groups":
            return super().count(batch)
        return (~batch["labels"].isnan() & batch["counted"][:, None]).sum()

    def segments(self, batch: dict[str, Tensor]) -> Segments:
        mask, read_at = batch["response_mask"], batch["read_at"]
        content = torch.arange(mask.shape[1], device=mask.device) <= read_at.amax(1, keepdim=True)
        # Behind each step's token one begins; the -1 past a row's steps name the first token, which begins one anyway.
        starts = torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.bool, device=mask.device).scatter_(1, read_at + 1, True)
        return segments_from_starts(starts[:, :-1] & content, content)

    def row_sums(self, groups: Groups) -> dict[str, Tensor]:
        return step_sums(groups.steps, groups.scores, groups.counted)

    def row_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return step_metrics(sums)

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        return step_model_lines(metrics, rows), step_model_remarks(metrics, rows)

    def _one_pass(self, model: nn.Module, batch: dict[str, Tensor], **also: Any) -> tuple[Groups, RewardReading]:
        read_at = batch["read_at"].clamp(min=0)
        if "label_logp" in self.reads:
            start = batch["response_start"].to(read_at.device)
            also["label"] = (start[:, None] + read_at, stock_model(model).score.rows[0])
        groups, found = super()._one_pass(model, batch, **also)
        steps = Steps(groups.token_scores.gather(1, read_at), batch["labels"], found.label)
        return groups._replace(steps=steps), found
