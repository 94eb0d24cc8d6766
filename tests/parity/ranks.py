"""Commands and functions on several ranks, each a process of its own, all ended when one fails or time is up; and how far
the outputs of two runs are apart.
"""

import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from real_runs import SECONDS, Ended, Running, Training
from safetensors.torch import load_file

from denserl.trainer.trackers import read_metrics

# How long the other ranks may go on after one has failed.
GRACE = 5


def run(training: Training, output: Path, ranks: int = 1, before: Callable[[], None] | None = None, **options) -> Path:
    """Run a training on so many ranks to its end; returns its output folder."""
    argv = training.arguments(output, **options)
    together(
        [
            Running(training.command, argv, output.with_name(f"{output.name}-{rank}.log"), before, **environment)
            for rank, environment in enumerate(environments(ranks))
        ]
    )
    return output


def call(function: Callable, *args, folder: Path, ranks: int = 2) -> list:
    """What a function (of a module, not of a fixture) returns on each of so many ranks."""
    results = [folder / f"result-{rank}.pt" for rank in range(ranks)]
    work = partial(_keep_result, partial(function, *args))
    together(
        [
            Running(work, [result], result.with_suffix(".log"), **environment)
            for result, environment in zip(results, environments(ranks))
        ]
    )
    return [torch.load(result, weights_only=False) for result in results]


def _keep_result(function: Callable, argv: list[Path]) -> None:
    torch.save(function(), argv[0])


def environments(ranks: int) -> list[dict[str, str]]:
    """What a launcher would set for each rank; nothing for a single one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def together(running: list[Running], seconds: float = SECONDS) -> None:
    """Wait until all have ended well. Ranks that wait for one that failed, and all of them when time is up, are killed."""
    deadline = time.monotonic() + seconds
    while any(one.process.is_alive() for one in running) and time.monotonic() < deadline:
        time.sleep(0.02)
        if any(one.process.exitcode for one in running):
            deadline = min(deadline, time.monotonic() + GRACE)
    for one in running:
        one.process.kill()
    ended = [one.ended() for one in running]
    assert all(code == 0 for code, _ in ended), "\n".join(map(_said, ended))


def _said(ended: Ended) -> str:
    return f"exit status {ended.code}:\n{ended.said[-3000:]}"


def deviations(one: Path, other: Path) -> dict[str, float]:
    """How far apart two runs are: for each metric the largest difference of any step, relative where the metric is above 1;
    for each file of weights the largest difference of any weight. Both must have the same metrics, steps and weights.
    """
    mine, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    found: dict[str, float] = {}
    for row, other_row in zip(mine, theirs):
        names = {name for name in row if "second" not in name}
        assert names == {name for name in other_row if "second" not in name}
        for name in names:
            found[name] = max(found.get(name, 0.0), abs(row[name] - other_row[name]) / max(abs(row[name]), 1.0))
    files = models(one)
    assert files == models(other)
    for file in files:
        expected, got = load_file(one / file), load_file(other / file)
        assert {name: x.shape for name, x in expected.items()} == {name: x.shape for name, x in got.items()}
        found[str(file)] = max((got[name] - x).abs().max().item() for name, x in expected.items())
    return found


def models(output: Path) -> list[Path]:
    """The files of weights that a run leaves, apart from those in checkpoints."""
    return sorted(path.relative_to(output) for path in output.rglob("*.safetensors") if "checkpoints" not in path.parts)
