"""What tells one model, as it is read, one data set or one response from another: hashes of content, never names."""

import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from denserl.data.features import CHUNK, selected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIGEST = 16  # bytes
_BLOCK = 2**24  # bytes of a file that are read at a time
_TICK = 0.02  # seconds: within one, a file may change without another time

version = functools.cache(importlib.metadata.version)  # of a library, which is looked for along Python's path each time


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
    return " ".join([file_fingerprint(folder, dtype), attention, *map(version, ("torch", "transformers")), own])


@functools.cache
def _hash_of_files(files: tuple[tuple[Path, int, int], ...], salt: str) -> str:
    """A hash of names and bytes. files: path, size and time of each, which tell whether the hash still holds."""
    digest = hashlib.sha256(salt.encode())
    for path, *_ in files:
        digest.update(path.name.encode())
        _add_file(digest, path)
    return digest.hexdigest()


def identities(files: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size and times of files: other content has others, since a file is waited for to be a tick of the clock old."""
    found = [(file.absolute(), file.stat()) for file in files]
    newest = max((max(stat.st_mtime, stat.st_ctime) for _, stat in found), default=0.0)
    time.sleep(min(max(newest + _TICK - time.time(), 0.0), _TICK))
    return [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in found]


def rows_fingerprint(dataset: Dataset) -> str:
    """A hash of the types and values in a dataset's columns, however they lie in memory or files."""
    names = sorted(dataset.column_names)
    digests: dict[tuple[str, int], Any] = {}
    for table in dataset.with_format("arrow").iter(CHUNK):
        table = table.combine_chunks()
        for name in names:
            for chunk in table[name].chunks:
                for number, part in enumerate(_flat(chunk)):
                    digests.setdefault((name, number), hashlib.sha256()).update(part)
    told = [(name, str(dataset.features.arrow_schema.field(name).type)) for name in names]
    parts = [(*key, digests[key].hexdigest()) for key in sorted(digests)]
    return hashlib.sha256(repr((told, len(dataset), parts)).encode()).hexdigest()


def selection_fingerprint(dataset: Dataset) -> str:
    """A hash of the rows as those of a table and of which they are: another one than `rows_fingerprint`, and soon made."""
    digest = hashlib.sha256(rows_fingerprint(Dataset(dataset.data, dataset.info, fingerprint="whole")).encode())
    numbers = selected(dataset)
    digest.update(b"" if isinstance(numbers, slice) else numbers.tobytes())
    return digest.hexdigest()


def rows_fingerprint_of_text(dataset: Dataset) -> str:
    """The hash of a dataset's values that checkpoints of version 0.1 hold."""
    digest = hashlib.sha256()
    for column in sorted(dataset.column_names):
        for row in itertools.chain([column], dataset[column]):
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


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that a tokenizer is saved with, its template too, of its class's code and of libraries' versions."""
    digest = hashlib.sha256(Path(inspect.getfile(type(tokenizer))).read_bytes())
    digest.update(repr([version(name) for name in ("transformers", "tokenizers", "jinja2")]).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _flat(array: pa.Array) -> Iterator[Any]:
    """The bytes of an array's values: of those of lists and texts behind their lengths, whose sum tells where each begins."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        yield pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
        yield from _flat(array.flatten())
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        yield pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False)
        kept = pc.fill_null(array, "").cast(pa.large_string())
        _, offsets, data = kept.buffers()
        ends = np.frombuffer(offsets, np.int64)[kept.offset : kept.offset + len(kept) + 1]
        yield memoryview(data)[ends[0] : ends[-1]] if data is not None else b""
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        yield array.is_null().to_numpy(zero_copy_only=False)
        yield pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    else:
        yield "".join(json.dumps(value, default=str) + "\n" for value in array.to_pylist()).encode()
