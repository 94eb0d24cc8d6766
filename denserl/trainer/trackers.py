"""Metrics and samples go to JSON-lines files, always; metrics also to trackers such as tensorboard, when asked for."""

import json
import math
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from denserl import distributed
from denserl.errors import UserError

SAMPLE_FILES = ("samples", "eval_samples")


class StepFile:
    """A JSON-lines file of rows with a step. Opened at a step, it forgets what later steps had written before a resume."""

    def __init__(self, path: Path, last_step: int):
        """last_step: newest step to keep; 0 starts anew."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(path) if row["step"] <= last_step] if last_step else []
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, step: int, row: dict) -> None:
        """Append one row; numbers that are not finite become null, which JSON has a word for."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; none when it does not exist. A torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Trackers:
    """The metrics file, the sample files and the trackers of one run; only rank 0 writes."""

    def __init__(self, output_dir: Path, names: list[str], options: dict, step: int = 0):
        self.active = distributed.rank() == 0
        if not self.active:
            return
        self.files = {name: StepFile(output_dir / f"{name}.jsonl", step) for name in ("metrics", *SAMPLE_FILES)}
        self.others = [_tracker(name, output_dir, options) for name in names]

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

    def on_log(self, args, state, control, logs=None, **kw):
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {key: f"{logs[key]:.3f}" for key in ("loss", "accuracy", "grad_norm") if key in logs}
            self.training_bar.set_postfix(shown)


class MetricsFileCallback(TrainerCallback):
    """Writes what transformers.Trainer logs into metrics.jsonl."""

    def __init__(self, output_dir: Path):
        self.output_dir, self.file = output_dir, None

    def on_train_begin(self, args, state, control, **kw):
        if state.is_world_process_zero:
            self.file = StepFile(self.output_dir / "metrics.jsonl", state.global_step)

    def on_log(self, args, state, control, logs=None, **kw):
        if self.file is not None:
            self.file.write(state.global_step, {key: float(value) for key, value in logs.items()})


def check_trackers(names: list[str]) -> None:
    """UserError for a tracker that is not installed or not known."""
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in available:
            raise UserError(
                f"--report_to {name}: not installed or not known; installed here: {', '.join(sorted(available)) or 'none'}",
                f"pip install {name}",
            )


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
