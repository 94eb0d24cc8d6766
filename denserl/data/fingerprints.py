"""What tells one model, as it is read, or one data set from another: hashes of their content, never their names."""

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path

from datasets import Dataset


def file_fingerprint(folder: str | Path, dtype: str) -> str:
    """A hash of a model folder's config and safetensors bytes, and of the precision it is run in.

    Files are read again only when their sizes or times have changed.
    """
    paths = sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"])
    return _hash_of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths), dtype)


def reading_fingerprint(folder: str | Path, dtype: str, attention: str, trust_remote_code: bool) -> str:
    """`file_fingerprint` with all else that changes what a model says: attention kernel, libraries, and code of its own.

    trust_remote_code: whether Python files in the folder are run.
    """
    code = sorted(Path(folder).rglob("*.py")) if trust_remote_code else []
    own = _hash_of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in code), "") if code else ""
    libraries = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return " ".join([file_fingerprint(folder, dtype), attention, *libraries, own])


@functools.cache
def _hash_of_files(files: tuple[tuple[Path, int, int], ...], salt: str) -> str:
    """A hash of names and bytes. files: path, size and time of each, which tell whether the hash still holds."""
    digest = hashlib.sha256(salt.encode())
    for path, *_ in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def rows_fingerprint(dataset: Dataset, salt: str = "") -> str:
    """A hash of the values in a dataset's columns, and of a salt."""
    digest = hashlib.sha256(salt.encode())
    for column in sorted(dataset.column_names):
        for row in [column, *dataset[column]]:
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
