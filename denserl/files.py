"""Files and folders brought to the disk, so that they survive a loss of power; checksums. What is in them is not known here."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

from denserl.errors import UserError, require

log = logging.getLogger(__name__)

COMMAND_FILE = "command.json"  # in every output folder: the command that wrote it
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_BLOCK = 2**16  # bytes that are looked through at a time
_SUMMED_BLOCK = 2**22  # bytes that are summed at a time
# Against damage, not against forgery: nearly as fast as memory, so that it costs little beside the disk.
CHECKSUM = "xxh3_128"
_SUMS: dict[str, Callable[[], Any]] = {CHECKSUM: xxhash.xxh3_128, "sha256": hashlib.sha256}


def without_outputs(files: Iterable[Path], root: Path) -> list[Path]:
    """The files but those in folders below `root` that a command wrote, which are no data and are named in the log."""
    folder_of = {
        file: next((folder for folder in file.parents if root in folder.parents and (folder / COMMAND_FILE).is_file()), None)
        for file in files
    }
    if passed := {str(folder) for folder in folder_of.values() if folder}:
        log.info("not read, being what a command wrote: %s", ", ".join(sorted(passed)))
    return [file for file, folder in folder_of.items() if folder is None]


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, text: str) -> None:
    """Write a text file and wait until it is on the disk."""
    path.write_text(text, encoding="utf-8")
    flush(path)


class SummedFile:
    """A new file that is summed while it is written, so that nothing is read back; a context, after which it is on the disk.

    `entry` then holds its bytes and its checksum. `torch.save` takes it for a file.
    """

    def __init__(self, path: str | Path):
        self.file, self.sum = open(path, "wb"), _SUMS[CHECKSUM]()
        self.entry: dict[str, int | str] = {}

    def __enter__(self) -> "SummedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self.file:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.entry = {"bytes": self.file.tell(), CHECKSUM: self.sum.hexdigest()}

    def write(self, data: bytes | memoryview) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def entry_of(path: Path) -> dict[str, int | str]:
    """Bytes and checksum of a file, as `SummedFile` tells them of one that it writes."""
    return {"bytes": path.stat().st_size, CHECKSUM: _summed(path, CHECKSUM)}


def has_checksum(path: Path, entry: dict[str, int | str]) -> bool:
    """Whether a file's content has the checksum of its entry: SHA-256 in those of earlier versions."""
    kind = next((name for name in _SUMS if name in entry), None)
    return kind is not None and _summed(path, kind) == entry[kind]


def _summed(path: Path, kind: str) -> str:
    found = _SUMS[kind]()
    with open(path, "rb") as file:
        while block := file.read(_SUMMED_BLOCK):
            found.update(block)
    return found.hexdigest()


def replace_whole(path: Path, text: str) -> None:
    """Write a text file that is there whole or, as it was before, not at all. What a kill left of it, the next one replaces."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        write_flushed(aside, text)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def cut_torn_line(path: Path) -> int:
    """Cut off a file's last line where it does not end, as a kill may have left it; the number of bytes that are kept."""
    with open(path, "r+b") as file:
        whole = end = file.seek(0, os.SEEK_END)
        found = -1
        while whole and found < 0:
            start = max(whole - _BLOCK, 0)
            file.seek(start)
            found = file.read(whole - start).rfind(b"\n")
            whole = start + found + 1
        if whole < end:
            file.truncate(whole)
    return whole


def make_folder(option: str, path: str) -> None:
    """Create a folder to write into, which an option names. UserError when that cannot be done."""
    fix = "give a folder that can be written"
    require(path, f"`{option}` is empty", fix)
    try:
        require(not Path(path).is_file(), f"`{option}` {path} is a file; expected a folder, or a new name", fix)
        Path(path).mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, ValueError) as error:  # a name that no file system has
        raise UserError(f"`{option}` {path}: {error.strerror if isinstance(error, OSError) else error}", fix) from error
    require(writable, f"`{option}` {path}: not writable", fix)


def check_target(option: str, path: str) -> None:
    """UserError unless a file that an option names can be written, in a folder that is there."""
    fix, target = "give a file in a folder that can be written", Path(path)
    require(path and not target.is_dir(), f"`{option}` {path} is a folder" if path else f"`{option}` is empty", fix)
    require(target.parent.is_dir(), f"`{option}` {path}: the folder {target.parent} does not exist", fix)
    require(os.access(target.parent, os.W_OK), f"`{option}` {path}: {target.parent} is not writable", fix)


def refuse_lfs_pointer(path: Path) -> None:
    """UserError for a file that only says where Git LFS keeps the real one."""
    try:
        with open(path, "rb") as file:
            opening = file.read(len(_LFS_POINTER))
    except OSError:
        return  # which who reads it will say
    require(
        opening != _LFS_POINTER,
        f"{path} is a pointer of Git LFS; the file itself was not fetched",
        "run git lfs pull in its repository",
    )
