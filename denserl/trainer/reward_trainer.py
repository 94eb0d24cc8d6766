"""The reward-model trainer: scores and log-probabilities of groups of responses, handed to objectives, and their metrics.

Optimiser steps, averages, evaluation and logs are those of every supervised training (denserl/trainer/supervised_trainer.py).
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl.data.batching import ResponseBatch, response_slots
from denserl.data.reference_cache import SIDES
from denserl.errors import UserError, require
from denserl.models.adapters import prepare_model
from denserl.models.loading import (
    empty_reward_model,
    load_tokenizer,
)
from denserl.models.measured import stock_model
from denserl.models.scoring import RewardReading, read_rewards
from denserl.rewards.aggregation import aggregate
from denserl.rewards.objectives import (
    BradleyTerry,
    Groups,
    Objective,
    StepLabels,
    Steps,
    all_labels,
    all_reads,
    all_units,
    total_losses,
)
from denserl.rewards.pair_metrics import group_metrics, group_sums
from denserl.rewards.pairs import segment_lengths
from denserl.rewards.sources.reading import PEAK, cut_settings, new_segmenter
from denserl.rewards.step_metrics import step_metrics, step_sums
from denserl.segmentation import Segmenter, Segments, segment_scores, segments_from_starts
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_making import head_of, make_model, make_objectives
from denserl.trainer.reward_pairs import GroupCollator, pairs_of
from denserl.trainer.reward_steps import StepCollator, step_settings, steps_of
from denserl.trainer.start import checkpoint_to_resume, run_settings, start_run, template_of_run, warn_of_shortage
from denserl.trainer.summaries import in_words, reward_model_lines, reward_model_remarks, step_model_lines, step_model_remarks
from denserl.trainer.supervised import Session, check_steps, save_trained, training_arguments
from denserl.trainer.supervised_trainer import SupervisedTrainer

log = logging.getLogger(__name__)

# Before the names of objectives' metrics among the sums, as checkpoints hold them.
OF_GROUPS = "of_pairs/"


class Prepared(NamedTuple):
    """What a training learns from, and how its model reads that."""

    train: Dataset
    held_out: Dataset
    contents: Dataset  # what of the rows does not follow from weights and ids
    settings: dict[str, Any]  # stored with the model
    reads: dict[str, Any]  # arguments of the trainer


class RewardTrainer(SupervisedTrainer):
    """Trains `AutoModelForSequenceClassification(num_labels=1)` on preferences (arXiv 2501.02790, section 3.2).

    Args beyond those of `SupervisedTrainer`:
        segmenter: cuts the responses, unless rows say where. agg_func: how segment scores make a sequence score.
        objectives: what it is trained for. Where one reads log-probabilities, the model has a language-model head `lm_head`
            (`attach_lm_head`); where one reads the reference model's, the rows hold them (`add_entropies`).
        candidates, labels: columns of the rows (see `GroupCollator`); default: of pairs.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter | None,
        agg_func: str = "avg",
        objectives: Sequence[Objective] = (BradleyTerry(),),
        pad_id: int,
        candidates: Sequence[str] = SIDES,
        labels: Sequence[str] = ("margin",),
        **kw: Any,
    ):
        self.reads, self.units = all_reads(objectives), all_units(objectives)
        collator = kw.pop("data_collator", None) or GroupCollator(pad_id, candidates, labels, "ref_logps" in self.reads)
        super().__init__(data_collator=collator, **kw)
        self.segmenter, self.agg_func, self.objectives = segmenter, agg_func, objectives
        self.candidates, self.labels_read = candidates, labels
        # The names of the objectives' metrics, which every batch must have: they are added up in one reduction.
        self.objective_metrics: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: RewardConfig, objectives: Sequence[Objective] = ()) -> "RewardTrainer":
        """Everything that the config names, loaded; see `run`. UserError for what cannot be had, or does not go together.

        objectives: more of them, beside those that the config names.
        """
        device, dtype = start_run(config)
        check_steps(config)
        checkpoint = checkpoint_to_resume(config, config.output_dir)
        tokenizer = load_tokenizer(config.model, template_of_run(config, checkpoint), **config.tokenizer_source())
        objectives = [*make_objectives(config), *objectives]
        # Whether they can be had is known before hours of entropies.
        head = head_of(config, tokenizer, objectives)
        empty_reward_model(config.model, dtype, **config.model_source())
        kind = cls if config.input == "pairs" else StepTrainer
        made = kind.prepare(config, tokenizer, device, dtype, objectives)
        args = training_arguments(config, device, dtype)
        settings = run_settings(config, dtype, checkpoint, tokenizer, models=["model"], data=made.contents)
        model = make_model(config, tokenizer, dtype, head, objectives, made.settings)
        model = prepare_model(model, config, "SEQ_CLS", device.type)
        warn_of_shortage(config, dtype, device, [model])
        return kind(
            model=model,
            args=args,
            train_dataset=made.train,
            eval_dataset=made.held_out,
            processing_class=tokenizer,
            objectives=objectives,
            eval_tokens=config.score_tokens,
            pad_id=tokenizer.pad_token_id,
            session=Session(config, settings, checkpoint),
            **made.reads,
        )

    @classmethod
    def prepare(
        cls,
        config: RewardConfig,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        dtype: str,
        objectives: Sequence[Objective],
    ) -> Prepared:
        """The rows that the config names, and how they are read."""
        of_steps = sorted({"steps", "label_logp"} & all_reads(objectives))
        require(not of_steps, f"an objective reads {', '.join(of_steps)}, which pairs do not have", "let `input` be steps")
        segmenter = new_segmenter(config.reward_level, config.entropy_threshold, config.segmenter, tokenizer, config)
        labels = all_labels(objectives)
        pairs, held_out = pairs_of(config, tokenizer, device, dtype, labels)
        if segmenter.level != "bandit" and segmenter.name == PEAK:
            log.info("%s", segment_lengths(pairs, segmenter.threshold))
        contents = pairs.select_columns([name for name in pairs.column_names if name.endswith("_ids") or name in labels])
        settings = {"entropy_threshold": segmenter.threshold, **cut_settings(segmenter), "agg_func": config.agg_func}
        settings["read_at"] = "end_of_turn"
        reads = {"segmenter": segmenter, "agg_func": config.agg_func, "labels": labels}
        return Prepared(pairs, held_out, contents, settings, reads)

    def run(self) -> dict[str, float]:
        """Train, from the start or the checkpoint to go on from, and write the model into the output folder.

        Returns: the evaluation metrics of the model that was written. Mean and std of its scores are stored with it.
        """
        began = time.perf_counter()
        metrics = self.session.run(self)
        self.model.config.mean, self.model.config.std = metrics["eval_score_mean"], metrics["eval_score_std"]
        save_trained(self, self.args.output_dir)
        steps, took = self.state.global_step, in_words(time.perf_counter() - began)
        log.info("%s: trained to step %d, %s", self.args.output_dir, steps, took)
        lines, remarks = self.in_words(metrics, len(self.eval_dataset))
        for line in lines:
            log.info("  %s", line)
        for remark in remarks:
            log.warning("  %s", remark)
        return metrics

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        """What the evaluation metrics of so many rows come to, and what is doubtful in them, a line each."""
        return reward_model_lines(metrics, rows), reward_model_remarks(metrics, rows)

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["counted"].sum()

    def sums(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        groups = self.groups(model, batch)
        losses, found = total_losses(self.objectives, groups)
        self.objective_metrics = self.objective_metrics or tuple(found)
        if tuple(found) != self.objective_metrics:
            before, now = ", ".join(self.objective_metrics), ", ".join(found)
            changed = f"the objectives returned the metrics {now} of a batch, and {before} of the one before"
            raise UserError(changed, "let each return the same ones of every batch", one_rank=True)
        counted = groups.counted.double()
        return {
            "loss": torch.where(groups.counted, losses, 0.0).sum(),
            **self.row_sums(groups),
            **{OF_GROUPS + name: (values.detach() * counted).sum() for name, values in found.items()},
        }

    def groups(self, model: nn.Module, batch: dict[str, Tensor]) -> Groups:
        """What the objectives are given of a batch, by one forward of the model, or two."""
        groups, _ = self._one_pass(model, batch)
        return groups._replace(second=self._one_pass(model, batch)[0]) if "second_pass" in self.reads else groups

    def row_sums(self, groups: Groups) -> dict[str, Tensor]:
        """Sums over the counted groups that `row_metrics` needs; `pairs` is their number."""
        return group_sums(groups.scores, groups.segments, groups.lengths, groups.counted)

    def row_metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics that do not depend on the objectives."""
        return group_metrics(sums)

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        count = max(sums["pairs"], 1.0)
        own = {name.removeprefix(OF_GROUPS): value / count for name, value in sums.items() if name.startswith(OF_GROUPS)}
        return {**self.row_metrics(sums), **own}

    def lengths(self, rows: Dataset) -> list[int]:
        columns = (rows["prompt_ids"], *(rows[f"{candidate}_ids"] for candidate in self.candidates))
        many = len(self.candidates)
        return [many * (len(prompt) + max(map(len, each))) for prompt, *each in zip(*columns, strict=True)]

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
        token_scores = response_slots(found.scores, responses.response_start, width)
        scores = aggregate(segment_scores(token_scores, segments), segments.counts, self.agg_func)

        def by_group(values: Tensor) -> Tensor:
            """(m G, ...), all first candidates before all second ones -> (G, m, ...)."""
            return values.view(-1, size, *values.shape[1:]).transpose(0, 1)

        groups = Groups(
            by_group(scores),
            counted=batch["counted"],
            labels={name: batch[name] for name in self.labels_read},
            lengths=by_group(mask.sum(1)),
            token_scores=token_scores,
            segments=segments,
            logps=by_group(found.logprobs.sum(1)) if read else None,
            ref_logps=by_group(batch["ref_logps"]) if "ref_logps" in batch else None,
            hidden=by_group(found.hidden) if at is not None else None,
        )
        return groups, found


class StepTrainer(RewardTrainer):
    """Trains the same model on solutions whose steps, or outcomes, are labelled; a step's score is the logit that it is right.

    A group is one solution. Rows as `tokenize_steps` makes them; other args as those of `RewardTrainer`.
    """

    def __init__(self, *, objectives: Sequence[Objective] = (StepLabels(),), pad_id: int, **kw: Any):
        own: dict[str, Any] = {"data_collator": StepCollator(pad_id), "candidates": ("response",), "labels": ()}
        super().__init__(segmenter=None, agg_func="min", objectives=objectives, pad_id=pad_id, **own, **kw)

    @classmethod
    def prepare(
        cls,
        config: RewardConfig,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        dtype: str,
        objectives: Sequence[Objective],
    ) -> Prepared:
        of_pairs = sorted({"ref_logps"} & all_reads(objectives) | {*all_labels(objectives)} - {"margin"})
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
