"""command.json in every output folder: the commands that wrote there, with settings, versions, inputs and times.

It is for people and their scripts; denserl reads nothing from it but where a warning says what trained a policy. What a
resumed run must agree with is in its checkpoints.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from denserl.cli.versions import versions
from denserl.config import Config, RunConfig
from denserl.data.inputs import contents, of_inputs, stamp
from denserl.errors import Stopped, UserError
from denserl.files import COMMAND_FILE as RECORD
from denserl.files import make_folder, replace_whole

log = logging.getLogger(__name__)


@contextlib.contextmanager
def recorded(command: str, argv: list[str], options: Config, program: str = "denserl") -> Iterator[None]:
    """Add an entry to `output_dir`/command.json while a command runs, and say there how it ended. Rank 0 writes.

    A command that is refused before it has changed anything in the folder leaves none.
    """
    if not hasattr(options, "output_dir") or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(options.output_dir)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder("output_dir", options.output_dir)
    file, state = folder / RECORD, _state(folder)
    before = file.read_bytes() if file.is_file() else None
    entries, settings = _entries(file, before), resolved_settings(options)
    entry = {
        "command": shlex.join([program, command, *argv]),
        "settings": settings,
        "versions": dict(versions()),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "started": _now(),
        "ended": None,
        "outcome": None,
        "inputs": of_inputs(options, stamp),
    }
    _write(file, [*entries, entry])
    try:
        yield
        # Now, since whoever is told of a mistake should not wait for it; that nothing has changed is to be seen.
        hashes = of_inputs(options, lambda path: stamp(path) | contents(path, settings.get("dtype", "")))
        entry |= {"outcome": "finished", "inputs": hashes}
    except BaseException as error:
        if isinstance(error, UserError) and _state(folder) == state:
            _take_back(file, before, made)
            raise
        how = "stopped" if isinstance(error, Stopped) else "failed"
        entry["outcome"] = f"{how}: {(str(error) or type(error).__name__).splitlines()[0]}"
        raise
    finally:
        if entry["outcome"]:
            _write(file, [*entries, entry | {"ended": _now()}])


def resolved_settings(options: Config) -> dict[str, Any]:
    """All options of a command, with device and precision as they are taken where they were left to it."""
    settings = dataclasses.asdict(options)
    if isinstance(options, RunConfig):
        # Here, for it loads what the other commands do without.
        from denserl.trainer.start import device_and_precision

        device, dtype = device_and_precision(options)
        settings |= {"device": device.type, "dtype": dtype}
        if settings.get("gradient_checkpointing", False) is None:
            settings["gradient_checkpointing"] = device.type == "cuda"
    return settings


def _entries(file: Path, content: bytes | None) -> list[dict]:
    """The entries so far."""
    try:
        found = json.loads(content or b"[]")
    except ValueError as error:
        log.warning("%s is not JSON (%s) and is written anew", file, error)
        return []
    return found if isinstance(found, list) else [found]


def _write(path: Path, entries: list[dict]) -> None:
    """The file replaced whole. What it is about does not fail because of it."""
    try:
        replace_whole(path, json.dumps(entries, indent=2) + "\n")
    except OSError as error:
        log.warning("%s is not written: %s", path, error.strerror)


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of what is in a folder, and in the folders in it, but the record and what a kill left of it."""
    found = {path: path.stat() for path in (*folder.glob("*"), *folder.glob("*/*")) if path.exists()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items() if RECORD not in path.name}


def _take_back(file: Path, before: bytes | None, made: list[Path]) -> None:
    """Leave the record, and the folders that were made for it, as they were."""
    if before is not None:
        file.write_bytes(before)
        return
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # one that is not empty stays
        for path in made:
            path.rmdir()


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
