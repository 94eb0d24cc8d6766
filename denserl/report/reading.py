"""What a run has left in its folder, read without belief: whatever stands there gives rows, or a remark.

Folders may be of other versions, half written, or made to harm. Numbers that are none, rows that are no objects and files that
are no JSON are left out and said; texts are cut at a length, and stay what they are: whoever shows them makes them inert.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from denserl.errors import require
from denserl.files import COMMAND_FILE

METRICS, RESULTS, SCORES, FITS, ANSWERS = "metrics.jsonl", "results.json", "scores.jsonl", "fits.json", "answers.json"
TURNS = "samples-turn-*.jsonl"  # of answers
SAMPLES = {"eval_samples": "held-out", "samples": "training"}  # files of sample responses, and what they are of
LONGEST_TEXT = 20_000  # characters of a prompt, a response or a segment
LARGEST_JSON = 2**27  # bytes of a file that is read whole
LONGEST_LINE = 2**26  # bytes of a row
KINDS = ("train-sft", "train-rm", "fit-normalizer", "train-ppo", "bon", "evaluate", "answer", "judge", "demo")
# How a folder without a record of its command is told: by names that only the rows of one command have.
OF_PPO, OF_PAIRS = {"actor_lr", "rollout_seconds", "eval_kl"}, {"accuracy", "bt_loss", "eval_accuracy", "score_mean"}


class Run(NamedTuple):
    """One folder, as far as it can be read."""

    folder: Path
    name: str  # what it is called on the page, unlike the others'
    kind: str  # the command that wrote it
    entries: list[dict]  # of command.json
    metrics: list[dict]
    samples: dict[str, list[dict]]  # of the files of SAMPLES
    results: dict
    fits: dict[str, dict]
    remarks: list[str]  # what could not be read

    @property
    def settings(self) -> dict[str, Any]:
        """Of the last command."""
        found = self.entries[-1].get("settings") if self.entries else None
        return found if isinstance(found, dict) else {}


def read_runs(folders: Sequence[str], samples: int) -> list[Run]:
    """The runs in these folders, a demo's in the place of its folder.

    Raises:
        UserError: a folder is not there, or holds no run; it names those that are in it.
    """
    paths = paths_of(folders)
    names = names_of(paths)
    return [read_run(path, name, samples) for path, name in zip(paths, names, strict=True)]


def paths_of(folders: Sequence[str]) -> list[Path]:
    """Where the runs of these folders are, each once. UserError where a folder is not there, or is a demo's without runs."""
    paths: list[Path] = []
    for given in folders:
        path = Path(given)
        require(
            path.is_dir(),
            f"{given} is no folder; expected the `output_dir` of a run",
            "give folders that commands have written",
        )
        runs = parts_of_demo(path) if is_demo(path) else [path]
        require(runs, f"{given} is of a demo that has no runs yet", "wait for its first run, or give another folder")
        paths += [run for run in runs if run not in paths]
    return paths


