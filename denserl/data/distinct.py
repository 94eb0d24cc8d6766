"""The responses of a dataset by number, all of its first side first: which are the same, how long they are, and their ids.

What is done with each of them once is not known here.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from denserl.data.fingerprints import DIGEST, prompt_key, response_key

PROMPT = "prompt_ids"
_SLICE = 4096  # rows whose ids are in memory at a time


class Distinct(NamedTuple):
    """R responses, and the D that differ of them, in order of appearance."""

    place: np.ndarray  # (R,) number among those that differ
    keys: pa.Array  # (D,) `response_key`
    first: np.ndarray  # (D,) the number of the first response of each
    prompts: np.ndarray  # (D,) a number that is the same for the same prompt
    lengths: np.ndarray  # (D,) tokens, with the prompt's


def take(dataset: Dataset, sides: Sequence[str], numbers: Sequence[int], *columns: str) -> tuple[list, ...]:
    """The prompts' ids, and of each column, such as ids of SIDE_ids, the values, of the responses with these numbers."""
    size = len(dataset)
    rows = dataset[[number % size for number in numbers]]
    found = ([rows[f"{sides[number // size]}_{name}"][slot] for slot, number in enumerate(numbers)] for name in columns)
    return rows[PROMPT], *found


def distinct_responses(dataset: Dataset, sides: Sequence[str]) -> Distinct:
    """What the responses of a dataset (columns prompt_ids and SIDE_ids of each side) are; few rows are in memory at a time."""
    keys, prompts = ([bytearray() for _ in sides] for _ in range(2))
    lengths: list[list[np.ndarray]] = [[] for _ in sides]
    rows = dataset.with_format("arrow")
    for start in range(0, len(dataset), _SLICE):
        part = rows[start : start + _SLICE]
        of_prompts = [(prompt_key(ids), len(ids)) for ids in _ids(part, PROMPT)]
        for number, side in enumerate(sides):
            ids = list(_ids(part, f"{side}_ids"))
            for (prompt, _), row in zip(of_prompts, ids, strict=True):
                keys[number] += response_key(prompt, row)
                prompts[number] += prompt
            lengths[number].append(np.array([length + len(row) for (_, length), row in zip(of_prompts, ids, strict=True)]))
    differing = _digests(b"".join(keys)).dictionary_encode()
    place = differing.indices.to_numpy()
    first = np.unique(place, return_index=True)[1]
    of_prompt = _digests(b"".join(prompts)).dictionary_encode().indices.to_numpy()
    length = np.concatenate([np.zeros(0, np.int64), *(part for of_side in lengths for part in of_side)])
    return Distinct(place, differing.dictionary, first, of_prompt[first], length[first])


def _ids(rows: pa.Table, column: str) -> Iterator[np.ndarray]:
    """The ids of each row, as int32, whatever integers the column has."""
    lists = rows[column].combine_chunks()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    ids = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    start = 0
    for end in ends.tolist():
        yield ids[start:end]
        start = end


def _digests(joined: bytes) -> pa.Array:
    kind = pa.binary(DIGEST)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(joined) // DIGEST, [None, pa.py_buffer(joined)])
