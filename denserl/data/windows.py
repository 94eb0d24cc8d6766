"""Rows that are read while a training goes on, window by window, for what does not fit the disk.

A window is so many rows of a source, in its order, kept as a file until the training has moved on. What is made of them is made
of that file, as of any other. Where each window begins is written down, so that it can be had again.
"""

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from denserl import distributed
from denserl.data.bad_rows import BadRows
from denserl.data.file_rows import read_file, without_nulls
from denserl.data.hub import go_offline_if_unreachable
from denserl.data.order import StepSampler
from denserl.data.published import hub_source
from denserl.data.readers import is_hub_source
from denserl.data.splits import saved_folder, split_files
from denserl.errors import UserError, require
from denserl.files import make_folder, write_flushed
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

_RECORD, _ROWS = "windows.json", "rows.jsonl"
# A place in a source, as JSON has it; None is its beginning.
Position = Any
# The rows from a place on, each with what says the place behind it.
Read = Callable[[Position], Iterator[tuple[dict, Callable[[], Position]]]]


class Source(NamedTuple):
    """What is read row by row: how, and what changes when its rows do."""

    read: Read
    identity: str


def open_source(source: str, split: str, seed: int, on_bad_row: str) -> Source:
    """A folder or file, whose files come in an order set by seed, or a data set that the hub streams.

    UserError where there is none, or one of `save_to_disk`.
    """
    path = Path(source)
    if path.exists():
        require(
            not (path.is_dir() and saved_folder(path, split)),
            f"`streaming`: {source} is a data set that save_to_disk wrote, which is on the disk, memory-mapped, already",
            "leave `streaming` out",
        )
        files = split_files(path, split) if path.is_dir() else [path]
        order = np.random.default_rng(stream(seed, Purpose.BLENDING)).permutation(len(files))
        files = [files[number] for number in order]
        sizes = repr([(str(file.relative_to(path.parent)), file.stat().st_size) for file in files])
        return Source(lambda position: _of_files(files, position, on_bad_row), hashlib.sha256(sizes.encode()).hexdigest()[:32])
    require(is_hub_source(source), f"there is no file or folder {source!r}", "check the path")
    return Source(lambda position: _of_hub(source, split, position), f"{source}[{split}]")


def _of_files(files: list[Path], position: Position, on_bad_row: str) -> Iterator[tuple[dict, Callable[[], Position]]]:
    first, skip = position or (0, 0)
    for number in range(first, len(files)):
        bad_rows = BadRows(on_bad_row)
        for index, (_, row) in enumerate(read_file(files[number], bad_rows), 1):
            bad_rows.check()
            if index > skip:
                yield row, functools.partial(list, (number, index))
        bad_rows.check()
        if bad_rows.total:
            log.warning("%s: %s", files[number], bad_rows.summary())
        skip = 0


def _of_hub(source: str, split: str, position: Position) -> Iterator[tuple[dict, Callable[[], Position]]]:
    name, config, split = hub_source(source, split)
    go_offline_if_unreachable()
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        found = f"{source!r} is no file or folder, and the hub streams no such dataset and split ({split}): {error}"
        raise UserError(found, "check the name, the split and the network, or give a path") from error
    if position is not None:
        rows.load_state_dict(position)
    try:
        for row in rows:
            yield without_nulls(row), rows.state_dict
    except OSError as error:
        raise UserError(f"the stream of {source!r} broke off: {error}", "go on with `resume` when the hub is back") from error


