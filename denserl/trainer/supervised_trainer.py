"""Training on rows of data, the base of reward models and fine-tuning: transformers.Trainer with whole optimiser steps.

A step takes the same rows, and its loss and metrics are averages over all of them, on any number of ranks and micro-batches.
What a run keeps on disk is not known here: a RunFolder comes in.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import SchedulerType, TrainOutput, get_last_checkpoint

from denserl import distributed
from denserl.data.batching import in_halves, length_batches, rank_batches, to_device
from denserl.data.order import StepSampler
from denserl.data.windows import Windows, WindowSampler
from denserl.trainer.engine import hold_weights_once
from denserl.trainer.schedules import inverse_sqrt_scheduler

Sums = dict[str, Tensor]


class RunFolder(Protocol):
    """Where a run keeps its checkpoints, and the batches of optimiser steps that were skipped."""

    def save(self, trainer: "SupervisedTrainer") -> None: ...

    def write_skipped(self, trainer: "SupervisedTrainer", rows: list[dict]) -> None: ...


class RunSession(Protocol):
    """What takes a training from its start, or a checkpoint, to its end."""

    def run(self, trainer: "SupervisedTrainer") -> dict[str, float]: ...

    def run_at_once(self, trainer: "SupervisedTrainer", fit: Callable[[], None]) -> dict[str, float]: ...

    def present(
        self, command: str, figures: Sequence[str], accuracy: tuple[float, int] | None = None, role: str | None = None
    ) -> None: ...


class CountedRows:
    """Rows under the keys (number, counted), which each row then holds as well."""

    def __init__(self, rows: Dataset | Windows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, bool]) -> dict:
        number, counted = key
        return {**self.rows[number], "row": number, "counted": counted}


class SupervisedTrainer(Trainer, ABC):
    """A trainer whose subclasses say what a batch adds up to: `count`, `sums`, `metrics`, `lengths`.

    Args beyond those of `Trainer`:
        eval_tokens: padded tokens per evaluation batch.
        folder: what keeps checkpoints and skipped batches; without one, checkpoints are those of `Trainer`.
        session: of a training that is made from a config, what `run` goes by.
    """

    def __init__(
        self,
        *,
        eval_tokens: int = 16384,
        folder: RunFolder | None = None,
        session: RunSession | None = None,
        **kw: Any,
    ):
        super().__init__(**kw)
        self.eval_tokens, self.folder, self._session = eval_tokens, folder, session
        # The losses are divided by the whole step's count here; nothing is left for the base class to divide by.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        # Since the last log, all ranks together: sums of the applied steps, and the number of those that were skipped.
        self.totals: dict[str, Tensor | float] = {}
        self.skipped, self.skipped_in_a_row = 0, 0
        # Of the optimiser step at hand, on this rank.
        self._sums: Sums = {}
        self._rows: list[int] = []
        # The checkpoint that a run goes on from, until its random state is there again.
        self._goes_on_from: str | None = None

    @abstractmethod
    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """What the loss is averaged over, in the rows of a batch that are `counted`: 0-d."""

    @abstractmethod
    def sums(self, model: nn.Module, batch: dict[str, Tensor]) -> Sums:
        """0-d sums over the `counted` rows: `loss`, with its graph, and what `metrics` needs."""

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics beside the loss, from the sums of any number of batches."""
        return {}

    def of_all_rows(self) -> dict[str, float]:
        """Metrics of an evaluation that sums do not tell, of what `sums` has seen since the last one. Collective."""
        return {}

    @abstractmethod
    def lengths(self, rows: Dataset) -> np.ndarray:
        """(N, K): tokens of each of the K sequences that a row is read as."""

    def eval_batches(self, rows: Dataset) -> Iterator[tuple[list[int], bool]]:
        """This rank's batches of an evaluation, as `rank_batches` gives them, of at most `eval_tokens` padded tokens."""
        lengths = self.lengths(rows)
        return rank_batches(length_batches((lengths.shape[1] * lengths.max(1)).tolist(), self.eval_tokens))

    @property
    def session(self) -> RunSession:
        """What `run` goes by. ValueError for a trainer that was put together by hand, whose `train` is that of `Trainer`."""
        if self._session is None:
            raise ValueError(f"{type(self).__name__}.run needs a trainer made by from_config; call train() instead")
        return self._session

    def create_accelerator_and_postprocess(self) -> None:
        """The library's; checkpoints of the engine that it makes hold each weight once."""
        super().create_accelerator_and_postprocess()
        prepare = self.accelerator.prepare

        @functools.wraps(prepare)
        def prepared(*args: Any, **kw: Any) -> Any:
            made = prepare(*args, **kw)
            for one in made if isinstance(made, tuple) else (made,):
                if isinstance(one, nn.Module) and hasattr(one, "checkpoint_engine"):
                    hold_weights_once(one)
            return made

        self.accelerator.prepare = prepared

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, those of all ranks at a time of like length; every row is counted once an epoch."""
        args, rows = self.args, self.train_dataset
        step_rows = args.train_batch_size * args.gradient_accumulation_steps * distributed.world_size()
        sizes = (step_rows, args.train_batch_size, args.seed)
        if isinstance(rows, Windows):
            sampler: Any = WindowSampler(rows, self._lengths, *sizes, args.max_steps, lambda: self.state.global_step)
        else:
            sampler = StepSampler(self._lengths(rows), *sizes, epoch=lambda: self.state.global_step // sampler.steps)
        return DataLoader(
            CountedRows(rows),
            batch_sampler=sampler,
            collate_fn=self._collate,
            pin_memory=args.dataloader_pin_memory,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kw: Any) -> TrainOutput:
        given = resume_from_checkpoint
        self._goes_on_from = (get_last_checkpoint(self.args.output_dir) if given is True else given) or None
        return super().train(given, *args, **kw)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        self._goes_on_from = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """The micro-batches of an optimiser step on this rank, and what its loss is averaged over, all ranks together."""
        # A run that is resumed at its end has nothing left to do, even if that is in the middle of an epoch.
        if self.state.global_step >= self.state.max_steps:
            return [], None
        batches = list(islice(epoch_iterator, num_batches))
        if self._goes_on_from:
            # In the middle of a pass the library restores it behind this call, in which forwards may draw from it.
            self._load_rng_state(self._goes_on_from)
        count = torch.stack([self.count(batch) for batch in batches]).sum().to(device)
        return batches, distributed.all_sum(count)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimiser that says, as DeepSpeed's do, whether it skipped its last step: the schedule then waits as well."""
        optimizer = super().create_optimizer(model)
        optimizer.overflow = False
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The library's, but for `inverse_sqrt`, which is that of `schedules` in all trainings."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.INVERSE_SQRT:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler: LRScheduler = inverse_sqrt_scheduler(optimizer or self.optimizer, warmup)
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self._rows += inputs["row"][inputs["counted"]].tolist()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._after_step()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict]:
        """The micro-batch's share of the loss of the whole step."""
        sums = self.sums(model, inputs)
        count = self.count(inputs)
        self._sums = add_sums(self._sums, {**sums, "count": count})
        # DeepSpeed takes the mean over ranks; what remains is division by the whole step's count.
        divisor = count if num_items_in_batch is None else num_items_in_batch / distributed.world_size()
        # Where nothing counts, the sum is 0 as well.
        loss = sums["loss"] / (divisor + (divisor == 0))
        # The gradients of an infinite loss may be finite; those of NaN are not, and make the engine skip the step.
        loss = loss * torch.where(loss.isfinite(), 1.0, torch.nan)
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics over all rows, each counted once on any number of ranks."""
        rows = CountedRows(self.eval_dataset if eval_dataset is None else eval_dataset)
        self.model_wrapped.eval()
        total: Sums = {}
        for batch, counted in self.eval_batches(rows.rows):
            for sums in self._eval_sums(rows, batch):
                total = add_sums(total, sums if counted else {key: torch.zeros_like(value) for key, value in sums.items()})
        metrics = self._averages(sum_over_ranks(total)) | self.of_all_rows()
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kw: Any) -> None:
        """Logs what was added up since the last log. What the base class adds up begins anew when a run is resumed."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs = {key: value for key, value in logs.items() if key != "loss"}
            if self.totals:
                logs |= self._averages({key: float(value) for key, value in self.totals.items()})
            logs["skipped_steps"] = self.skipped
            self.totals, self.skipped = {}, 0
        super().log(logs, *args, **kw)

    def progress(self) -> dict:
        """What a resumed run must know, beside what `write_checkpoint` writes, to log what it would have logged."""
        totals = {key: float(value) for key, value in self.totals.items()}
        return {"totals": totals, "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def restore(self, progress: dict) -> None:
        """Take over what `progress` gave."""
        self.totals, self.skipped = progress["totals"], progress["skipped"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]

    def write_checkpoint(self, folder: Path) -> None:
        """What `train(resume_from_checkpoint=folder)` reads. Collective."""
        self.store_flos()
        if not self.is_deepspeed_enabled:
            self.save_model(str(folder))
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights, config and tokenizer, and nothing pickled."""
        if self.is_deepspeed_enabled and self.deepspeed is None:
            # No step was taken, so that there is no engine to ask.
            if self.args.should_save:
                self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if state_dict is not None:
            # They come as copies below ZeRO-3, which would be written beside what they are tied to.
            state_dict = {key: value for key, value in state_dict.items() if key not in self.model.all_tied_weights_keys}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.folder is None:
            super()._save_checkpoint(model, trial)
        else:
            self.folder.save(self)

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # The base class would round entropies and margins to the precision of the weights, and cut responses elsewhere.
        return to_device(inputs, self.args.device)

    def _lengths(self, rows: Dataset) -> list[int]:
        """Tokens of each row, all its sequences together."""
        return self.lengths(rows).sum(1).tolist()

    def _collate(self, rows: list[dict]) -> dict[str, Tensor]:
        marks = {key: torch.tensor([row[key] for row in rows]) for key in ("row", "counted")}
        return {**self.data_collator(rows), **marks}

    def _after_step(self) -> None:
        """Adds the sums of an optimiser step that was applied, and writes the rows of one that was not."""
        names = list(self._sums)
        packed = distributed.all_sum(torch.stack(list(self._sums.values())))
        if not self.is_deepspeed_enabled or self.model_wrapped.was_step_applied():
            self.totals = add_sums(self.totals, dict(zip(names, packed)))
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
            if self.folder is not None:
                self.folder.write_skipped(self, [{"row": row, **self.train_dataset[row]} for row in self._rows])
        self._sums, self._rows = {}, []

    def _eval_sums(self, rows: CountedRows, batch: list[int]) -> list[Sums]:
        """The sums of a batch, or of its parts where memory does not suffice for it."""

        def of_part(part: list[int]) -> Sums:
            inputs = self._prepare_inputs(self._collate([rows[row, True] for row in part]))
            with torch.no_grad():
                return {**self.sums(self.model_wrapped, inputs), "count": self.count(inputs)}

        together = is_deepspeed_zero3_enabled() and distributed.world_size() > 1
        return in_halves(of_part, batch, together)

    def _averages(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / (sums["count"] or 1.0), **self.metrics(sums)}


def add_sums(total: dict[str, Tensor | float], sums: Sums) -> Sums:
    """Sums by name, fp64, without graph."""
    return {key: value.detach().double() + total.get(key, 0.0) for key, value in sums.items()}


def sum_over_ranks(sums: Sums) -> dict[str, float]:
    """One reduction for all sums; the same dictionary of numbers on every rank."""
    packed = distributed.all_sum(torch.stack(list(sums.values())))
    return dict(zip(sums, packed.tolist(), strict=True))
