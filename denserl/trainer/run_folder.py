"""A supervised training from start or checkpoint to its end: checkpoints, skipped batches, stop requests, the metrics file.

The training itself is in denserl/trainer/supervised_trainer.py.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from denserl import distributed
from denserl.errors import Stopped, UserError
from denserl.trainer.checkpoint import STATE, Entries, aside_folder, commit, damage, entries_of, read_state, write_or_say_full
from denserl.trainer.descriptions import describe
from denserl.trainer.engine import clip_in_step
from denserl.trainer.stopping import SaveClock, StopRequest
from denserl.trainer.supervised_trainer import SupervisedTrainer
from denserl.trainer.trackers import LogCallback, not_finite, write_batch

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer


class OutputFolder:
    """A run's checkpoints `step-<number>`, its metrics file, and the batches of optimiser steps that were skipped.

    Args:
        settings: kept with every checkpoint, to be compared when a run is resumed.
        keep: newest checkpoints to keep. keep_best: also keep the one with the lowest `eval_loss`.
        logs: where metrics go; default: into the folder's metrics file.
    """

    def __init__(self, path: Path, settings: dict, keep: int, keep_best: bool = False, logs: LogCallback | None = None):
        self.path, self.checkpoints, self.skipped = path, path / "checkpoints", path / "skipped"
        self.settings, self.keep, self.keep_best = settings, keep, keep_best
        self.logs = logs or LogCallback(path)

    def save(self, trainer: SupervisedTrainer) -> None:
        """Write a checkpoint of the optimiser step that was just taken, complete or not at all."""

        def write(aside: Path) -> Entries:
            trainer.write_checkpoint(aside)
            if distributed.rank() == 0:
                describe(aside, trainer.model, trainer.processing_class)
                state = {"settings": self.settings, "files": {"metrics": self.logs.bytes_written}, **trainer.progress()}
                (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
            return entries_of(aside, *filter(None, [trainer.deepspeed]))

        target = self.checkpoint(trainer.state.global_step)
        aside = aside_folder(self.checkpoints, target.name)
        written = write_or_say_full(aside, write)
        best = self.best(trainer.state) if self.keep_best else None
        commit(aside, target, self.keep, best.name if best is not None else None, written)

    def restore(self, trainer: SupervisedTrainer, checkpoint: Path) -> None:
        """Take metrics file and sums back to where they were when the checkpoint was written."""
        state = read_state(checkpoint)
        self.logs.size = state["files"]["metrics"]
        trainer.restore(state)

    def best(self, state: TrainerState) -> Path | None:
        """The checkpoint with the lowest `eval_loss`, among those that are there and the one of the step just taken."""
        losses = {row["step"]: row["eval_loss"] for row in state.log_history if math.isfinite(row.get("eval_loss", math.nan))}
        steps = [step for step in losses if step == state.global_step or self.checkpoint(step).is_dir()]
        return self.checkpoint(min(steps, key=losses.get)) if steps else None

    def write_skipped(self, trainer: SupervisedTrainer, rows: list[dict]) -> None:
        """Write this rank's rows of an optimiser step that was not applied, with the text of their token ids."""
        decode = trainer.processing_class.decode
        texts = [{key.removesuffix("_ids"): decode(ids) for key, ids in row.items() if key.endswith("_ids")} for row in rows]
        rows = [{**text, **row} for text, row in zip(texts, rows, strict=True)]
        write_batch(self.skipped, f"step-{trainer.state.global_step + 1:06d}", rows)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoints / f"step-{step:06d}"


def run_training(
    trainer: SupervisedTrainer,
    folder: OutputFolder,
    checkpoint: Path | None,
    max_grad_norm: float,
    max_skipped_steps: int,
    save_minutes: float | None = None,
) -> None:
    """Train from the start or from a checkpoint to the end, then load the best weights if asked for.

    save_minutes: see `SaveClock`.

    Raises:
        Stopped: SIGTERM or SIGINT asked for it; the step was finished and saved.
        UserError: too many updates in a row were not finite; a checkpoint holds the weights from before.
    """
    trainer.folder = folder
    trainer.add_callback(OwnIntervals)
    trainer.add_callback(folder.logs)
    if not trainer.args.max_grad_norm:
        trainer.add_callback(ClipInStep(max_grad_norm))
    if checkpoint is not None:
        folder.restore(trainer, checkpoint)
    with StopRequest() as stop:
        trainer.add_callback(SaveOrStop(stop, SaveClock(save_minutes), trainer, max_skipped_steps))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step, last = trainer.state.global_step, trainer.state.max_steps
    if trainer.skipped_in_a_row >= max_skipped_steps:
        raise not_finite(trainer.skipped_in_a_row, folder.skipped, folder.checkpoint(step), "`lr`")
    if step < last:
        raise Stopped(f"stopped after step {step} of {last}; the checkpoint in {folder.checkpoints} is complete")
    if folder.keep_best:
        load_best(trainer, folder)


def load_best(trainer: SupervisedTrainer, folder: OutputFolder) -> None:
    """Go back to the weights of the best checkpoint. UserError when there is none, or it is damaged."""
    best = folder.best(trainer.state)
    if best is None:
        raise UserError(
            "`keep` best: no evaluation loss was finite", "look at metrics.jsonl, or go on with `resume` and `keep` last"
        )
    if best == folder.checkpoint(trainer.state.global_step):
        return
    found = damage(best)
    if found:
        raise UserError(f"the best checkpoint, {best}, is damaged: {found}", "go on with `resume` and `keep` last")
    is_whole = not hasattr(trainer.model, "merge_and_unload")
    deepspeed_load_checkpoint(trainer.model_wrapped, str(best), load_module_strict=is_whole)


class ClipInStep(TrainerCallback):
    """Clips in the optimiser's step where DeepSpeed would not keep the gradient norm for the log."""

    def __init__(self, max_grad_norm: float):
        self.max_grad_norm = max_grad_norm

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: "AcceleratedOptimizer | None" = None,
        **kw: Any,
    ):
        clip_in_step(optimizer.optimizer, self.max_grad_norm)


class OwnIntervals(TrainerCallback):
    """Takes logging, evaluation and saving intervals from this command, not from the state that it resumes."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        state.compute_steps(args, state.max_steps)


class SaveOrStop(TrainerCallback):
    """Saves after a step when the clock says so, and stops too when a signal asked for it, or too many updates were skipped."""

    def __init__(self, stop: StopRequest, clock: SaveClock, trainer: SupervisedTrainer, max_skipped_steps: int):
        self.stop, self.clock, self.trainer, self.max_skipped_steps = stop, clock, trainer, max_skipped_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        stop, due = self.stop.requested_or_due(self.clock)
        if stop or self.trainer.skipped_in_a_row >= self.max_skipped_steps:
            control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        self.clock.saved()
