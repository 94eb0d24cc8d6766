"""Row 13: bytes and seconds of a checkpoint, against the weights and moments themselves and a plain write of as many bytes.

A fine-tuning saves after every step. Weights once and the two moments of AdamW, all in fp32, are what a checkpoint cannot do
without. The plain write is a file of that size, in equal parts from all ranks, flushed to the same disk, after which the one
before is removed, as old checkpoints are. The two take turns.
"""

import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import fixtures
import numpy as np
import torch
from harness import Options, Result, cpu_only, limited, run_alone

from denserl import distributed
from denserl.trainer.config import SFTConfig
from denserl.trainer.engine import trained_parameters
from denserl.trainer.run_folder import OutputFolder
from denserl.trainer.sft_trainer import SFTTrainer

SHAPE, REPEATS = "4x384", 5
REACH_BYTES, REACH_TIME = 1.05, 1.5
SETTINGS = ((0, 1), (2, 1), (2, 2))  # ZeRO stage, ranks
BYTES_A_WEIGHT = 12


class Save(NamedTuple):
    """What one checkpoint came to, all ranks together: bytes, those of weights and moments, seconds, those of a plain write."""

    bytes: int
    own: int
    seconds: float
    plain: float


def measure(options: Options) -> list[Result]:
    """Bytes and time of checkpoints: limits, smaller is better."""
    cpu_only(options)
    results = []
    for shape in options.models(SHAPE):
        model = fixtures.language_model(options, shape)
        for stage, ranks in SETTINGS:
            saves = saves_on_ranks(options, model, stage, ranks)
            results += compared_with_plain(f"ZeRO {stage}, {ranks} rank{'s' * (ranks > 1)}, {shape}", saves)
    return results


def compared_with_plain(name: str, saves: list[Save]) -> list[Result]:
    own, plain = saves[0].own, sorted(save.plain for save in saves)[len(saves) // 2]
    sizes, times = [save.bytes / save.own for save in saves], [save.seconds / save.plain for save in saves]
    rate = f"plain write: {own / 2**20:.0f} MiB at {own / plain / 2**20:.0f} MiB/s"
    return [
        limited(13, f"bytes of a checkpoint (limit), {name}", sizes, REACH_BYTES, theirs=float(own)),
        limited(13, f"seconds of a checkpoint (limit), {name}", times, REACH_TIME, theirs=plain, note=rate),
    ]


def saves_on_ranks(options: Options, model: Path, stage: int, ranks: int) -> list[Save]:
    """The checkpoints of a fine-tuning, each rank a process of its own."""
    (options.runs / "out").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=options.runs / "out"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    places = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    try:
        with ProcessPoolExecutor(ranks, multiprocessing.get_context("spawn")) as pool:
            return [pool.submit(saves_of, options, model, stage, folder, place) for place in places][0].result()
    finally:
        shutil.rmtree(folder)


def saves_of(options: Options, model: Path, stage: int, folder: Path, place: dict[str, str]) -> list[Save]:
    """The checkpoints that a rank sees, but for the first."""
    os.environ.update(place)
    torch.set_num_threads(options.threads)
    saves: list[Save] = []
    write = OutputFolder.save

    def save(kept: OutputFolder, trainer: SFTTrainer) -> None:
        own = BYTES_A_WEIGHT * numbers_of(trainer.model)
        content = torch.rand(own // 4 // distributed.world_size()).numpy()
        sides = {
            "seconds": lambda: write(kept, trainer),
            "plain": lambda: write_plainly(folder / f"plain-{distributed.rank()}", len(saves), content),
        }
        took = {side: seconds_together(sides[side]) for side in sorted(sides, reverse=len(saves) % 2 == 0)}
        files = kept.checkpoint(trainer.state.global_step).rglob("*")
        saves.append(Save(sum(path.stat().st_size for path in files if path.is_file()), own, **took))

    with mock.patch.object(OutputFolder, "save", save):
        SFTTrainer.from_config(settings(model, folder, stage, (options.repeats or REPEATS) + 1)).run()
    return saves[1:]


def settings(model: Path, folder: Path, stage: int, steps: int) -> SFTConfig:
    """A fine-tuning of so many steps that saves after each."""
    data = folder / f"text-{os.environ['RANK']}.jsonl"
    rows = int(os.environ["WORLD_SIZE"])
    data.write_text('{"text": "One short line to learn from."}\n' * rows * steps)
    return SFTConfig(
        model=str(model),
        data=[str(data)],
        output_dir=str(folder / "run"),
        batch_size=rows,
        micro_batch_size=1,
        zero_stage=stage,
        save_steps=1,
        save_total_limit=1,
        device="cpu",
        dtype="fp32",
    )


def numbers_of(model: torch.nn.Module) -> int:
    """How many numbers are trained; under ZeRO-3 a parameter that is spread says so."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained_parameters(model))


def seconds_together(work: Callable[[], object]) -> float:
    """Seconds until all ranks have done their part."""
    distributed.barrier()
    start = time.perf_counter()
    work()
    distributed.barrier()
    return time.perf_counter() - start


def write_plainly(path: Path, number: int, content: np.ndarray) -> None:
    """A file of that number, flushed to the disk; then the one before is removed."""
    with open(path.with_suffix(f".{number}"), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(f".{number - 1}").unlink(missing_ok=True)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
