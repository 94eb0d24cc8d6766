"""What every row of the benchmark shares: options, timing two sides in turn, peers' processes, floors, the table and its file.

What is timed is in the rows' own files, and what a peer's process does in peers/.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# Before torch: idle threads must not spin while the other side works.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from denserl.errors import UserError

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
# Of TRL's settings, those that would make it do work that ours does not: checkpointing recomputes the forward pass, bf16
# changes the arithmetic. Neither side writes checkpoints.
TRL_SETTINGS = {"gradient_checkpointing": False, "bf16": False, "use_cpu": True, "save_strategy": "no"}
RESULT_KEYS = ("row", "name", "ours", "theirs", "ratio", "spread", "reach", "met")


@dataclass(kw_only=True)
class Options:
    """What a row is measured with."""

    device: str = "cpu"
    model: str | None = None
    threads: int = 2
    repeats: int | None = None
    pairs: int | None = None
    data: Path = REPOSITORY.parent / "shared/data"
    runs: Path = REPOSITORY / "runs/bench"

    def models(self, *shapes: str) -> tuple[str, ...]:
        """The shapes to measure: the one asked for, else those that the row names."""
        return (self.model,) if self.model else shapes


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser whose arguments are the fields of `Options`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=Options.device, help="where to measure")
    parser.add_argument("--model", help="only this shape: layers x hidden (4x128, 8x256), or 1b; default: the row's own")
    parser.add_argument("--threads", type=int, default=Options.threads, help="CPU threads of either side")
    parser.add_argument("--repeats", type=int, help="repetitions that count; default: the row's own number")
    parser.add_argument("--pairs", type=int, help="how many pairs rows 9 and 10 prepare; default: the row's own number")
    parser.add_argument("--data", type=Path, default=Options.data, help="folder with ultrafeedback-1k/; read in place")
    parser.add_argument("--runs", type=Path, default=Options.runs, help="folder for peers, models and results")
    return parser


def as_options(parsed: argparse.Namespace) -> Options:
    """The options among parsed arguments; torch gets its threads here."""
    options = Options(**{field.name: vars(parsed)[field.name] for field in fields(Options)})
    torch.set_num_threads(options.threads)
    return options


class Result(NamedTuple):
    """One line of the table. Larger ratios are better, except for a limit, whose name says so."""

    row: int
    name: str
    ours: float
    theirs: float | None
    ratio: float
    spread: tuple[float, float]  # lower and upper quartile of the paired ratios
    reach: float
    met: bool
    note: str = ""


class Pairs(NamedTuple):
    """What each repetition cost on either side: seconds, or seconds per unit of work."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours was, repetition by repetition."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def alternate(ours: Callable[[], float], theirs: Callable[[], float], repeats: int, warm_up: int = 1) -> Pairs:
    """Run both sides in turn, `warm_up` times uncounted and then `repeats` times; each call returns what it cost."""
    return Pairs(*in_turns([ours, theirs], repeats, warm_up))


def in_turns(sides: Sequence[Callable[[], float]], repeats: int, warm_up: int = 1) -> list[list[float]]:
    """Each side's costs, `repeats` of them. The order turns round with every repetition, so that no drift favours a side."""
    costs: list[list[float]] = [[] for _ in sides]
    for repetition in range(warm_up + repeats):
        numbers = range(len(sides))
        for number in numbers if repetition % 2 == 0 else reversed(numbers):
            cost = sides[number]()
            if repetition >= warm_up:
                costs[number].append(cost)
    return costs


def timed(function: Callable[[], object], per: float = 1.0) -> Callable[[], float]:
    """A repetition that costs the seconds of `function` / `per`; on CUDA until the device is done."""

    def repetition() -> float:
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        return (time.perf_counter() - start) / per

    return repetition


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compared(row: int, name: str, pairs: Pairs, reach: float, *, rate: bool = False, note: str = "") -> Result:
    """Ours against theirs: the ratio is the median of the paired ratios, met where it is at least `reach`.

    rate: show what was done per second (1 / cost) in place of the cost.
    """
    ours, theirs = (float(np.median(side)) ** (-1 if rate else 1) for side in pairs)
    ratio = float(np.median(pairs.ratios))
    return Result(row, name, ours, theirs, ratio, quartiles(pairs.ratios), reach, ratio >= reach, note)


def limited(
    row: int, name: str, values: Sequence[float], reach: float, *, theirs: float | None = None, note: str = ""
) -> Result:
    """A limit: the ratio is the median of `values`, met where it is at most `reach`. The name must say that it is a limit."""
    middle = float(np.median(values))
    ours = middle if theirs is None else middle * theirs
    return Result(row, name, ours, theirs, middle, quartiles(values), reach, middle <= reach, note)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile, interpolated between neighbours."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


