"""Checkpoints of every training: complete or absent, checked by size and checksum, found newest first, dropped oldest first.

A checkpoint is a folder `<word>-<number>`. It is written aside, flushed, listed in its manifest, renamed into place; then the
file `latest` is moved to its name. Its contents are up to the trainers.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from denserl import distributed
from denserl.errors import UserError
from denserl.files import entry_of, flush, has_checksum, write_flushed

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Value = TypeVar("Value")
# A file's name in a checkpoint, and its bytes and checksum as far as they are known.
Entries = dict[str, dict[str, int | str]]

NAME = re.compile(r"[a-z]+-(\d+)")
MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"


def save_checkpoint(
    folder: Path,
    name: str,
    state: dict,
    engines: dict,
    tensors: dict,
    keep: int,
    describe: Callable[[Path], None] = lambda aside: None,
) -> Path:
    """Write engines (DeepSpeed), this rank's random state, rank 0's tensors and the state as one checkpoint.

    Args:
        state: JSON-able. engines: name -> DeepSpeed engine with `engine_files.EngineFiles`.
        tensors: name -> tensor, the same on every rank, e.g. a moving average of weights.
        keep: newest checkpoints to keep.
        describe: writes, on rank 0, what the models are beside their weights.

    Raises:
        UserError: the disk is full.
    """

    def write(aside: Path) -> Entries:
        for part, engine in engines.items():
            engine.save_checkpoint(str(aside / part), tag="state", save_latest=False)
        save_file(_random_state(), str(aside / f"random-{distributed.rank()}.safetensors"))
        if distributed.rank() == 0:
            describe(aside)
            save_file(tensors, str(aside / "tensors.safetensors"))
            (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
        return entries_of(aside, *engines.values())

    aside = aside_folder(folder, name)
    return commit(aside, folder / name, keep, written=write_or_say_full(aside, write))


def entries_of(aside: Path, *engines: Any) -> Entries:
    """What this rank's engines have just written below a folder."""
    written = {path: entry for engine in engines for path, entry in engine.checkpoint_engine.take_written().items()}
    return {Path(path).relative_to(aside).as_posix(): entry for path, entry in written.items()}


def load_checkpoint(path: Path, engines: dict) -> tuple[dict, dict]:
    """Restore engines and this rank's random state; returns state and tensors."""
    for name, engine in engines.items():
        engine.load_checkpoint(str(path / name), tag="state")
    random = load_file(str(path / f"random-{distributed.rank()}.safetensors"))
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(random["cuda"])
    return read_state(path), load_file(str(path / "tensors.safetensors"))


def read_state(path: Path) -> dict:
    """The JSON part of a checkpoint."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def aside_folder(folder: Path, name: str) -> Path:
    """An empty folder in which every rank writes its part of a checkpoint; what unfinished saves left behind is removed.

    Raises:
        UserError: a rank does not see it, because its host has another file system there.
    """
    aside = folder / f".{name}.partial"
    clear_leftovers(folder)
    if distributed.rank() == 0:
        aside.mkdir(parents=True)
    distributed.barrier()
    if not aside.is_dir():
        raise UserError(
            f"{folder} is not the same folder on all hosts: rank {distributed.rank()} does not see what rank 0 made there",
            "give an `output_dir` on a file system that all hosts share",
        )
    return aside


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing or dropping. By rank 0."""
    if distributed.rank() == 0:
        for left in [*folder.glob(".*.partial"), *folder.glob(".*.dropped")]:
            shutil.rmtree(left, ignore_errors=left.suffix == ".dropped")


