"""What tells one model, as it is read, one data set or one response from another: hashes of content, never names."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

DIGEST = 16  # bytes
_BLOCK = 2**24  # bytes of a file that are read at a time


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
        _add_file(digest, path)
    return digest.hexdigest()


def rows_fingerprint(dataset: Dataset, salt: str = "") -> str:
    """A hash of the values in a dataset's columns, and of a salt."""
    digest = hashlib.sha256(salt.encode())
    for column in sorted(dataset.column_names):
        for row in [column, *dataset[column]]:
            digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def digest_of_file(path: Path) -> str:
    """DIGEST bytes in hexadecimal digits, of a file's content."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    _add_file(digest, path)
    return digest.hexdigest()


def response_key(prompt: bytes, response: Sequence[int] | np.ndarray) -> bytes:
    """DIGEST bytes, of a response's ids and of the prompt's, which come as `prompt_key`."""
    return hashlib.blake2b(np.asarray(response, dtype=np.int32).tobytes(), digest_size=DIGEST, key=prompt).digest()


def prompt_key(prompt: Sequence[int] | np.ndarray) -> bytes:
    """DIGEST bytes, of a prompt's ids."""
    return hashlib.blake2b(np.asarray(prompt, dtype=np.int32).tobytes(), digest_size=DIGEST).digest()


def _add_file(digest: "hashlib._Hash | hashlib.blake2b", path: Path) -> None:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