class Worker:
    """A program in another interpreter that sets up once, then does one repetition for each line it is sent.

    It idles between repetitions. Its side of the talk is peers/serve.py.

    Args:
        python: the interpreter. program: its script.
        setup: sent first, as JSON; the answer, given when the program is ready, is `about`.
        threads: CPU threads of the program.
        log: file for everything else that it prints.
    """

    def __init__(self, python: Path, program: Path, setup: dict, threads: int, log: Path):
        own = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [str(python), str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **own},
            )
        self.about = self.repeat(**setup)

    def repeat(self, **request) -> dict:
        """One repetition; its answer holds `seconds`. RuntimeError with the end of the log where the program has ended."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and so has its output
        answer = self.process.stdout.readline()
        if not answer:
            end = "\n".join(self.log.read_text().splitlines()[-12:])
            raise RuntimeError(f"{self.process.args[1]} ended with status {self.process.wait()}; {self.log} ends:\n{end}")
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def cpu_only(options: Options) -> None:
    """UserError for a row whose other side, or whose engine, is set up for the CPU."""
    if options.device != "cpu":
        raise UserError(f"--device {options.device}: this row is measured on CPU", "python benchmarks/gpu.py --device cuda")


def peer_python(options: Options, name: str) -> Path:
    """The interpreter of a peer's environment. UserError where `make bench-peers` has not made it."""
    folder = options.runs / "peers" / name
    if not (folder / "installed").exists():
        raise UserError(f"the peer {name} is not installed: {folder}/installed does not exist", "make bench-peers")
    return folder / "bin/python"


def engine_python(options: Options) -> Path:
    """The interpreter of vLLM's environment. UserError where `make runs/vllm/installed` has not made it."""
    folder = options.runs.parent / "vllm"
    if not (folder / "installed").exists():
        raise UserError(f"vLLM is not installed: {folder}/installed does not exist", "make runs/vllm/installed")
    return folder / "bin/python"


@cache
def matrix_rate(device: str, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a square matrix product, the best of a few: what arithmetic floors are counted in."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b)


@cache
def copy_rate(device: str, size: int = 2**26) -> float:
    """Bytes read and written per second by a large copy, the best of a few: what floors of bytes are counted in."""
    a, b = (torch.zeros(size, dtype=torch.float32, device=device) for _ in range(2))
    return 2 * 4 * size / best_seconds(lambda: a.copy_(b))


def best_seconds(function: Callable[[], object], repeats: int = 8) -> float:
    """The shortest of `repeats` runs, after one that is not counted."""
    run = timed(function)
    run()
    return min(run() for _ in range(repeats))


def floors(measured: float, flops: float, moved: float, device: str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """A note: measured seconds, and the two least times that this machine needs for so many FLOP and bytes."""
    arithmetic, traffic = flops / matrix_rate(device, dtype), moved / copy_rate(device)
    times = f"measured {measured:.3g} s; floors: arithmetic {arithmetic:.3g} s, bytes {traffic:.3g} s"
    return f"{times} ({max(arithmetic, traffic) / measured:.0%} of measured)"


def table(results: Sequence[Result]) -> str:
    """The results as text, one line each, with their notes under it."""
    head = ("row", "name", "ours", "theirs", "ratio", "quartiles", "reach", "met")
    lines = [head, *(_cells(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [[f"      {line}" for line in result.note.splitlines()] for result in results]
    return "\n".join([text[0], *(part for line, note in zip(text[1:], notes, strict=True) for part in (line, *note))])


def _cells(result: Result) -> tuple[str, ...]:
    numbers = ("-" if x is None else f"{x:.4g}" for x in (result.ours, result.theirs, result.ratio))
    spread = "{:.3g} - {:.3g}".format(*result.spread)
    return (str(result.row), result.name, *numbers, spread, f"{result.reach:.4g}", "yes" if result.met else "NO")


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results.json, each result with RESULT_KEYS; rows of an earlier file that were not measured now are kept."""
    rows = {result.row for result in results}
    earlier = json.loads(path.read_text()) if path.exists() else []
    kept = [entry for entry in earlier if entry["row"] not in rows]
    new = [{key: result._asdict()[key] for key in RESULT_KEYS} for result in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sorted(kept + new, key=lambda entry: entry["row"]), indent=1) + "\n")


def run_alone(measure: Callable[[Options], list[Result]]) -> None:
    """The `main` of a row's file: parse the options, measure, print the table."""
    options = as_options(arguments(measure.__doc__).parse_args())
    ending_well(lambda: print(table(measure(options))))


def run_parts(parts: Mapping[str, Callable[[Any], dict]], options: Any, path: Path) -> None:
    """Run the `parts` that options name, for their `seeds`, and write what each finds; other parts in the file stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        print(f"\n{part}", flush=True)
        found = parts[part](options)
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, part: {"seeds": options.seeds, **found}}, indent=1))
    print(f"\n{path}")


def ending_well(function: Callable[[], object]) -> None:
    """Run `function`; a user's mistake is told without a traceback, with exit status 2."""
    try:
        function()
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        raise SystemExit(2) from None
