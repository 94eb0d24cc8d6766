"""Trainings in processes of their own, ended by signals or by themselves, and two output folders compared file by file.

The processes are forked from a server that has everything imported, so that one starts in a tenth of a second; they are as
real and as mortal as any other.
"""

import gc
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tiny_models import as_argv, save_language_model

SECONDS = 120
SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "CROSS_")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "deepspeed",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "torch.utils.cpp_extension",
        "denserl.cli.train_ppo",
        "denserl.cli.train_rm",
        "denserl.trainer.start",
        "denserl.data.preferences",
        "denserl.data.prompts",
        "denserl.data.demonstrations",
        "denserl.trainer.reward_trainer",
        "denserl.trainer.run_folder",
        "denserl.trainer.ppo_trainer",
    ]
)


def start_server() -> None:
    """Import everything now (some seconds), so that no process's time has it in."""
    process = SERVER.Process(target=os.getpid)
    process.start()
    process.join()


class Ended(NamedTuple):
    """How a process ended: its exit status, negative for the signal that killed it, and what it wrote to stdout and stderr."""

    code: int
    said: str


class Training(NamedTuple):
    """A command (train_ppo, train_rm), its settings, and how they become its arguments: argv(output folder, **settings)."""

    command: str
    argv: Callable[..., list[str]]
    settings: dict

    def arguments(self, output: Path, **options) -> list[str]:
        return self.argv(output, **self.settings | options)

    def start(self, output: Path, before: Callable[[], None] | None = None, log: Path | None = None, **options) -> "Running":
        """Start it on an output folder; with --resume where that holds checkpoints."""
        resume = {"resume": True} if checkpoints(output) else {}
        return Running(self.command, self.arguments(output, **resume | options), log or output.with_suffix(".log"), before)

    def run(self, output: Path, before: Callable[[], None] | None = None, log: Path | None = None, **options) -> Ended:
        """The same, waited for."""
        return self.start(output, before, log, **options).ended()


def answers_to_mtbench(folder: Path) -> Training:
    """A tiny policy's answers to 15 questions of two turns, two of each, some of them at a time; made of files in a folder."""
    save_language_model(folder / "policy", stops=60)
    kinds = ("writing", "math", "stem")
    rows = [{"question_id": n, "category": kinds[n % 3], "turns": [f"What is {n}?", "And then?"]} for n in range(15)]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model": folder / "policy", "questions": folder / "question.jsonl", "samples": 2, "sample_batch_size": 1}
    options |= {"max_new_tokens": 12, "device": "cpu"}
    return Training("answer", lambda output, **more: ["mtbench", *as_argv({**options, "output_dir": output, **more})], {})


class Running:
    """A process that runs a command, or calls a function with the arguments.

    `before` is called in it first; environment: what a launcher would set.
    """

    def __init__(
        self, command: str | Callable, argv: list, log: Path, before: Callable[[], None] | None = None, **environment: str
    ):
        self.log, self.began = log, time.monotonic()
        self.log.write_text("")
        self.process = SERVER.Process(target=_run_command, args=(command, argv, log, before, environment))
        self.process.start()

    def signal(self, number: int) -> None:
        """Send a signal; one that comes too late is not felt."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait_until(self, happened: Callable[[], bool], pause: float = 0.0005) -> bool:
        """Wait until something happened (True) or the process ended (False)."""
        while self.process.is_alive() and time.monotonic() < self.began + SECONDS:
            if happened():
                return True
            time.sleep(pause)
        return False

    def ended(self) -> Ended:
        """Wait for the end. A process that hangs is killed, and reported with status None."""
        self.process.join(max(self.began + SECONDS - time.monotonic(), 0.1))
        hangs = self.process.is_alive()
        if hangs:
            self.process.kill()
            self.process.join()
        return Ended(None if hangs else self.process.exitcode, self.log.read_text(errors="replace"))


def _run_command(command: str | Callable, argv: list, log: Path, before, environment: dict[str, str]) -> None:
    # What the server has imported is no garbage, through which every training looks.
    gc.freeze()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    for name in [name for name in os.environ if name.startswith(SET_BY_LAUNCHERS)]:
        del os.environ[name]
    os.environ.update(environment)
    if before is not None:
        before()
    (command if callable(command) else importlib.import_module(f"denserl.cli.{command}").main)(argv)


class DiesAtFileCall:
    """Called in a process, lets it be killed by SIGKILL right before its n-th change to the files below a folder.

    What changes files without Python's knowledge (torch's and safetensors' own writers) is not counted.
    """

    CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")

    def __init__(self, n: int, folder: Path):
        self.left, self.folder = n, str(folder)

    def __call__(self) -> None:
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        changes = event in self.CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and self._is_below(args):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_below(self, args: tuple) -> bool:
        # Removal of a tree names files by folder descriptor and bare name.
        return isinstance(args[0], (str, bytes, os.PathLike)) and (
            os.fsdecode(args[0]).startswith(self.folder) or (len(args) == 2 and isinstance(args[1], int) and args[1] >= 0)
        )


def checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of an output folder, oldest first."""
    return sorted((output / "checkpoints").glob("[is]*-??????"))


def is_saving(output: Path, since: float) -> bool:
    """Whether a checkpoint is being written by a process that began at this time; others left unfinished ones behind."""
    try:
        return any(path.stat().st_mtime > since for path in (output / "checkpoints").glob(".*.partial"))
    except FileNotFoundError:
        # Renamed between the two looks.
        return False


def differences(one: Path, other: Path) -> list[str]:
    """What two output folders do not have in common, to the bit; timings, commands and the place of the folder are left out."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    names = [{name for name in found if Path(name).name not in ("command.json", "README.md")} for found in names]
    found = [f"only in one: {name}" for name in sorted(names[0] - names[1])]
    found += [f"only in the other: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        found += [f"{name}{place}" for place in _unequal(_content(one / name), _content(other / name))]
    return found


def _content(path: Path):
    """A file as nested lists, dictionaries and tensors, without what is different in any two runs."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=False)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".jsonl":
        return [_without_timings(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return _without_timings(json.loads(path.read_text()))
    return path.read_bytes()


def _without_timings(content):
    if isinstance(content, dict):
        return {key: _without_timings(value) for key, value in content.items() if not _is_incidental(key)}
    return [_without_timings(value) for value in content] if isinstance(content, list) else content


def _is_incidental(key: str) -> bool:
    """Timings, the place of the folder; and what follows from them, sizes and checksums of files that hold timings."""
    return "second" in key or key in {"train_runtime", "bytes", "xxh3_128", "metrics", "output_dir", "resume", "sft_from_here"}


def _unequal(one, other, place: str = "") -> Iterator[str]:
    """The places where two nested contents differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
            yield place
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _unequal(one.get(key, "missing"), other.get(key, "missing"), f"{place}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for i, (mine, theirs) in enumerate(zip(one, other)):
            yield from _unequal(mine, theirs, f"{place}/{i}")
    elif hasattr(one, "__dict__") and type(one) is type(other):
        yield from _unequal(vars(one), vars(other), place)
    elif type(one) is not type(other) or not (one == other or _both_nan(one, other)):
        yield f"{place}: {one!r} and {other!r}"[:200]


def _both_nan(one, other) -> bool:
    return isinstance(one, float) and math.isnan(one) and math.isnan(other)