def read_run(folder: Path, name: str, samples: int) -> Run:
    """One run. samples: rows that are kept of each file of them. UserError where the folder holds none."""
    remarks: list[str] = []
    kind = _kind(folder)
    inside = [str(path.parent) for path in listed(folder, f"*/{COMMAND_FILE}") if _kind(path.parent) in KINDS]
    fix = f"denserl report {shlex.join(inside[:8])}" if inside else "give the folder that a command has written"
    require(
        kind in KINDS,
        f"{folder} holds no run to report: expected {COMMAND_FILE}, {METRICS}, {RESULTS} or {ANSWERS} of "
        + ", ".join(KINDS[:-1])
        + (f"; it is a folder of denserl {kind}" if kind else ""),
        fix,
    )
    entries: list[dict] = []
    fits: dict[str, dict] = {}
    for entry in _as_list(read_json(folder / COMMAND_FILE, remarks)):
        entries += [entry] if isinstance(entry, dict) else []
    outcome = ANSWERS if kind == "answer" else RESULTS
    found = read_json(folder / outcome, remarks)
    results = found if isinstance(found, dict) else {}
    metrics = list(read_rows(folder / METRICS, remarks))
    rows = {file: _read_samples(folder / f"{file}.jsonl", samples, remarks) for file in SAMPLES}
    run = Run(folder, name, kind, entries, metrics, rows, results, fits, remarks)
    if kind == "bon":
        rows |= {"samples": _scored(rows["samples"], read_rows(folder / SCORES, remarks))}
    if kind == "answer":
        turns = listed(folder, TURNS)
        answers = [row for path in turns for row in _read_samples(path, max(samples // len(turns), 1), remarks)]
        rows |= {"eval_samples": _scored(answers, iter(()))}
    for path in _fit_files(run):
        found = read_json(path, remarks)
        fits |= {key: fit for key, fit in found.items() if isinstance(fit, dict)} if isinstance(found, dict) else {}
    if kind.startswith("train") and not metrics:
        remarks.append(f"{METRICS} is missing or empty: no numbers of the training")
    if kind in ("bon", "evaluate", "answer", "judge") and not results:
        remarks.append(
            f"{outcome} is missing or no object: no numbers of what was {'answered' if kind == 'answer' else 'judged'}"
        )
    if kind == "fit-normalizer" and not fits:
        remarks.append("the file of fits is not where it was written: no constants and no R^2")
    return run


def is_demo(folder: Path) -> bool:
    """Whether `denserl demo` has written a folder."""
    return _kind(folder) == "demo"


def parts_of_demo(folder: Path) -> list[Path]:
    """The runs of a demo: PPO first, then what it needed."""
    found = [path.parent for path in listed(folder, f"*/{COMMAND_FILE}")]
    order = ("train-ppo", "train-rm", "fit-normalizer", "train-sft")
    kinds = {path: _kind(path) for path in found}
    return sorted((path for path in found if kinds[path] in order), key=lambda path: order.index(kinds[path]))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell each from the others."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    deepest = max((len(path.parts) for path in whole), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(path.parts[-count:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in whole]


def number(value: Any) -> float | None:
    """A finite number as such; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def text(value: Any) -> str:
    """A text, cut at LONGEST_TEXT; of anything else what Python writes for it."""
    shown = value if isinstance(value, str) else "" if value is None else str(value)[: LONGEST_TEXT + 1]
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]} [... {len(shown) - LONGEST_TEXT} more characters]"


def read_json(path: Path, remarks: list[str]) -> Any:
    """What a file holds; None, and a remark, where that cannot be read; None without one where there is no file."""
    if not path.is_file():
        return None
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            remarks.append(f"{path.name} has {size} bytes and is not read")
            return None
        return json.loads(path.read_bytes().decode("utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"{path.name} cannot be read: {_first_line(error)}")
        return None


def read_rows(path: Path, remarks: list[str]) -> Iterator[dict]:
    """The rows of a JSON-lines file; lines that are none are counted in a remark. A last line without end is being written."""
    return _parsed(_lines(path, remarks), path.name, remarks)


def _lines(path: Path, remarks: list[str]) -> list[bytes]:
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        remarks.append(f"{path.name} cannot be read: {_first_line(error)}")
        return []
    return lines[:-1]


def _parsed(lines: Sequence[bytes], name: str, remarks: list[str]) -> Iterator[dict]:
    refused, why = 0, ""
    for line in lines:
        try:
            if len(line) > LONGEST_LINE:
                raise ValueError(f"a row of {len(line)} bytes")
            row = json.loads(line.decode("utf-8", errors="replace"))
            if not isinstance(row, dict):
                raise ValueError("a row that is no object")
            yield row
        except (ValueError, RecursionError) as error:
            refused, why = refused + 1, why or _first_line(error)
    if refused:
        remarks.append(f"{name}: {refused} of {len(lines)} rows cannot be read ({why})")


def _read_samples(path: Path, most: int, remarks: list[str]) -> list[dict]:
    """The rows of the first step, and the last ones, `most` together."""
    lines = _lines(path, remarks)
    if len(lines) <= most:
        return list(_parsed(lines, path.name, remarks))
    first: list[dict] = []
    for row in _parsed(lines[: most // 2], path.name, []):
        if first and row.get("step") != first[0].get("step"):
            break
        first.append(row)
    last = list(_parsed(lines[len(lines) - most + len(first) :], path.name, remarks))
    remarks.append(
        f"{path.name}: {len(first) + len(last)} of {len(lines)} rows are shown, the first ones, of one step, and the last ones"
    )
    return first + last


def _scored(samples: Sequence[dict], scores: Iterator[dict]) -> list[dict]:
    """Samples of best-of-n, or answers, in the shape of PPO's: what a reward model gives is their reward."""
    known = {(str(row.get("id")), str(row.get("sample"))): row for row in scores}
    found = []
    for row in samples:
        score = known.get((str(row.get("id")), str(row.get("sample"))), {})
        ids = row.get("response_ids")
        length = {"length": len(ids)} if isinstance(ids, list) else {}
        found.append(
            {**row, "messages": row.get("prompt"), "reward": score.get("proxy"), "gold_reward": score.get("gold"), **length}
        )
    return found


def _fit_files(run: Run) -> list[Path]:
    """Where the fit of a run may be: in its folder, or where its command has put it."""
    named = [run.settings.get("fit")] if run.kind == "fit-normalizer" else []
    beside = run.settings.get("reward_model") if run.kind == "fit-normalizer" else None
    models = [model for model in _as_list(beside) if isinstance(model, str)]
    paths = [
        run.folder / FITS,
        *(Path(path) for path in named if isinstance(path, str)),
        *(Path(path) / FITS for path in models),
    ]
    return [path for path in dict.fromkeys(paths) if "\0" not in str(path) and path.is_file()]


def _kind(folder: Path) -> str:
    """The command that wrote a folder: the last one of command.json, or told by what stands in its files; else empty."""
    entries = _as_list(read_json(folder / COMMAND_FILE, []))
    for entry in reversed(entries):
        if isinstance(entry, dict) and isinstance(entry.get("command"), str):
            try:
                words = shlex.split(entry["command"])
            except ValueError:
                continue
            if kind := next((word for word in words[1:2] if word), ""):
                return kind
    results = read_json(folder / RESULTS, [])
    if isinstance(results, dict):
        told = {"demo": "levels", "judge": "policies", "evaluate": "suite", "bon": "samples"}
        if kind := next((kind for kind, key in told.items() if key in results), ""):
            return kind
    if (folder / ANSWERS).is_file():
        return "answer"
    names: set[str] = set()
    for row in read_rows(folder / METRICS, []):
        names |= row.keys()
    if names:
        return "train-ppo" if names & OF_PPO else "train-rm" if names & OF_PAIRS else "train-sft"
    return "fit-normalizer" if (folder / FITS).is_file() and not (folder / "config.json").is_file() else ""


def listed(folder: Path, pattern: str) -> list[Path]:
    """What is there by that pattern, in order; nothing of a folder that cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _first_line(error: BaseException) -> str:
    said = str(error) or type(error).__name__
    return said.splitlines()[0][:200]