class Windows:
    """The windows of a source, one after another; a source that ends begins anew.

    Rows have numbers of their own over all windows; those of the last two windows can be had.

    Args:
        size: rows of a window, as they are read. folder: that all ranks see, where windows are kept.
        make: file of rows, folder to keep tables in -> what is made of the rows. Collective.
    """

    def __init__(self, source: Source, size: int, folder: Path, make: Callable[[Path, Path], datasets.Dataset]):
        self.source, self.size, self.folder, self.make = source, size, folder, make
        # Of windows: where the source is behind each, and how many rows are made of it.
        self.known: list[dict] = []
        self.at_hand: dict[int, datasets.Dataset] = {}

    def begin(self, anew: bool) -> None:
        """Take over what an earlier start has written down; anew: forget it. Collective."""
        if distributed.rank() == 0:
            if anew:
                shutil.rmtree(self.folder, ignore_errors=True)
            make_folder("output_dir", str(self.folder))
        distributed.barrier()
        file = self.folder / _RECORD
        self.known = distributed.gather_objects(json.loads(file.read_text()) if file.is_file() else [])[0]

    def __len__(self) -> int:
        """Rows of the windows so far."""
        return sum(window["made"] for window in self.known)

    def __getitem__(self, row: int) -> dict:
        for number, rows in self.at_hand.items():
            first = self.first_row(number)
            if first <= row < first + len(rows):
                return rows[row - first]
        raise IndexError(f"row {row} is of a window that is not at hand")

    def first_row(self, number: int) -> int:
        """The number of a window's first row."""
        return sum(window["made"] for window in self.known[:number])

    def rows_of(self, number: int) -> int | None:
        """How many rows are made of a window; None of one that was not read so far."""
        return self.known[number]["made"] if number < len(self.known) else None

    def open(self, number: int) -> datasets.Dataset:
        """The rows of a window, the next one or one that was read before. The one before it stays at hand. Collective."""
        target = self.folder / f"window-{number:06d}"
        behind = distributed.in_own_time(lambda: self._written(number, target) if distributed.rank() == 0 else None)[0]
        rows = self.make(target / _ROWS, target / "cache")
        require(len(rows) > 0, f"none of the rows in {target / _ROWS} can be used", "look at them, and at `columns`")
        self.at_hand = {kept: self.at_hand[kept] for kept in self.at_hand if kept == number - 1} | {number: rows}
        self._remove_others()
        if number == len(self.known):
            self.known.append({"behind": behind, "made": len(rows)})
            if distributed.rank() == 0:
                aside = self.folder / f".{_RECORD}"
                write_flushed(aside, json.dumps(self.known))
                os.replace(aside, self.folder / _RECORD)
        distributed.barrier()
        return rows

    def close(self) -> None:
        """Remove the windows; where they begin stays known. Collective."""
        distributed.barrier()
        self.at_hand = {}
        self._remove_others()

    def _remove_others(self) -> None:
        """By rank 0, all windows but those at hand."""
        kept = {f"window-{number:06d}" for number in self.at_hand}
        for other in self.folder.glob("window-*") if distributed.rank() == 0 else ():
            if other.name not in kept:
                shutil.rmtree(other)

    def _written(self, number: int, target: Path) -> Position:
        """Write the rows of a window into its file; where the source is behind them, None at its end."""
        begins = self.known[number - 1]["behind"] if number else None
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        count, place = _write(self.source.read(begins), self.size, target / _ROWS)
        if not count and begins is not None:
            count, place = _write(self.source.read(None), self.size, target / _ROWS)
        require(count > 0, "`streaming`: the source has no row", "give another one")
        log.info("window %d: %d rows read", number, count)
        if count < self.size:
            log.info("the source ends there, and begins anew with the next window")
            return None
        return place()


def _write(rows: Iterator[tuple[dict, Callable[[], Position]]], size: int, target: Path) -> tuple[int, Callable[[], Position]]:
    """Write so many rows; how many there were, and what says the place behind the last one."""
    count, behind = 0, _nowhere
    with target.open("w", encoding="utf-8") as file:
        for row, place in islice(rows, size):
            file.write(json.dumps(row, default=str) + "\n")
            count, behind = count + 1, place
    return count, behind


def _nowhere() -> Position:
    return None


class WindowSampler:
    """`StepSampler` over windows: each is a pass of its own, in an order set by seed and its number.

    Args beyond those of `StepSampler`:
        lengths: tokens of each row of a window. steps: how many are taken in all.
        start: asked when a pass begins: the steps that need not be given again, for which nothing is read.
    """

    def __init__(
        self,
        windows: Windows,
        lengths: Callable[[datasets.Dataset], list[int]],
        step_rows: int,
        micro_rows: int,
        seed: int,
        steps: int,
        start: Callable[[], int],
    ):
        self.windows, self.lengths, self.step_rows, self.micro_rows = windows, lengths, step_rows, micro_rows
        self.seed, self.steps, self.start = seed, steps, start

    def __len__(self) -> int:
        return self.steps * self._forwards

    @property
    def _forwards(self) -> int:
        """Micro-batches of a step on one rank."""
        return self.step_rows // distributed.world_size() // self.micro_rows

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        return islice(self._endless(self.start()), len(self))

    def _endless(self, start: int) -> Iterator[list[tuple[int, bool]]]:
        number = step = 0
        while True:
            made = self.windows.rows_of(number)
            if made is not None and step + (steps := -(-made // self.step_rows)) <= start:
                # Whoever goes on from a checkpoint leaves as many out.
                yield from ([] for _ in range(steps * self._forwards))
            else:
                rows = self.windows.open(number)
                first, as_pass = self.windows.first_row(number), functools.partial(int, number)
                of_window = StepSampler(self.lengths(rows), self.step_rows, self.micro_rows, self.seed, as_pass)
                for micro in of_window:
                    yield [(first + row, counted) for row, counted in micro]
                steps = of_window.steps
            number, step = number + 1, step + steps
