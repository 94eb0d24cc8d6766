"""A supervised training made from its config: arguments of transformers.Trainer, the run to its end, what is written."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from denserl import distributed
from denserl.errors import require
from denserl.models.adapters import save_adapters
from denserl.models.card import Making
from denserl.models.four_bit import config_as_stored
from denserl.models.gathering import whole_state
from denserl.models.measured import stock_model
from denserl.models.merging import merge_trained
from denserl.models.prototypes import PROTOTYPES
from denserl.models.publishing import publish
from denserl.models.saving import is_saved_otherwise, save_model
from denserl.trainer.checkpoint import read_state
from denserl.trainer.config import SupervisedConfig
from denserl.trainer.engine import deepspeed_config, whole_parameters
from denserl.trainer.run_folder import OutputFolder, run_training
from denserl.trainer.supervised_trainer import SupervisedTrainer
from denserl.trainer.tracker_runs import chosen_trackers
from denserl.trainer.trackers import LogCallback, ProgressLine


@dataclass(frozen=True)
class Session:
    """What a training goes by beside its trainer: its config, what checkpoints remember, and the one it goes on from."""

    config: SupervisedConfig
    settings: dict
    checkpoint: Path | None

    def run(self, trainer: SupervisedTrainer) -> dict[str, float]:
        """Train from the start or from the checkpoint to the end (see `run_training`).

        Returns: the evaluation metrics of the weights that it ends with, computed now if they were not; none without held-out
            rows.
        """
        config, folder = self.config, self._folder(trainer)
        trainer.add_callback(ProgressLine)
        # Read now: the checkpoint may be dropped on the way.
        then = self.settings if self.checkpoint is None else read_state(self.checkpoint)["settings"]
        same_rows = all(then[name] == self.settings[name] for name in ("eval_data", "eval_split"))
        limits = (config.max_grad_norm, config.max_skipped_steps, config.save_minutes)
        with folder.logs:
            run_training(trainer, folder, self.checkpoint, *limits)
            kept = folder.best(trainer.state) if folder.keep_best else folder.checkpoint(trainer.state.global_step)
            for row in trainer.state.log_history[::-1]:
                if same_rows and "eval_loss" in row and folder.checkpoint(row["step"]) == kept:
                    return row
            return trainer.evaluate() if trainer.eval_dataset is not None else {}

    def run_at_once(self, trainer: SupervisedTrainer, fit: Callable[[], None]) -> dict[str, float]:
        """The same of what is learned without optimiser steps: `fit` changes the weights, and they are evaluated."""
        logs = self._folder(trainer).logs
        trainer.add_callback(logs)
        with logs:
            trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
            fit()
            metrics = trainer.evaluate()
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        return metrics

    def present(
        self, command: str, figures: Sequence[str], accuracy: tuple[float, int] | None = None, role: str | None = None
    ) -> None:
        """Write the card of the model that was saved, and push it where that is asked for (`publishing.publish`)."""
        making = Making(command, self.config, figures, accuracy, self.settings["precision"])
        publish(self.config.output_dir, making, role)

    def _folder(self, trainer: SupervisedTrainer) -> OutputFolder:
        """The output folder of a trainer, which shows no progress of the library's own."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        config, path = self.config, Path(self.config.output_dir)
        logs = LogCallback(path, chosen_trackers(config.report_to), dataclasses.asdict(config))
        return OutputFolder(path, self.settings, config.save_total_limit, config.keep == "best", logs)


def training_arguments(
    config: SupervisedConfig, device: torch.device, dtype: str, steps: int | None = None
) -> TrainingArguments:
    """The config (see `check_steps`) as transformers.TrainingArguments, DeepSpeed included.

    steps: how many are taken, where passes over the data do not say it.
    """
    accumulation = config.batch_size // (config.micro_batch_size * distributed.world_size())
    evaluates, saves = config.eval_steps > 0, config.save_steps > 0
    engine = deepspeed_config(config, dtype, config.micro_batch_size, accumulation)
    schedule: dict[str, Any] = {"lr_scheduler_type": config.lr_schedule}
    if config.lr_schedule == "cosine":
        schedule = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": config.min_lr_ratio}}
    return TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        max_steps=steps or -1,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.lr,
        **schedule,
        warmup_steps=config.warmup_ratio,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        weight_decay=config.weight_decay,
        max_grad_norm=engine["gradient_clipping"],
        optim="adamw_torch_fused",
        bf16=dtype == "bf16",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if saves else "no",
        save_steps=config.save_steps or 1,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps or None,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        deepspeed=engine,
    )


def check_steps(config: SupervisedConfig) -> None:
    """UserError for batch sizes that do not divide, or for keeping the best with checkpoints that are not evaluated."""
    world = distributed.world_size()
    per_forward = config.micro_batch_size * world
    require(
        config.batch_size % per_forward == 0,
        f"`batch_size` {config.batch_size} is no multiple of `micro_batch_size` {config.micro_batch_size} x {world} ranks",
        f"use a multiple of {per_forward}",
    )
    require(
        config.keep == "last" or (config.save_steps and config.eval_steps and not config.save_steps % config.eval_steps),
        f"`keep` best with `save_steps` {config.save_steps}, `eval_steps` {config.eval_steps}",
        "let `save_steps` be a multiple of `eval_steps`, both above 0",
    )


def save_trained(trainer: SupervisedTrainer, output_dir: str) -> None:
    """Write the trained model (`save_model`) and tokenizer.

    Adapters are merged (`merge_trained`), and kept in `adapter/` with what `denserl merge` needs.
    """
    stock = stock_model(trainer.model)
    if trainer.args.should_save:
        trainer.processing_class.save_pretrained(output_dir)
    if not hasattr(trainer.model, "merge_and_unload"):
        if is_saved_otherwise(stock):
            state = whole_state(stock)
            if trainer.args.should_save:
                save_model(stock, output_dir, state)
        else:
            trainer.save_model(output_dir)
    else:
        for beside in ("lm_head", PROTOTYPES):
            if hasattr(stock, "score") and hasattr(stock, beside):
                # It served an objective; where embeddings have grown, it would be saved with the adapters.
                delattr(stock, beside)
        with whole_parameters(trainer.model):
            if trainer.args.should_save:
                adapter = Path(output_dir) / "adapter"
                save_adapters(trainer.model, adapter)
                trainer.processing_class.save_pretrained(str(adapter))
                config_as_stored(stock).save_pretrained(str(adapter))
                save_model(merge_trained(trainer.model, adapter), output_dir)
    # A launcher ends all ranks when one fails: none may leave before everything is written.
    distributed.barrier()
