"""The runs of other packages' trackers, through accelerate: numbers and sample responses, each of them sent once.

A training that is resumed goes on in the tracker's own run, whose name stands in trackers.json.
"""

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denserl.errors import require
from denserl.files import replace_whole
from denserl.markdown import block, inline

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

RUNS = "trackers.json"
PROJECT = "denserl"
PER_TOKEN = "tokens"  # of a sample, numbers of each token, which the files have alone

Mark = tuple[int | str, ...]  # what tells a row from the others of a file: its step, and the names of its values


def mark_of(row: dict) -> Mark:
    """The mark of a row with a step."""
    return (row["step"], *sorted(row))


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


class TrackerRun:
    """One run of one tracker. Of rows that were sent before a kill, and are logged anew after it, none is sent again.

    Args:
        options: of the training, shown with the run.
        resumed: whether the training goes on. first: the first step that it logs now.
        cut: marks of the rows that files lost since the checkpoint: they were sent, and will be logged again.
    """

    def __init__(
        self, name: str, output_dir: Path, options: dict, resumed: bool = False, first: int = 0, cut: Collection[Mark] = ()
    ):
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # which its trackers read, and not all of them make
        self.name = name
        known = read_runs(output_dir).get(name) if resumed else None
        kind = LOGGER_TYPE_TO_CLASS[name]
        where: dict[str, Any] = {"logging_dir": str(output_dir)} if kind.requires_logging_directory else {}
        if name == "tensorboard":
            # It passes over what earlier files hold from that step on, which is then sent again.
            where["purge_step"] = first
        elif known:
            where |= {"run_id": known} if name == "mlflow" else {_NAMED_BY[name]: known, "resume": "allow"}
        self.sent = set(cut) if known else set()
        self.tracker: GeneralTracker = kind(os.environ.get("WANDB_PROJECT", PROJECT) if name == "wandb" else PROJECT, **where)
        self.tracker.start()
        if name in _NAMED_BY:
            replace_whole(output_dir / RUNS, json.dumps(read_runs(output_dir) | {name: self._run_name()}) + "\n")
        if not (known or (resumed and name == "tensorboard")):
            plain = (int, float, str, bool)
            shown = {key: value if isinstance(value, plain) else str(value) for key, value in options.items()}
            self.tracker.store_init_configuration(shown)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if mark_of({"step": step, **metrics}) not in self.sent:
            self.tracker.log(metrics, step=step)

    def log_samples(self, name: str, step: int, samples: Sequence[dict]) -> None:
        """Sample responses of a step, one a row: a table where the tracker has tables, else text."""
        rows = [
            {key: value for key, value in sample.items() if key != PER_TOKEN}
            for sample in samples
            if mark_of({"step": step, **sample}) not in self.sent
        ]
        if not rows:
            return
        cells = [{key: value if _is_cell(value) else json.dumps(value) for key, value in row.items()} for row in rows]
        columns = list(dict.fromkeys(key for row in cells for key in row))
        if hasattr(self.tracker, "log_table"):
            self.tracker.log_table(name, columns, [[row.get(key) for key in columns] for row in cells], step=step)
        elif self.name == "mlflow":
            import mlflow

            mlflow.log_table({key: [row.get(key) for row in cells] for key in columns}, f"{name}/step-{step:06d}.json")
        elif self.name == "trackio":
            import trackio

            self.tracker.log({name: trackio.Table(data=cells)}, step=step)
        elif self.name == "tensorboard":
            self.tracker.log({name: "\n\n---\n\n".join(map(as_markdown, rows))}, step=step)

    def finish(self) -> None:
        self.tracker.finish()

    def _run_name(self) -> str:
        run = self.tracker.tracker
        return run.info.run_id if self.name == "mlflow" else getattr(run, _NAMED_BY[self.name])


# What a tracker's run is found again by.
_NAMED_BY = {"wandb": "id", "trackio": "name", "mlflow": "run_id"}


def read_runs(output_dir: Path) -> dict[str, str]:
    """The tracker's runs of a training: tracker -> what it calls the run. None where there are none, or none to be read."""
    try:
        found = json.loads((output_dir / RUNS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def as_markdown(sample: dict) -> str:
    """A sample response: its texts as blocks, its numbers in lines, a line each segment."""
    texts = [f"{name}\n\n{block(sample[name])}" for name in ("prompt", "response") if name in sample]
    plain = {name: value for name, value in sample.items() if name not in ("prompt", "response")}
    numbers = [f"{name} {inline(value)}" for name, value in plain.items() if isinstance(value, str)]
    numbers += [f"{name} {value}" for name, value in plain.items() if isinstance(value, (int, float))]
    segments = [_segment_line(segment) for segment in sample.get("segments", ())]
    return "\n\n".join([*texts, ", ".join(numbers), "\n".join(segments)])


def _segment_line(segment: dict) -> str:
    return f"- {inline(segment['text'])} " + ", ".join(f"{name} {value}" for name, value in segment.items() if name != "text")


def _is_cell(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None)))
