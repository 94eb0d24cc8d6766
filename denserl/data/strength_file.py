"""How sure several reward models are of each pair, kept in a file, a line a pair, under the names of the published annotations.

The file is data as well: its rows are preferences that `load_preferences` reads. What is computed of strengths is in
rewards/strength.py. Source: arXiv 2401.06080.
"""

import bisect
import hashlib
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import ArrayLike

from denserl.data.bad_rows import BadRow, BadRows, LeftOut, finish
from denserl.data.messages import number_of
from denserl.data.readers import read_rows
from denserl.data.rendering import assistant
from denserl.data.schemas import SIDES, as_preference
from denserl.errors import UserError, require
from denserl.files import flush

logger = logging.getLogger(__name__)

STRENGTH_FILE = "strength.jsonl"
MEAN, STD = "mean preference difference", "std preference difference"
SCORES = {side: f"{side} score list" for side in SIDES}
_AGAIN = "measure the strength of these pairs: denserl strength with the same `data`, and what else chooses and orders its rows"


class Strength(NamedTuple):
    """Of N pairs: how much better members hold the chosen response for than the rejected one, as (N,) fp64 each."""

    mean: np.ndarray  # of the members' differences of scores
    std: np.ndarray  # of the same, over the members there are (not a sample's)
    votes: np.ndarray  # share of members that score the chosen response higher, a tie half

    def rows(self, numbers: ArrayLike) -> "Strength":
        """Of some of them."""
        return Strength(*(column[np.asarray(numbers)] for column in self))


def strength_of(chosen: ArrayLike, rejected: ArrayLike) -> Strength:
    """The strength of N pairs from the scores of M members.

    Args:
        chosen, rejected: (M, N), on one scale; NaN, in one of both or in both, where a member has no say.

    Raises:
        ValueError: shapes that differ, scores that are infinite, or a pair of which no member has both scores.
    """
    difference = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    if difference.ndim != 2 or np.shape(chosen) != np.shape(rejected):
        raise ValueError(f"scores of shapes {np.shape(chosen)} and {np.shape(rejected)}; expected (M, N) both")
    if np.isinf(difference).any() or np.isnan(difference).all(0).any():
        raise ValueError("scores are infinite, or there is a pair that no member scores")
    votes = np.where(np.isnan(difference), np.nan, (difference > 0) + 0.5 * (difference == 0))
    return Strength(np.nanmean(difference, 0), np.nanstd(difference, 0), np.nanmean(votes, 0))


def write_strength(path: Path | str, pairs: datasets.Dataset, chosen: ArrayLike, rejected: ArrayLike) -> None:
    """Write the pairs with the scores of their members, whole or not at all.

    Args:
        pairs: N rows as `load_preferences` gives them.
        chosen, rejected: as of `strength_of`; a member that has no say of a pair is not in the lists of its row.
    """
    path, found = Path(path), strength_of(chosen, rejected)
    if len(pairs) != len(found.mean):
        raise ValueError(f"{len(pairs)} pairs and scores of {len(found.mean)}")
    both = np.array([chosen, rejected], dtype=np.float64)
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "w", encoding="utf-8") as file:
        for number, row in enumerate(pairs):
            sides = {side: [*row["prompt"], assistant(row[side])] for side in SIDES}
            scores = both[:, :, number]
            lists = dict(zip(SCORES.values(), scores[:, ~np.isnan(scores).any(0)].tolist(), strict=True))
            of_pair = {MEAN: float(found.mean[number]), STD: float(found.std[number])}
            file.write(json.dumps({**sides, **of_pair, **lists}, ensure_ascii=False, allow_nan=False) + "\n")
    flush(aside)
    os.replace(aside, path)
    flush(path.parent)


