"""Metrics and samples go to JSON-lines files, always; metrics also to trackers such as tensorboard, when asked for."""

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from denserl import distributed
from denserl.errors import UserError, require

log = logging.getLogger(__name__)

SAMPLE_FILES = ("samples", "eval_samples")


class StepFile:
    """A JSON-lines file of rows with a step, which can be taken back to an earlier size."""

    def __init__(self, path: Path, size: int = 0):
        """size: bytes of it to keep, the rest being what a run wrote after the checkpoint that it is resumed from."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if self.size < size:
            log.warning("%s has %d bytes, and had %d when the checkpoint was written: rows are missing", path, self.size, size)
            size = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, size)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def write(self, step: int, row: dict) -> None:
        """Append one row; numbers that are not finite become null, as JSON has none."""
        row = _with_finite({"step": step, **row}, lambda number: None)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            # A checkpoint remembers the file's size; after a loss of power the file must be at least as long.
            os.fsync(file.fileno())


def write_batch(folder: Path, name: str, rows: list[dict]) -> Path:
    """Write this rank's rows of a batch that is to be studied as JSON lines; numbers that are not finite become strings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-rank-{distributed.rank()}.jsonl"
    path.write_text("".join(json.dumps(_with_finite(row, str)) + "\n" for row in rows), encoding="utf-8")
    return path


def not_finite(count: int, skipped: Path, saved: Path, rates: str) -> UserError:
    """The message at the end of a run whose last `count` updates were not finite."""
    return UserError(
        f"{count} updates in a row were not finite and not applied; their batches are in {skipped}, and {saved} holds the "
        "weights from before",
        f"look at the batches and at metrics.jsonl; lower {rates}, correct data or rewards, start from an earlier checkpoint, "
        "or go on with `resume`",
    )


def _with_finite(value: Any, instead: Callable[[float], object]):
    """The value with each number in it that is not finite replaced."""
    if isinstance(value, dict):
        return {key: _with_finite(item, instead) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_finite(item, instead) for item in value]
    return instead(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; none when it does not exist. A torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Trackers:
    """The metrics file, the sample files and the trackers of one run; only rank 0 writes."""

    def __init__(self, output_dir: Path, names: list[str], options: dict, sizes: dict[str, int] | None = None):
        """names, options: trackers beside the files, and the run's options for them. sizes: bytes to keep of each file."""
        self.active = distributed.rank() == 0
        if not self.active:
            return
        sizes = sizes or {}
        self.files = {name: StepFile(output_dir / f"{name}.jsonl", sizes.get(name, 0)) for name in ("metrics", *SAMPLE_FILES)}
        self.others = [_tracker(name, output_dir, options) for name in names]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, for a checkpoint to remember; empty on other ranks than 0."""
        return {name: file.size for name, file in self.files.items()} if self.active else {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.active:
            self.files["metrics"].write(step, metrics)
            for tracker in self.others:
                tracker.log(metrics, step=step)

    def log_samples(self, name: str, step: int, samples: list[dict]) -> None:
        """Append sample responses to one of SAMPLE_FILES."""
        if self.active:
            for sample in samples:
                self.files[name].write(step, sample)

    def finish(self) -> None:
        if self.active:
            for tracker in self.others:
                tracker.finish()


class ProgressLine(ProgressCallback):
    """A progress bar that carries the main metrics, in place of a printed dictionary at every log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kw: Any,
    ):
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {key: f"{logs[key]:.3f}" for key in ("loss", "accuracy", "grad_norm") if key in logs}
            self.training_bar.set_postfix(shown)


class MetricsFileCallback(TrainerCallback):
    """Writes what transformers.Trainer logs into metrics.jsonl, of which a resumed run keeps `size` bytes."""

    def __init__(self, output_dir: Path, size: int = 0):
        self.output_dir, self.size = output_dir, size
        self.file: StepFile | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        if state.is_world_process_zero:
            self.file = StepFile(self.output_dir / "metrics.jsonl", self.size)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kw: Any,
    ):
        if self.file is not None:
            self.file.write(state.global_step, {key: float(value) for key, value in logs.items()})


def chosen_trackers(names: list[str]) -> list[str]:
    """The trackers that are named; as in transformers, `none` stands for none, and `all` for those that are installed.

    Raises:
        UserError: a tracker is not known or not installed, or one of the two words stands beside others.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = sorted(str(tracker) for tracker in get_available_trackers())
    words = {"none": [], "all": installed}
    if len(names) == 1 and names[0] in words:
        return words[names[0]]
    for name in names:
        require(name not in words, f"`report_to` has {name} beside others", f"give {name} alone, or leave it out")
        known = ", ".join([*LOGGER_TYPE_TO_CLASS, *words])
        require(name in LOGGER_TYPE_TO_CLASS, f"`report_to` {name} is not known; known are {known}", "choose among them")
        require(
            name in installed,
            f"`report_to` {name} is not installed; installed here: {', '.join(installed) or 'none'}",
            f"install its package: pip install {name.replace('_', '-')}",
        )
    return names


def _tracker(name: str, output_dir: Path, options: dict):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    folder = {"logging_dir": str(output_dir)} if tracker_class.requires_logging_directory else {}
    tracker = tracker_class("denserl", **folder)
    tracker.start()
    tracker.store_init_configuration(
        {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in options.items()}
    )
    return tracker
