"""Metrics and samples go to JSON-lines files, always; and to trackers such as tensorboard, when asked for."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from denserl import distributed
from denserl.errors import Stopped, UserError
from denserl.trainer.tracker_runs import Mark, TrackerRun, mark_of

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

    def write(self, step: int, *rows: dict) -> None:
        """Append rows of a step; numbers that are not finite become null, as JSON has none."""
        finite = (_with_finite({"step": step, **row}, lambda number: None) for row in rows)
        text = "".join(json.dumps(row) + "\n" for row in finite)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)
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


def marks_beyond(path: Path, size: int) -> set[Mark]:
    """Marks of the rows that a file holds beyond a size; what is no row is passed over."""
    found = set()
    for line in path.read_bytes()[size:].split(b"\n")[:-1] if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.add(mark_of(json.loads(line)))
    return found


class Trackers:
    """The metrics file, files of samples and the trackers of one run; only rank 0 writes.

    A context, after which trackers have all of a run that came to its end, or was stopped.
    """

    def __init__(
        self,
        output_dir: Path,
        names: list[str],
        options: dict,
        sizes: dict[str, int] | None = None,
        samples: Sequence[str] = SAMPLE_FILES,
    ):
        """names, options: trackers beside the files, and the run's options for them. samples: names of files of samples.

        sizes: bytes to keep of each file, of a run that is resumed.
        """
        self.active = distributed.rank() == 0
        if not self.active:
            return
        paths = {name: output_dir / f"{name}.jsonl" for name in ("metrics", *samples)}
        kept = {name: (sizes or {}).get(name, 0) for name in paths}
        goes_on = bool(names and sizes)
        cut = {mark for name, path in paths.items() for mark in marks_beyond(path, kept[name])} if goes_on else set()
        self.files = {name: StepFile(path, kept[name]) for name, path in paths.items()}
        first = max((row["step"] for row in read_metrics(paths["metrics"])), default=-1) + 1 if goes_on else 0
        self.others = [TrackerRun(name, output_dir, options, goes_on, first, cut) for name in names]

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Of one that failed, trackers say so themselves.
        if self.active and (kind is None or issubclass(kind, Stopped)):
            for tracker in self.others:
                tracker.finish()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, for a checkpoint to remember; empty on other ranks than 0."""
        return {name: file.size for name, file in self.files.items()} if self.active else {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.active:
            self.files["metrics"].write(step, metrics)
            for tracker in self.others:
                tracker.log(step, metrics)

    def log_samples(self, name: str, step: int, samples: list[dict]) -> None:
        """Append sample responses to one of the files of samples, and send them to the trackers that show text."""
        if self.active:
            self.files[name].write(step, *samples)
            for tracker in self.others:
                tracker.log_samples(name, step, samples)


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


class LogCallback(TrainerCallback):
    """Hands what transformers.Trainer logs to the metrics file, of which a resumed run keeps `size` bytes, and to trackers.

    A context around the training and what is logged after it.
    """

    def __init__(self, output_dir: Path, names: Sequence[str] = (), options: Mapping[str, Any] = MappingProxyType({})):
        """names, options: as those of `Trackers`."""
        self.output_dir, self.names, self.options = output_dir, list(names), dict(options)
        self.size: int | None = None
        self.trackers: Trackers | None = None

    def __enter__(self) -> "LogCallback":
        return self

    def __exit__(self, *ended: Any) -> None:
        if self.trackers is not None:
            self.trackers.__exit__(*ended)

    @property
    def bytes_written(self) -> int:
        """Bytes of the metrics file, for a checkpoint to remember."""
        return self.trackers.sizes["metrics"]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any):
        sizes = None if self.size is None else {"metrics": self.size}
        self.trackers = Trackers(self.output_dir, self.names, self.options, sizes, samples=())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kw: Any,
    ):
        self.trackers.log(state.global_step, {key: float(value) for key, value in logs.items()})
