"""What a frozen model says of responses, on disk: in shards, by what it was asked, and in tables, as the rows of a data set.

Every file is an Arrow stream, which `datasets.Dataset.from_file` reads, and is named by a digest of its own bytes: it is
renamed into place when it is on the disk, runs that write at the same time never write to one file, and what is damaged does
not go by its name any more. What the responses are, and how a model is asked, is not known here.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from denserl.data.fingerprints import DIGEST, digest_of_file
from denserl.files import flush

log = logging.getLogger(__name__)

SHARD_TOKENS = 2**22  # of responses, after which a shard is written: 16 MB
SHARD_SECONDS = 60.0  # after which one is written, whatever it holds
SHARDS, TABLES = "responses", "joined"  # what names of files begin with
VALUES = {"logprob": pa.float64(), "entropy": pa.list_(pa.float32())}
_TABLE_ROWS = 4096  # in memory while a table is written
_ABANDONED = 24 * 3600  # seconds after which nobody goes on writing a file


class ReferenceStore:
    """The folder of one model; it is read anew by `places`.

    A shard has the columns key (16 bytes), logprob (of the whole response) and entropy (nats, one a token).
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.partial"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        self.folder = folder
        self._whole: dict[Path, Dataset] = {}
        self._rows: Dataset | None = None

    def places(self, keys: pa.Array) -> np.ndarray:
        """(n,) where what was said to each key stands in the store, for `write_table`; -1 for what is not there."""
        for path in sorted(self.folder.glob(f"{SHARDS}-*.arrow")):
            if path not in self._whole and is_whole(path):
                self._whole[path] = Dataset.from_file(str(path))
        if not self._whole:
            return np.full(len(keys), -1)
        self._rows = concatenate_datasets(list(self._whole.values())).with_format("arrow")
        stored = self._rows.data.column("key").combine_chunks()
        return pc.index_in(keys, value_set=stored).fill_null(-1).to_numpy()

    def table(self, name: str) -> Path | None:
        """The table of that name, if there is a whole one."""
        return next(filter(is_whole, sorted(self.folder.glob(f"{TABLES}-{name}-*.arrow"))), None)

    def write_table(self, name: str, places: Mapping[str, np.ndarray]) -> Path:
        """A table of columns SIDE_logprob and SIDE_entropy.

        places: by side, those of the responses of each row (`places`).
        """
        schema = pa.schema([(f"{side}_{value}", kind) for side in places for value, kind in VALUES.items()])
        rows = len(next(iter(places.values())))
        parts = (
            pa.table([column for place in places.values() for column in self._read(place[first : first + _TABLE_ROWS])], schema)
            for first in range(0, rows, _TABLE_ROWS)
        )
        return _write(self.folder, f"{TABLES}-{name}", schema, parts)

    def _read(self, places: np.ndarray) -> Iterator[pa.Array]:
        rows = self._rows[places.tolist()]
        return (rows[value].combine_chunks() for value in VALUES)


class ShardWriter:
    """Keeps what a model says while it says it; in a `with` statement, to its end or until something fails."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._begin()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, key: bytes, values: np.ndarray) -> None:
        """values: (response tokens, 2) fp32, log-probability and entropy."""
        self._keys.append(key)
        self._logprobs.append(values[:, 0].sum(dtype=np.float64))
        # A copy, since a view would keep the whole batch.
        self._entropies.append(values[:, 1].copy())
        self._tokens += len(values)
        if self._tokens >= SHARD_TOKENS or time.monotonic() - self._began >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added since the last shard."""
        keys, logprobs, entropies = self._keys, self._logprobs, self._entropies
        self._begin()
        if keys:
            offsets = np.cumsum([0, *map(len, entropies)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(offsets, np.concatenate(entropies))
            schema = pa.schema([("key", pa.binary(DIGEST)), *VALUES.items()])
            _write(self.folder, SHARDS, schema, [pa.table([pa.array(keys, pa.binary(DIGEST)), logprobs, lists], schema)])

    def _begin(self) -> None:
        self._keys: list[bytes] = []
        self._logprobs: list[float] = []
        self._entropies: list[np.ndarray] = []
        self._tokens, self._began = 0, time.monotonic()


def is_whole(path: Path) -> bool:
    """Whether a file is what it was when it got its name; one that is not is removed, with a word."""
    try:
        whole = path.stem.endswith(digest_of_file(path))
    except FileNotFoundError:
        return False  # another run has found it damaged
    if not whole:
        log.warning("%s is damaged, and was removed; what it held is computed again", path)
        path.unlink(missing_ok=True)
    return whole


def _write(folder: Path, begins: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> Path:
    """A file of the parts, brought to the disk and then to its name."""
    aside = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for part in parts:
                writer.write_table(part)
        flush(aside)
        target = folder / f"{begins}-{digest_of_file(aside)}.arrow"
        os.replace(aside, target)
        flush(folder)
        return target
    finally:
        aside.unlink(missing_ok=True)
