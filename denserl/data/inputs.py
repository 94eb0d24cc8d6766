"""What the options of a command name to be read: which files, how large and how old they are, and a hash of what is in them."""

import contextlib
import datetime
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from denserl.config import INPUT, MODEL, Config, options_of

LARGEST_HASHED = 2**30  # bytes of data; of more, size and time must do
CONFIG = "config.json"  # which makes a folder a model's


def of_inputs(options: Config, about: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, dict]]:
    """What is known of each input, by option and as it is named there."""

    def known(path: str) -> dict[str, Any]:
        try:
            return about(path)
        except (OSError, ValueError) as error:  # gone or not to be read, or a name that no file has
            return {"unreadable": str(error)}

    inputs = [option.name for option in options_of(type(options)) if INPUT in option.marks or MODEL in option.marks]
    named = {name: getattr(options, name) for name in inputs}
    paths = {name: [value] if isinstance(value, str) else list(value) for name, value in named.items() if value}
    return {name: {path: known(path) for path in values} for name, values in paths.items()}


def stamp(path: str) -> dict[str, Any]:
    """Where an input is, its size in bytes and when it was last changed: of a folder the sum and the latest.

    Of a name on the hub the revision that was fetched, where it is known.
    """
    files = _files(Path(path))
    if not files:
        return revision_of(path)
    stats = [file.stat() for file in files]
    changed = datetime.datetime.fromtimestamp(max(stat.st_mtime for stat in stats), datetime.timezone.utc)
    return {
        "path": os.path.abspath(path),
        "bytes": sum(stat.st_size for stat in stats),
        "changed": changed.isoformat(timespec="seconds"),
    }


def contents(path: str, dtype: str) -> dict[str, str]:
    """A hash of what is in an input: of a model precision:hash, as it is stored with reward models; of data SHA-256."""
    folder, files = Path(path), _files(Path(path))
    if (folder / CONFIG).is_file():
        # Here, for it loads what some commands do without.
        from denserl.data.fingerprints import file_fingerprint

        return {"fingerprint": f"{dtype}:{file_fingerprint(folder, dtype)[:32]}"}
    if not files or sum(file.stat().st_size for file in files) > LARGEST_HASHED:
        return {}
    return {"sha256": _sha256(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))}


@functools.cache
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of the bytes of files, one behind the other. files: path, size and time of each, which tell whether it still holds."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """The file itself; of a folder the files that make it a model, or those in it and in the folders in it, in order."""
    if path.is_file():
        return [path]
    found = [path / CONFIG, *path.glob("*.safetensors")] if (path / CONFIG).is_file() else [*path.glob("*"), *path.glob("*/*")]
    return sorted(file for file in found if file.is_file())


def revision_of(name: str) -> dict[str, str]:
    """The commit of a hub name as it was last fetched; nothing where that is not known."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from denserl.data.hub import split_revision

    repository, revision = split_revision(name.partition(":")[0])
    for kind, file in (("model", CONFIG), ("dataset", "README.md")):
        with contextlib.suppress(HFValidationError):  # words, and paths that lead nowhere
            found = try_to_load_from_cache(repository, file, revision=revision, repo_type=kind)
            if isinstance(found, str):
                return {"revision": Path(found).parent.name}
    return {}
