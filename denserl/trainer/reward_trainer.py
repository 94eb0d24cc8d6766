"""The reward-model trainer: scores and log-probabilities of groups of responses, handed to objectives, and their metrics.

Optimiser steps, averages, evaluation and logs are those of every supervised training (denserl/trainer/supervised_trainer.py).
"""

import gc
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl.data.batching import ResponseBatch, pad_responses, pad_rows, response_slots
from denserl.data.order import shuffled
from denserl.data.preferences import flip_labels, load_preferences
from denserl.data.reference_cache import SIDES
from denserl.errors import UserError, require
from denserl.models.adapters import prepare_model
from denserl.models.heads import Head
from denserl.models.loading import (
    attach_lm_head,
    empty_reward_model,
    freeze_trunk,
    load_tokenizer,
    match_embeddings,
    new_reward_model,
)
from denserl.models.measured import check_steady
from denserl.models.reward_settings import sft_settings, store_settings
from denserl.models.scoring import read_rewards
from denserl.rewards.aggregation import aggregate
from denserl.rewards.config import ObjectiveConfig
from denserl.rewards.objectives import (
    BradleyTerry,
    Groups,
    Objective,
    PositiveRegularizer,
    TextRegularizer,
    all_labels,
    all_reads,
    named_objective,
    total_losses,
)
from denserl.rewards.pair_metrics import group_metrics, group_sums
from denserl.rewards.pairs import prepare_pairs, segment_lengths
from denserl.rewards.sources.reading import PEAK, cut_settings, new_segmenter, sft_fingerprint
from denserl.segmentation import Segmenter, segment_scores
from denserl.streams import Purpose, stream
from denserl.trainer.reference import in_shares
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.start import checkpoint_to_resume, run_settings, start_run, template_of_run, warn_of_shortage
from denserl.trainer.summaries import in_words, reward_model_lines, reward_model_remarks
from denserl.trainer.supervised import Session, check_steps, save_trained, training_arguments
from denserl.trainer.supervised_trainer import SupervisedTrainer

log = logging.getLogger(__name__)

# Before the names of objectives' metrics among the sums, as checkpoints hold them.
OF_GROUPS = "of_pairs/"


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


