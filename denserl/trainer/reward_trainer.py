"""Reward models trained from a config, and the trainer of those that learn preferences."""

import logging
from collections.abc import Sequence

from denserl.errors import require
from denserl.models.adapters import prepare_model
from denserl.models.loading import empty_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.objectives import Objective, all_labels, all_reads
from denserl.rewards.pairs import segment_lengths
from denserl.rewards.sources.reading import PEAK, new_segmenter
from denserl.trainer.gate_start import gate_start
from denserl.trainer.group_trainer import Given, GroupTrainer, Prepared, segment_settings
from denserl.trainer.meta_step import load_meta, meta_of
from denserl.trainer.pair_trainer import PairTrainer
from denserl.trainer.rating_trainer import RatingTrainer
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_making import check_trunk, head_of, make_model, make_objectives
from denserl.trainer.reward_pairs import asked_model, contents_of, pairs_of, told_pairs
from denserl.trainer.start import checkpoint_to_resume, run_settings, start_run, template_of_run, warn_of_shortage
from denserl.trainer.step_trainer import StepTrainer
from denserl.trainer.supervised import Session, check_steps, training_arguments

log = logging.getLogger(__name__)


class RewardTrainer(GroupTrainer):
    """Trains `AutoModelForSequenceClassification(num_labels=1)` on preferences (arXiv 2501.02790, section 3.2)."""

    @classmethod
    def from_config(cls, config: RewardConfig, objectives: Sequence[Objective] = ()) -> GroupTrainer:
        """Everything that the config names, loaded; see `run`. UserError for what cannot be had, or does not go together.

        objectives: more of them, beside those that the config names.
        """
        several = {"unlabelled_data": "self_training.train_in_rounds", "members": "members.train_members"}
        for name, call in several.items():
            require(not getattr(config, name), f"`{name}` asks for several trainings", f"call {call}")
        device, dtype = start_run(config)
        check_steps(config)
        checkpoint = checkpoint_to_resume(config, config.output_dir)
        tokenizer = load_tokenizer(config.model, template_of_run(config, checkpoint), **config.tokenizer_source())
        check_trunk(config)
        objectives = [*make_objectives(config), *objectives]
        # Whether they can be had is known before hours of entropies.
        head = head_of(config, tokenizer, objectives)
        empty_reward_model(config.model, dtype, **config.model_source())
        sampled = load_meta(config, tokenizer)
        kind = KINDS[config.input]
        made = kind.prepare(Given(config, tokenizer, device, dtype, objectives))
        meta, meta_rows = meta_of(config, sampled, tokenizer, made.reads.get("segmenter"), device, dtype)
        args = training_arguments(config, device, dtype)
        models = ["model", "start_from", "augment_filter"]
        settings = run_settings(config, dtype, checkpoint, tokenizer, models=models, data=made.contents, **meta_rows)
        model = make_model(config, tokenizer, dtype, head, objectives, made.settings)
        if head.kind == "gated" and checkpoint is None and not config.start_from:
            gate_start(config, tokenizer, device, dtype, head, made.train, made.reads["segmenter"]).apply(model.score)
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
            **meta,
        )

    @classmethod
    def prepare(cls, given: Given) -> Prepared:
        config, tokenizer, device, dtype, objectives = given
        of_steps = sorted({"steps", "label_logp"} & all_reads(objectives))
        require(not of_steps, f"an objective reads {', '.join(of_steps)}, which pairs do not have", "let `input` be steps")
        segmenter = new_segmenter(config.reward_level, config.entropy_threshold, config.segmenter, tokenizer, config)
        labels = all_labels(objectives)
        sft_model = asked_model(config, segmenter, all_reads(objectives))
        pairs, held_out = pairs_of(config, tokenizer, device, dtype, labels, sft_model)
        if segmenter.level != "bandit" and segmenter.name == PEAK:
            log.info("%s", segment_lengths(pairs, segmenter.threshold))
        settings = segment_settings(config, segmenter)
        reads = {"segmenter": segmenter, "agg_func": config.agg_func, "labels": labels}
        return Prepared(pairs, held_out, contents_of(pairs, labels), settings, reads)

    def in_words(self, metrics: dict[str, float], rows: int) -> tuple[list[str], list[str]]:
        return super().in_words(metrics, told_pairs(self.eval_dataset))

    def accuracy(self, metrics: dict[str, float]) -> tuple[float, int] | None:
        return metrics["eval_accuracy"], told_pairs(self.eval_dataset)


# The trainer of each kind of rows, by `RewardConfig.input`.
KINDS: dict[str, type[GroupTrainer]] = {
    "pairs": RewardTrainer,
    "ratings": RatingTrainer,
    "pair": PairTrainer,
    "steps": StepTrainer,
    "response": StepTrainer,
}
