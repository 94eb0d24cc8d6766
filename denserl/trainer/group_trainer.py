"""What trainers of reward models share: scores and log-probabilities of groups of responses, handed to objectives, and metrics.

Optimiser steps, averages, evaluation and logs are those of every supervised training (denserl/trainer/supervised_trainer.py).
What the rows are, and how a model reads them, is said by a trainer for each `input`: reward_trainer.py, step_trainer.py.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from denserl import distributed
from denserl.data.batching import ResponseBatch, response_slots
from denserl.data.features import list_lengths
from denserl.data.policy_samples import ENDED, SIDE
from denserl.data.schemas import P_CHOSEN, PAIR_LABELS, SIDES, WEIGHT
from denserl.errors import UserError
from denserl.models.measured import stock_model
from denserl.models.scoring import RewardReading, read_rewards
from denserl.rewards.aggregation import aggregate, aggregate_outputs
from denserl.rewards.objectives import (
    BradleyTerry,
    Groups,
    Objective,
    all_prototypes,
    all_reads,
    all_step_rows,
    all_step_sums,
    all_units,
    counted_weights,
    total_losses,
    total_step_losses,
)
from denserl.rewards.pair_metrics import group_metrics, group_sums
from denserl.rewards.sources.reading import cut_settings
from denserl.segmentation import Segmenter, Segments, segment_scores
from denserl.trainer.engine import before_step, let_go_of_gathered
from denserl.trainer.meta_step import MetaSet, MetaStep, mean_separation
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_pairs import GroupCollator
from denserl.trainer.summaries import in_words, reward_model_lines, reward_model_remarks
from denserl.trainer.supervised import save_trained
from denserl.trainer.supervised_trainer import Sums, SupervisedTrainer, add_sums
from denserl.trainer.two_passes import parted, twice

log = logging.getLogger(__name__)

# Before the names of objectives' metrics, of their sums over whole steps, and of meta steps, among the sums, as checkpoints
# hold them.
OF_GROUPS, OF_STEP, OF_META = "of_pairs/", "of_step/", "of_meta/"
# In a batch, what it is told of all groups of the step: before the names of rows, and where among them its own stand.
ROWS_OF_STEP, PLACES = "rows_of_step/", "places_in_step"


class Given(NamedTuple):
    """What rows are prepared for and by."""

    config: RewardConfig
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: str
    objectives: Sequence[Objective]


class Prepared(NamedTuple):
    """What a training learns from, and how its model reads that."""

    train: Dataset
    held_out: Dataset
    contents: Dataset  # what of the rows does not follow from weights and ids
    settings: dict[str, Any]  # stored with the model
    reads: dict[str, Any]  # arguments of the trainer


def segment_settings(config: RewardConfig, segmenter: Segmenter) -> dict[str, Any]:
    """How a model that is trained on segments reads a response, as it is stored with it."""
    cut = {"entropy_threshold": segmenter.threshold, **cut_settings(segmenter)}
    return {**cut, "agg_func": config.agg_func, "read_at": "end_of_turn"}


class GroupTrainer(SupervisedTrainer):
    """Trains a classifier, whose head `score` is read at the ends of segments, on groups of candidate responses.

    Args beyond those of `SupervisedTrainer`:
        segmenter: cuts the responses, unless rows say where. agg_func: how segment scores make a sequence score.
        objectives: what it is trained for. Where one reads log-probabilities, the model has a language-model head `lm_head`
            (`attach_lm_head`); where one reads the reference model's, the rows hold them (`add_entropies`).
        candidates, labels: columns of the rows (see `GroupCollator`); default: of pairs.
        meta: what moves the weights for each optimiser step, whose gradient is taken there; needs DeepSpeed.
        meta_held_out: responses of which evaluations tell how far apart they are scored.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter | None,
        agg_func: str = "avg",
        objectives: Sequence[Objective] = (BradleyTerry(),),
        pad_id: int,
        candidates: Sequence[str] = SIDES,
        labels: Sequence[str] = PAIR_LABELS,
        meta: MetaStep | None = None,
        meta_held_out: MetaSet | None = None,
        **kw: Any,
    ):
        self.reads, self.units = all_reads(objectives), all_units(objectives)
        collator = kw.pop("data_collator", None) or GroupCollator(pad_id, candidates, labels, "ref_logps" in self.reads)
        super().__init__(data_collator=collator, **kw)
        self.segmenter, self.agg_func, self.objectives = segmenter, agg_func, objectives
        self.candidates, self.labels_read = candidates, labels
        # In training and not, the names of the objectives' metrics, which every batch must have: they are added up in one
        # reduction.
        self.objective_metrics: dict[bool, tuple[str, ...]] = {}
        # Whether two passes of the trunk are known to differ, which an objective that reads both counts on.
        self.passes_differ = "second_pass" not in self.reads or "hidden" not in self.reads
        self.meta, self.meta_held_out = meta, meta_held_out
        self._collate_samples = GroupCollator(pad_id, (SIDE,), (ENDED,))
        # Of the meta step at hand, on this rank.
        self._of_meta: Sums = {}
        if meta is not None:
            self.add_callback(PutBack(self))

    @classmethod
    @abstractmethod
    def prepare(cls, given: Given) -> Prepared:
        """The rows that the config names, and how they are read. UserError for objectives that read what they do not have."""

    def run(self) -> dict[str, float]:
        """Train, from the start or the checkpoint to go on from, and write the model into the output folder.

        Returns: the evaluation metrics of the model that was written. Mean and std of its scores are stored with it.
        """
        began = time.perf_counter()
        metrics = self.learn()
        self.model.config.mean, self.model.config.std = metrics["eval_score_mean"], metrics["eval_score_std"]
        save_trained(self, self.args.output_dir)
        how = f"trained to step {self.state.global_step}" if self.state.global_step else "fitted"
        log.info("%s: %s, %s", self.args.output_dir, how, in_words(time.perf_counter() - began))
        lines, remarks = self.in_words(metrics, len(self.eval_dataset))
        for line in lines:
            log.info("  %s", line)
        for remark in remarks:
            log.warning("  %s", remark)
        self.session.present("train-rm", [*lines, *remarks], self.accuracy(metrics))
        return metrics

    def accuracy(self, metrics: dict[str, float]) -> tuple[float, int] | None:
        """The accuracy among the evaluation metrics, and of how many pairs it is; of other rows none."""
        return None

    def learn(self) -> dict[str, float]:
        """Train to the end; returns the evaluation metrics of the weights that it ends with."""
        return self.session.run(self)

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        """What the evaluation metrics of so many rows come to, and what is doubtful in them, a line each."""
        return reward_model_lines(metrics, rows), reward_model_remarks(metrics, rows)

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return counted_weights(batch["counted"], batch.get(WEIGHT)).sum()

    def sums(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        groups, objectives = self.groups(model, batch), self.objectives_now()
        own = all_step_sums(objectives, groups)
        # Of a step that is one batch, and in evaluation, they are the batch's own.
        groups = groups._replace(step={name: batch.get(OF_STEP + name, value) for name, value in own.items()})
        losses, found = total_losses(objectives, with_sums(groups) if "parts" in self.reads else groups)
        known = self.objective_metrics.setdefault(self.is_training(), tuple(found))
        if tuple(found) != known:
            before, now = ", ".join(known), ", ".join(found)
            changed = f"the objectives returned the metrics {now} of a batch, and {before} of the one before"
            raise UserError(changed, "let each return the same ones of every batch", one_rank=True)
        weight = groups.weights()
        return {
            "loss": torch.where(weight > 0, losses * weight, 0.0).sum(),
            **self.row_sums(groups),
            **{OF_GROUPS + name: (values.detach() * weight.double()).sum() for name, values in found.items()},
            **{OF_STEP + name: value for name, value in own.items()},
        }

    def is_training(self) -> bool:
        """Whether the model is in training mode: asked of itself, since an engine around it does not know."""
        return stock_model(self.model).training

    def objectives_now(self) -> list[Objective]:
        """The objectives that have a part in what is done now: in evaluation, those that mean something there."""
        return [each for each in self.objectives if self.is_training() or each.in_evaluation]

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """What every batch of the step is told of the whole of it, where an objective reads that, comes with them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.meta is not None and batches:
            self.model_wrapped.train()
            # Past the engine, which takes every backward for one of the loss.
            let_go = partial(let_go_of_gathered, self.deepspeed)
            found = self.meta.move(self.model, partial(self.score, self.model), self.state.global_step, let_go)
            self._of_meta = {OF_META + name: value for name, value in found.items()}
        if {"step_sums", "step_rows"} & self.reads and len(batches) * distributed.world_size() > 1:
            batches = self._told_of_step(batches)
        return batches, count

    def _told_of_step(self, batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The batches of a step with the sums and rows of them all, of all ranks, by forwards without gradient. Collective."""
        total: Sums = {}
        rows: list[dict[str, Tensor]] = []
        self.model_wrapped.train()
        # What is drawn for dropout here is drawn again when the batches are learned from.
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            for batch in batches:
                groups = self.groups(self.model_wrapped, self._prepare_inputs(batch))
                total = add_sums(total, all_step_sums(self.objectives, groups))
                rows.append(all_step_rows(self.objectives, groups))
        found: dict[str, Tensor] = {}
        if total:
            packed = distributed.all_sum(torch.stack(list(total.values())))
            found = {OF_STEP + name: value for name, value in zip(total, packed.unbind(), strict=True)}
        found |= {ROWS_OF_STEP + name: distributed.all_rows(torch.cat([each[name] for each in rows])) for name in rows[0]}
        sizes = [len(batch["counted"]) for batch in batches]
        places = (torch.arange(sum(sizes)) + distributed.rank() * sum(sizes)).split(sizes)
        return [{**batch, **found, PLACES: own} for batch, own in zip(batches, places, strict=True)]

    def groups(self, model: nn.Module, batch: dict[str, Tensor]) -> Groups:
        """What the objectives are given of a batch, by one forward of the model."""
        own = {name: values for name, values in batch.items() if not name.startswith((OF_STEP, ROWS_OF_STEP, PLACES))}
        if "second_pass" in all_reads(self.objectives_now()):
            groups = parted(self._one_pass(model, twice(own, len(own["counted"])))[0])
            self._check_passes(groups)
        else:
            groups, _ = self._one_pass(model, own)
        if all_prototypes(self.objectives):
            groups = groups._replace(prototypes=stock_model(model).prototypes)
        if rows := {name.removeprefix(ROWS_OF_STEP): x for name, x in batch.items() if name.startswith(ROWS_OF_STEP)}:
            groups = groups._replace(rows=rows, places=batch[PLACES])
        return groups

    def _check_passes(self, groups: Groups) -> None:
        """Say so where both passes of the trunk give the same, at the first batch, run as in all of the training."""
        if not self.passes_differ and torch.equal(groups.hidden, groups.second.hidden):
            name = type(stock_model(self.model)).__name__
            log.warning("two passes of %s give the same hidden states in training: dropout has no effect in it", name)
        self.passes_differ = True

    def score(self, model: nn.Module, rows: Sequence[dict]) -> Tensor:
        """(B,) scores of whole responses, which are rows of a `MetaSet`."""
        batch = self._prepare_inputs(self._collate_samples(list(rows)))
        responses = ResponseBatch.of(batch)
        segments = self.segmenter(batch["entropy"], responses.response_mask, responses.response_ids, batch[ENDED].bool())
        found = read_rewards(model, *responses[:3], logprob_rows=0, shared=responses.shared)
        return self._whole_scores(found, responses, segments)[0]

    def row_sums(self, groups: Groups) -> dict[str, Tensor]:
        """Sums over the counted groups that `row_metrics` needs; `pairs` is their number, by weight."""
        return group_sums(groups.scores, groups.segments, groups.lengths, groups.weights(), groups.labels.get(P_CHOSEN))

    def row_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics that do not depend on the objectives."""
        return group_metrics(sums)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        count = sums["pairs"] or 1.0
        own = {name.removeprefix(OF_GROUPS): value / count for name, value in sums.items() if name.startswith(OF_GROUPS)}
        if OF_META + "prompts" in sums:
            own["separation"] = sums[OF_META + "separation"] / (sums[OF_META + "prompts"] or 1.0)
        return {**self.row_metrics(sums), **own}

    def of_all_rows(self) -> dict[str, float]:
        if self.meta_held_out is None:
            return {}
        together = is_deepspeed_zero3_enabled() and distributed.world_size() > 1
        score = partial(self.score, self.model_wrapped)
        return {"separation": mean_separation(self.meta_held_out, score, self.eval_tokens, together)}

    def _after_step(self) -> None:
        self._sums = {**self._sums, **self._of_meta}
        super()._after_step()

    def _averages(self, sums: dict[str, float]) -> dict[str, float]:
        found = super()._averages(sums)
        of_steps = {name.removeprefix(OF_STEP): value for name, value in sums.items() if name.startswith(OF_STEP)}
        loss, metrics = total_step_losses(self.objectives_now(), of_steps)
        return {**found, "loss": found["loss"] + loss, **metrics}

    def lengths(self, rows: Dataset) -> np.ndarray:
        responses = np.stack([list_lengths(rows, f"{candidate}_ids") for candidate in self.candidates], 1)
        return list_lengths(rows, "prompt_ids")[:, None] + responses

    def segments(self, batch: dict[str, Tensor]) -> Segments:
        """Where the responses of a batch are cut."""
        responses = ResponseBatch.of(batch)
        return self.segmenter(batch["entropy"], responses.response_mask, responses.response_ids)

    def _one_pass(self, model: nn.Module, batch: dict[str, Tensor], **also: Any) -> tuple[Groups, RewardReading]:
        """also: what is read beside what objectives of any groups read, as `read_rewards` is told."""
        responses, size, many = ResponseBatch.of(batch), len(batch["counted"]), len(self.candidates)
        mask, width = responses.response_mask, responses.response_mask.shape[1]
        segments = self.segments(batch)
        # Of how many candidates of each group log-probabilities are read.
        read = many if "logps" in self.reads else int("first_logps" in self.reads)
        at = None
        if "hidden" in self.reads:
            last = (segments.ends * torch.arange(1, width + 1, device=mask.device)).amax(1) - 1
            at = responses.response_start.to(last.device) + last.clamp(min=0)
        found = read_rewards(model, *responses[:3], width, read * size, at, responses.shared, **also)
        (scores, token_scores), outputs = self._whole_scores(found, responses, segments), None
        if found.outputs is not None:
            others = response_slots(found.outputs[..., 1:], responses.response_start, width)
            outputs = torch.cat([scores[:, None], aggregate_outputs(others, segments, self.agg_func)], -1)

        def by_group(values: Tensor) -> Tensor:
            """(m G, ...), all first candidates before all second ones -> (G, m, ...)."""
            return values.view(-1, size, *values.shape[1:]).transpose(0, 1)

        groups = Groups(
            by_group(scores),
            counted=batch["counted"],
            weight=batch.get(WEIGHT),
            labels={name: batch[name] for name in self.labels_read},
            lengths=by_group(mask.sum(1)),
            token_scores=token_scores,
            segments=segments,
            logps=by_group(found.logprobs.sum(1)) if read else None,
            ref_logps=by_group(batch["ref_logps"]) if "ref_logps" in batch else None,
            hidden=by_group(found.hidden) if at is not None else None,
            outputs=None if outputs is None else by_group(outputs),
            overlap=stock_model(model).score.overlap if "parts" in self.reads else None,
        )
        return groups, found

    def _whole_scores(self, found: RewardReading, responses: ResponseBatch, segments: Segments) -> tuple[Tensor, Tensor]:
        """(B,) scores of whole responses, and (B, T) of their tokens."""
        token_scores = response_slots(found.scores, responses.response_start, responses.response_mask.shape[1])
        return aggregate(segment_scores(token_scores, segments), segments.counts, self.agg_func), token_scores


class PutBack(TrainerCallback):
    """Lets the weights that a meta step has moved be put back before each step of the optimiser."""

    def __init__(self, trainer: GroupTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        before_step(self.trainer.deepspeed, self.trainer.meta.back)


def with_sums(groups: Groups) -> Groups:
    """Groups whose scores are the sums of all outputs."""
    second = None if groups.second is None else with_sums(groups.second)
    return groups._replace(scores=groups.outputs.sum(-1), second=second)
