"""The columns of our data sets, and data sets made of rows that need not all be in memory."""

import contextlib
import dataclasses
import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import register_feature

CHUNK = 1000  # rows that exist as Python objects at a time


@dataclass
class JsonText:
    """Any value of JSON's kinds, stored as its text: the arguments of tool calls have no common Arrow type.

    `datasets.Json` reads numbers back only to some of their digits.
    """

    pa_type: ClassVar[Any] = pa.string()
    _type: str = dataclasses.field(default="JsonText", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def encode_example(self, value: object) -> str:
        return json.dumps(value)

    def decode_example(self, value: str, token_per_repo_id: dict | None = None) -> Any:
        return json.loads(value)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that the function is experimental
    register_feature(JsonText, "JsonText")

TEXT = datasets.Value("string")
MESSAGES = JsonText()  # a list of messages
RESPONSE = JsonText()  # a text, or a message
IDS = datasets.List(datasets.Value("int32"))
NUMBER = datasets.Value("float64")
TEXTS = datasets.List(TEXT)
NUMBERS = datasets.List(NUMBER)


# Where data sets are written as they are made; None: they are kept in memory.
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def written_into(folder: Path) -> Iterator[None]:
    """Data sets that are built meanwhile are files of this folder, memory-mapped: one chunk of them at a time is in memory."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def build_dataset(rows: Iterable[dict], features: datasets.Features) -> datasets.Dataset:
    """A dataset of the rows, packed chunk by chunk, so that never all of them exist as Python objects."""

    def tables() -> Iterator[pa.Table]:
        chunk: list[dict] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK:
                yield packed(chunk, features)
                chunk.clear()
        yield packed(chunk, features)

    return joined(tables(), features)


def packed(rows: list[dict], features: datasets.Features) -> pa.Table:
    """The rows as a table."""
    as_json = [name for name, feature in features.items() if isinstance(feature, JsonText)]
    encoded = [{**row, **{name: features[name].encode_example(row[name]) for name in as_json}} for row in rows]
    return pa.Table.from_pylist(encoded, schema=features.arrow_schema)


def joined(tables: Iterable[pa.Table], features: datasets.Features) -> datasets.Dataset:
    """A dataset of the tables, in memory or in a file (`written_into`)."""
    schema, folder = features.arrow_schema, _FOLDER.get()
    if folder is None:
        # Without a fingerprint the library pickles the whole table to make one.
        return datasets.Dataset(pa.concat_tables([schema.empty_table(), *tables]), fingerprint=secrets.token_hex(8))
    descriptor, file = tempfile.mkstemp(suffix=".arrow", dir=folder)
    with os.fdopen(descriptor, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)
    return datasets.Dataset.from_file(file, info=datasets.DatasetInfo(features=features))


def with_column(dataset: datasets.Dataset, name: str, values: Any, feature: Any) -> datasets.Dataset:
    """The dataset with a column, in the place of one of that name.

    What is selected of a table is written out for it, which the library would do in the folder of the table, whose files
    are then others: here in its folder of passing files, which ends with the process.
    """
    others = dataset.remove_columns(name) if name in dataset.column_names else dataset
    beside_table = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        return others.add_column(name, values, feature=feature)
    finally:
        if beside_table:
            datasets.enable_caching()


def selected(dataset: datasets.Dataset) -> np.ndarray | slice:
    """Which rows of its table (`dataset.data`) a dataset is, in their order: read as such, each takes the library a while."""
    return slice(None) if dataset._indices is None else dataset._indices.column(0).to_numpy()


def array_of(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """A column of numbers: (N,), without a Python object for each."""
    return dataset.data.column(column).to_numpy()[selected(dataset)]


def list_lengths(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """(N,) how many items each row's list has; the lists themselves are never read into Python."""
    return pc.list_value_length(dataset.data.column(column)).to_numpy()[selected(dataset)]


def longest_row(dataset: datasets.Dataset, *columns: str) -> int:
    """The most that lists of the columns hold together in a row; 0 without rows."""
    return int(np.sum([list_lengths(dataset, column) for column in columns], axis=0).max(initial=0))