class RewardTrainer(SupervisedTrainer):
    """Trains `AutoModelForSequenceClassification(num_labels=1)` on preferences (arXiv 2501.02790, section 3.2).

    Args beyond those of `SupervisedTrainer`:
        segmenter: cuts the responses. agg_func: how segment scores make a sequence score.
        objectives: what it is trained for. Where one reads log-probabilities, the model has a language-model head `lm_head`
            (`attach_lm_head`); where one reads the reference model's, the rows hold them (`add_entropies`).
        candidates, labels: columns of the rows (see `GroupCollator`); default: of pairs.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        agg_func: str = "avg",
        objectives: Sequence[Objective] = (BradleyTerry(),),
        pad_id: int,
        candidates: Sequence[str] = SIDES,
        labels: Sequence[str] = ("margin",),
        **kw: Any,
    ):
        self.reads = all_reads(objectives)
        collator = GroupCollator(pad_id, candidates, labels, with_reference="ref_logps" in self.reads)
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
        segmenter = new_segmenter(config.reward_level, config.entropy_threshold, config.segmenter, tokenizer, config)
        objectives = [*make_objectives(config), *objectives]
        labels = all_labels(objectives)
        # Whether there is one of this family is known before hours of entropies.
        empty_reward_model(config.model, dtype, **config.model_source())
        pairs, held_out = pairs_of(config, tokenizer, device, dtype, labels)
        if segmenter.level != "bandit" and segmenter.name == PEAK:
            log.info("%s", segment_lengths(pairs, segmenter.threshold))
        args = training_arguments(config, device, dtype)
        # What the reference model says follows from weights and ids.
        ids = pairs.select_columns([name for name in pairs.column_names if name.endswith("_ids") or name in labels])
        settings = run_settings(config, dtype, checkpoint, tokenizer, models=["model"], data=ids)
        model = make_model(config, tokenizer, dtype, segmenter, objectives)
        model = prepare_model(model, config, "SEQ_CLS", device.type)
        warn_of_shortage(config, dtype, device, [model])
        return cls(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=held_out,
            processing_class=tokenizer,
            segmenter=segmenter,
            agg_func=config.agg_func,
            objectives=objectives,
            labels=labels,
            eval_tokens=config.score_tokens,
            pad_id=tokenizer.pad_token_id,
            session=Session(config, settings, checkpoint),
        )

    def run(self) -> dict[str, float]:
        """Train, from the start or the checkpoint to go on from, and write the model into the output folder.

        Returns: the evaluation metrics of the model that was written. Mean and std of its scores are stored with it.
        """
        began = time.perf_counter()
        metrics = self.session.run(self)
        self.model.config.mean, self.model.config.std = metrics["eval_score_mean"], metrics["eval_score_std"]
        save_trained(self, self.args.output_dir)
        steps, pairs = self.state.global_step, len(self.eval_dataset)
        log.info("%s: trained to step %d, %s", self.args.output_dir, steps, in_words(time.perf_counter() - began))
        for line in reward_model_lines(metrics, pairs):
            log.info("  %s", line)
        for remark in reward_model_remarks(metrics, pairs):
            log.warning("  %s", remark)
        return metrics

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
            **group_sums(groups.scores, groups.segments, groups.lengths, groups.counted),
            **{OF_GROUPS + name: (values.detach() * counted).sum() for name, values in found.items()},
        }

    def groups(self, model: nn.Module, batch: dict[str, Tensor]) -> Groups:
        """What the objectives are given of a batch, by one forward of the model, or two."""
        groups = self._one_pass(model, batch)
        return groups._replace(second=self._one_pass(model, batch)) if "second_pass" in self.reads else groups

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        count = max(sums["pairs"], 1.0)
        own = {name.removeprefix(OF_GROUPS): value / count for name, value in sums.items() if name.startswith(OF_GROUPS)}
        return {**group_metrics(sums), **own}

    def lengths(self, rows: Dataset) -> list[int]:
        columns = (rows["prompt_ids"], *(rows[f"{candidate}_ids"] for candidate in self.candidates))
        many = len(self.candidates)
        return [many * (len(prompt) + max(map(len, each))) for prompt, *each in zip(*columns, strict=True)]

    def _one_pass(self, model: nn.Module, batch: dict[str, Tensor]) -> Groups:
        responses, size, many = ResponseBatch.of(batch), len(batch["counted"]), len(self.candidates)
        mask, width = responses.response_mask, responses.response_mask.shape[1]
        segments = self.segmenter(batch["entropy"], mask, responses.response_ids)
        # Of how many candidates of each group log-probabilities are read.
        read = many if "logps" in self.reads else int("first_logps" in self.reads)
        at = None
        if "hidden" in self.reads:
            last = (segments.ends * torch.arange(1, width + 1, device=mask.device)).amax(1) - 1
            at = responses.response_start.to(last.device) + last.clamp(min=0)
        found = read_rewards(model, *responses[:3], width, read * size, at, responses.shared)
        token_scores = response_slots(found.scores, responses.response_start, width)
        scores = aggregate(segment_scores(token_scores, segments), segments.counts, self.agg_func)

        def by_group(values: Tensor) -> Tensor:
            """(m G, ...), all first candidates before all second ones -> (G, m, ...)."""
            return values.view(-1, size, *values.shape[1:]).transpose(0, 1)

        return Groups(
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


def make_objectives(config: ObjectiveConfig) -> list[Objective]:
    """What the options train for; the weights of the Bradley-Terry loss and of the text-generation term add up to one."""
    coef = config.reg_coef if config.reg_type != "none" else 0.0
    objectives: list[Objective] = [
        BradleyTerry(1 - coef, config.use_margin, config.label_smoothing, config.centring, config.soft_label_scale)
    ]
    if config.pos_reg:
        objectives.append(PositiveRegularizer(config.pos_reg))
    if coef and config.reg_type != "none":
        objectives.append(TextRegularizer(coef, config.reg_type, config.reg_beta, config.reg_logp))
    return objectives + [named_objective(words) for words in config.objective or []]


def make_model(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    segmenter: Segmenter,
    objectives: Sequence[Objective],
) -> PreTrainedModel:
    """The SFT model's backbone under a fresh reward head, with that model's own head beside it where an objective reads it."""
    head = Head(config.head_type, config.head_layers, config.head_width, config.head_dropout)
    model = new_reward_model(config.model, dtype, config.seed, head, **config.model_source())
    check_steady(model)
    match_embeddings(model, tokenizer)
    if all_reads(objectives) & {"first_logps", "logps"}:
        attach_lm_head(model, config.model, dtype, **config.model_source())
    if config.freeze_trunk:
        freeze_trunk(model)
    store_settings(
        model.config,
        **sft_settings(config.model, sft_fingerprint(config.model, dtype), config.output_dir),
        entropy_threshold=segmenter.threshold,
        **cut_settings(segmenter),
        agg_func=config.agg_func,
        read_at="end_of_turn",
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )
    return model


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