def read_strength(
    path: Path | str, pairs: Iterable[Mapping[str, Any]], split: str = "train", on_bad_row: str = "stop"
) -> Strength:
    """The strengths of the pairs, as a file has them.

    The file has a row of each pair, told by its texts but for blanks around them, in the pairs' order; rows of other pairs may
    stand between.

    Args:
        path: as `write_strength` writes it, a folder with STRENGTH_FILE, or what else `read_rows` reads, whose split it is.
        pairs: rows as `load_preferences` gives them: prompt, chosen, rejected, place.
        on_bad_row: whether a row that cannot be used stops the reading, or is dropped and counted.

    Raises:
        UserError: bad rows; a pair without a row, or whose row stands elsewhere.
    """
    path = Path(path) / STRENGTH_FILE if (Path(path) / STRENGTH_FILE).is_file() else path
    bad_rows = BadRows(on_bad_row)
    rows = list(_rows(str(path), split, bad_rows))
    finish(bad_rows, str(path), len(rows))
    numbers = _matched([row.key for row in rows], pairs, str(path), [row.place for row in rows])
    if len(numbers) < len(rows):
        logger.info("%s: %d of its %d rows are of other pairs", path, len(rows) - len(numbers), len(rows))
    return Strength(*np.array([rows[number].strength for number in numbers], dtype=np.float64).reshape(-1, 3).T)


class _Row(NamedTuple):
    key: bytes  # of its texts
    place: str
    strength: tuple[float, float, float]


def _rows(path: str, split: str, bad_rows: BadRows) -> Iterator[_Row]:
    for place, row in read_rows(path, split, bad_rows):
        try:
            yield _Row(_key(as_preference(row, as_is=True)), place, _numbers(row))
        except (BadRow, LeftOut) as error:
            bad_rows.add(place, str(error), getattr(error, "fix", ""))


def _numbers(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean, std and share of votes. BadRow where one is missing or is no such number."""
    mean, std = _number(row, MEAN), _number(row, STD)
    if std < 0:
        raise BadRow(f"{STD!r} is {row[STD]!r}; expected a number of at least 0")
    chosen, rejected = (_list(row, SCORES[side]) for side in SIDES)
    if len(chosen) != len(rejected):
        raise BadRow(f"{SCORES['chosen']!r} has {len(chosen)} scores, {SCORES['rejected']!r} {len(rejected)}")
    return mean, std, sum((c > r) + 0.5 * (c == r) for c, r in zip(chosen, rejected)) / len(chosen)


def _number(row: Mapping[str, Any], name: str) -> float:
    if row.get(name) is None:
        raise BadRow(f"it has no {name!r}", "give a file that denserl strength has written, or one of that shape")
    number = number_of(row[name])
    if not math.isfinite(number):
        raise BadRow(f"{name!r} is {row[name]!r}; expected a finite number")
    return number


def _list(row: Mapping[str, Any], name: str) -> list[float]:
    scores = row.get(name)
    numbers = [number_of(score) for score in scores] if isinstance(scores, list) else []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise BadRow(f"{name!r} is no list of finite numbers, one of each member")
    return numbers


def _matched(keys: Sequence[bytes], pairs: Iterable[Mapping[str, Any]], path: str, places: Sequence[str]) -> list[int]:
    """The number of each pair's row. UserError for the first pair that has none in its turn."""
    found: list[int] = []
    where: dict[bytes, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        where[key].append(number)
    for count, pair in enumerate(pairs):
        mine, last = where.get(_key(pair), []), found[-1] if found else -1
        at = bisect.bisect_right(mine, last)
        place = pair.get("place", f"row {count}")
        require(mine, f"{path} has no row of the pair at {place}: it is missing there, or its texts are others", _AGAIN)
        if at == len(mine):
            before = f"before {places[last]}, which is of an earlier pair"
            raise UserError(
                f"the rows of {path} have moved: that of the pair at {place} is {places[mine[-1]]}, {before}", _AGAIN
            )
        found.append(mine[at])
    return found


def _key(pair: Mapping[str, Any]) -> bytes:
    """A hash of the texts of a pair, without blanks around them."""
    turns = [*pair["prompt"], assistant(pair["chosen"]), assistant(pair["rejected"])]
    trimmed = [{**turn, "content": turn["content"].strip()} for turn in turns]
    return hashlib.blake2b(json.dumps(trimmed, sort_keys=True).encode(), digest_size=16).digest()