def write_or_say_full(aside: Path, write: Callable[[Path], Result]) -> Result:
    """`write(aside)`; where the disk is full, make room again (alone: others may be at it) and say so in a UserError."""
    try:
        return write(aside)
    except Exception as error:
        if not is_disk_full(error):
            raise
        if distributed.world_size() == 1:
            shutil.rmtree(aside, ignore_errors=True)
        complete = [path.name for path in _checkpoints(aside.parent)]
        raise UserError(
            f"no space left on the disk of {aside.parent}: {_name_of(aside)} could not be saved; "
            + (f"{complete[-1]} is complete" if complete else "there is no earlier checkpoint"),
            "make room, then go on with `resume`" if complete else "make room, then start again",
            one_rank=True,
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk or the quota is full."""
    # The writers of weights wrap the system's error in their own, so that only its text is left.
    words = (
        "No space left on device",
        "os error 28",
        "Disk quota exceeded",
        "os error 122",
        "PytorchStreamWriter failed writing",
        "iostream error",
    )
    while error is not None:
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def commit(
    aside: Path, target: Path, keep: int, protected: str | None = None, written: Mapping[str, dict] = MappingProxyType({})
) -> Path:
    """Flush what the ranks wrote in `aside`, list it in a manifest, move it to `target`, then drop old checkpoints.

    The newest `keep` whole ones stay, and the one named `protected`. Collective.

    written: this rank's files that are on the disk, and known, already.
    """
    pointer = target.parent / f".{LATEST}"
    write_or_say_full(aside, lambda aside: _write_manifest(aside, _manifest_entries(aside, written), pointer, target.name))
    if distributed.rank() == 0:
        if target.exists():
            _drop(target)
        os.replace(aside, target)
        flush(target.parent)
        os.replace(pointer, target.parent / LATEST)
        flush(target.parent)
        checkpoints = _checkpoints(target.parent)
        whole = [path for path in checkpoints if _number(path) <= _number(target) and _unlike_manifest(path) is None]
        kept = {path.name for path in whole[-keep:]} | {target.name, protected}
        for path in checkpoints:
            if path.name not in kept:
                _drop(path)
    distributed.barrier()
    return target


def has_checkpoints(folder: Path) -> bool:
    """Whether there is any, whole or damaged."""
    return bool(_checkpoints(folder))


def oldest_number(folder: Path) -> int | None:
    """The number of the oldest checkpoint; None where there is none."""
    return min(map(_number, _checkpoints(folder)), default=None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, at most as new as `latest` says; each damaged one on the way is named. Collective.

    Raises:
        UserError: there are some, but all are damaged.
    """
    # As rank 0 sees the folder: on network storage another host may see an older state of it.
    candidates = distributed.gather_objects(_candidates(folder))[0]
    for path, older in zip(candidates[::-1], [*candidates[-2::-1], None]):
        found = damage(path)
        if found is None:
            return path
        log.warning("checkpoint %s is damaged: %s%s", path.name, found, f"; going back to {older.name}" if older else "")
    if candidates:
        raise UserError(
            f"{folder}: all checkpoints are damaged ({', '.join(path.name for path in candidates)})",
            "restore one from a copy, or start anew in another `output_dir`",
        )
    return None


def damage(path: Path) -> str | None:
    """What differs from the checkpoint's manifest, the first difference in words; None when it is whole. Collective."""
    found = distributed.gather_objects(_unlike_manifest(path) or _other_content(path))
    return next((one for one in found if one), None)


def check_settings(saved: dict, now: dict, harmless: frozenset[str], path: Path) -> None:
    """Compare the settings of a resumed run with those in its checkpoint; harmless changes are logged.

    Raises:
        UserError: a setting differs that weights, optimiser or data depend on; all of them by name.
    """
    changed = {name: (saved.get(name), now.get(name)) for name in [*saved, *(n for n in now if n not in saved)]}
    changed = {name: values for name, values in changed.items() if values[0] != values[1]}
    for name in sorted(changed.keys() & harmless):
        log.info("%s was %s when %s was written; now it is %s", name, changed[name][0], path.name, changed[name][1])
    harmful = [f"{name}: {then}, now {now}" for name, (then, now) in sorted(changed.items()) if name not in harmless]
    if harmful:
        raise UserError(
            f"{path} was written with other settings ({'; '.join(harmful)})",
            "resume with the settings it was written with, or start anew in another `output_dir`",
        )


def _manifest_entries(aside: Path, written: Mapping[str, dict]) -> Entries:
    """Size and checksum of every file, each flushed to the disk; the ranks share what is not known of the others."""
    distributed.barrier()
    # On network storage a rank may not yet see the others' newest files.
    sizes = _joined(distributed.gather_objects(_file_sizes(aside)))
    known = _joined(distributed.gather_objects(dict(written)))
    mine = {}
    for name in _share({name: size for name, size in sizes.items() if name not in known}):
        flush(aside / name)
        mine[name] = entry_of(aside / name)
    return dict(sorted((known | _joined(distributed.gather_objects(mine))).items()))


def _write_manifest(aside: Path, entries: dict[str, dict], pointer: Path, name: str) -> None:
    """Everything that may still need room: the manifest, and the pointer that is then only renamed."""
    if distributed.rank() == 0:
        write_flushed(aside / MANIFEST, json.dumps({"files": entries}, indent=1))
        write_flushed(pointer, name + "\n")
        for folder in [aside, *(path for path in aside.rglob("*") if path.is_dir())]:
            flush(folder)


def _unlike_manifest(path: Path) -> str | None:
    """What is wrong by names and sizes, without reading the files."""
    try:
        entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        sizes = {str(name): int(entry["bytes"]) for name, entry in entries.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    if STATE not in sizes:
        return f"its {MANIFEST} does not list {STATE}"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, the manifest says {size}"
    return None


def _other_content(path: Path) -> str | None:
    """The first file of this rank's share whose checksum is not the manifest's."""
    entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name in _share({name: int(entry["bytes"]) for name, entry in entries.items()}):
        try:
            same = has_checksum(path / name, entries[name])
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not same:
            return f"{name} is not as it was written (other checksum)"
    return None


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints up to the one that `latest` names; all when it names none."""
    checkpoints = _checkpoints(folder)
    try:
        latest = (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        latest = ""
    names = [path.name for path in checkpoints]
    return checkpoints[: names.index(latest) + 1] if latest in names else checkpoints


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def _name_of(aside: Path) -> str:
    return aside.name.removeprefix(".").removesuffix(".partial")


def _file_sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _joined(shares: list[dict[str, Value]]) -> dict[str, Value]:
    return {name: value for share in shares for name, value in share.items()}


def _share(sizes: dict[str, int]) -> list[str]:
    """This rank's names: the largest goes first, each to the rank that has the least by then."""
    shares: list[list[str]] = [[] for _ in range(distributed.world_size())]
    loads = [0] * len(shares)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        shares[lightest].append(name)
        loads[lightest] += sizes[name]
    return shares[distributed.rank()]


def _drop(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that none is ever seen half removed."""
    dropped = path.with_name(f".{path.name}.dropped")
    os.replace(path, dropped)
    # What cannot be removed now, since another host still reads it, is removed at the next save.
    shutil.rmtree(dropped, ignore_errors=True)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
