"""The columns of our data sets, and data sets made of rows that need not all be in memory."""

import dataclasses
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
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


def build_dataset(rows: Iterable[dict], features: datasets.Features) -> datasets.Dataset:
    """A dataset of the rows, packed chunk by chunk, so that never all of them exist as Python objects."""
    as_json = [name for name, feature in features.items() if isinstance(feature, JsonText)]
    schema, tables = features.arrow_schema, []
    chunk: list[dict] = []

    def pack() -> None:
        encoded = [{**row, **{name: features[name].encode_example(row[name]) for name in as_json}} for row in chunk]
        tables.append(pa.Table.from_pylist(encoded, schema=schema))
        chunk.clear()

    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            pack()
    pack()
    return datasets.Dataset(pa.concat_tables(tables))


def list_lengths(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """(N,) how many items each row's list has; the lists themselves are never read into Python."""
    chunks = dataset.select_columns([column]).with_format("arrow").iter(CHUNK)
    return np.concatenate([np.zeros(0, np.int64), *(pc.list_value_length(chunk[column]).to_numpy() for chunk in chunks)])
