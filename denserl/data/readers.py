"""Rows from files, folders and the hub, several sources blended by weight.

The rows of one file are read in file_rows.py, a folder's splits told in splits.py; what the fields of a row mean is in
schemas.py, the count of bad rows in bad_rows.py.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from denserl import distributed
from denserl.data.bad_rows import BadRow, BadRows, LeftOut, finish
from denserl.data.columns import Columns
from denserl.data.features import CHUNK, TEXT, build_dataset, joined, packed
from denserl.data.file_rows import DATA_SUFFIXES, place_of, read_file, without_nulls
from denserl.data.fingerprints import identities, rows_fingerprint
from denserl.data.hub import go_offline_if_unreachable, is_hub_name
from denserl.data.processes import cores, in_processes
from denserl.data.published import hub_source
from denserl.data.rendering import texts_in
from denserl.data.schemas import READ_KEYS
from denserl.data.splits import saved_folder, split_files
from denserl.errors import UserError
from denserl.files import refuse_lfs_pointer
from denserl.streams import Purpose, stream
from denserl.terminal import visible

logger = logging.getLogger(__name__)

_NAMED = 12  # keys that are not read, which a line of the log names
_SHOWN_AFTER = 5  # seconds of work, from which on its progress is shown


def read_rows(source: str, split: str, bad_rows: BadRows | None = None) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", row) of a data file, of a folder's files, or of a dataset on the Hugging Face hub.

    Lines that cannot be read go to `bad_rows` (None: the first one raises). UserError when the source is missing, has
    no such split, or is broken from some point on (gzip, parquet).
    """
    path = Path(source)
    try:
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except OSError as error:  # a name too long, or a folder that must not be entered
        raise UserError(f"{source!r}: {error.strerror}", "check the path") from error
    if is_folder and source:
        saved = saved_folder(path, split)
        if saved is not None:
            yield from _saved_rows(saved)
        for file in split_files(path, split) if saved is None else []:
            yield from read_file(file, bad_rows)
    elif is_file:
        yield from read_file(path, bad_rows)
    elif exists and source:  # a pipe would be waited for, and is gone when it is read again
        raise UserError(f"{source} is neither a file nor a folder", "write the rows to a file")
    elif is_hub_source(source):
        yield from _hub_rows(source, split)
    else:
        raise UserError(f"there is no file or folder {source!r}", "check the path")


def is_hub_source(source: str) -> bool:
    """Whether the words name a data set on the hub, as NAME or NAME:CONFIG."""
    name, _, config = source.partition(":")
    is_name = is_hub_name(name) and not source.lower().endswith(DATA_SUFFIXES)
    return bool(is_name and ("/" in name or ":" not in source) and re.fullmatch(r"[\w.-]*", config))


class RowOptions(TypedDict, total=False):
    """What every loader of rows may be told; defaults and meanings are those of `load_rows`."""

    split: str
    weights: list[float] | None
    on_bad_row: str
    limit: int | None
    seed: int
    every: int
    columns: Mapping[str, str]
    columns_needed: bool


def load_rows(
    sources: list[str],
    convert: Callable[[object], dict | list[dict]],
    features: datasets.Features,
    *,
    split: str = "train",
    weights: list[float] | None = None,
    on_bad_row: str = "stop",
    limit: int | None = None,
    seed: int = 0,
    every: int = 1,
    columns: Mapping[str, str] = {},
    columns_needed: bool = True,
    read: Collection[str] = READ_KEYS,
    unread: Callable[[object], set[str]] = lambda row: set(),
    check_size: Callable[[str, str, int], None] | None = None,
) -> datasets.Dataset:
    """The sources' rows as `convert` makes them (BadRow: a bad row, LeftOut: one to leave out), blended, with a column `place`.

    convert: makes one row of each, or a list of several, which `every` and `limit` then count.
    every: of each source, its first row and each `every`th after it, of those that are used.
    columns: key that is read -> its name in the rows; columns_needed: a name that no row has is an error. read: all such keys.
    unread: row -> the keys of it that are not read, which are logged.
    check_size: called with source, split and rows (bad ones too, not those left out) of what is read whole from the hub.
    """
    if not sources:
        raise UserError("no data source is given", "name a file, a folder or a hub dataset")
    check_weights(sources, weights)
    if limit is not None and limit < 1:
        raise UserError(f"`limit` is {limit}", "let it be at least 1, or leave it out")
    # natural proportions can only be known when every source is read to its end
    most = limit * every if limit is not None and (weights or len(sources) == 1) else None
    renamed = Columns(columns, {*read, *features})
    accounts = [(source, BadRows(on_bad_row), _Account()) for source in sources]
    features = datasets.Features({**features, "place": TEXT})
    parts = []
    for source, bad_rows, account in accounts:
        rows = ((place, renamed(row)) for place, row in read_rows(source, split, bad_rows))
        part = build_dataset(_converted(rows, convert, bad_rows, account, unread, most), features)
        account.log(source, len(part), bad_rows.total)
        if check_size is not None and most is None and not Path(source).exists():
            check_size(source, split, len(part) + bad_rows.total)
        parts.append(part)
    if columns_needed:
        renamed.check()
    for part, (source, bad_rows, account) in zip(parts, accounts):
        finish(bad_rows, source, len(part), account.left_out.total())
    return blend([part if every == 1 else part.select(range(0, len(part), every)) for part in parts], weights, limit, seed)


@dataclass
class _Account:
    """Of a source: how many rows were used, and left out for which reason, and which keys of its rows are not read."""

    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)

    def log(self, source: str, made: int, bad: int) -> None:
        count = self.used + bad + self.left_out.total()
        become = f"; the others make {made}" if made != self.used else ""
        logger.info("%s: %d rows read, %d of them bad%s%s", source, count, bad, become, not_read(self.unread))
        for reason, count in self.left_out.items():
            logger.info("%s: %d rows left out: %s", source, count, reason)


def check_weights(sources: list, weights: list[float] | None) -> None:
    """UserError unless there is one positive, finite weight per source, or none at all."""
    if weights is not None and (len(weights) != len(sources) or not all(math.isfinite(w) and w > 0 for w in weights)):
        raise UserError(
            f"`data_weights` has {len(weights)} weights {weights} for {len(sources)} data sources; each needs one above 0",
            "give one positive weight per source, or no weights",
        )


def blend(parts: list, weights: list[float] | None, limit: int | None, seed: int) -> datasets.Dataset:
    """One dataset of several: a weight is a source's share of the rows, drawn by `seed` without replacement.

    The result is as long as the shares and `limit` allow before one source is exhausted, in random order. Without
    weights every row is taken (up to `limit`, in the sources' own proportions). A single source keeps its order.
    With weights and a `limit` only the first `limit` rows of each source were read.
    """
    if len(parts) == 1:
        return parts[0] if limit is None else parts[0].select(range(min(limit, len(parts[0]))))
    sizes = np.array([len(part) for part in parts])
    shares = np.asarray(sizes if weights is None else weights, dtype=float)
    if not shares.sum():
        return parts[0]
    shares = shares / shares.sum()
    total = min(size / share for size, share in zip(sizes, shares) if share)
    total = math.floor(total + 1e-6) if limit is None else min(limit, math.floor(total + 1e-6))
    bounds = np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * total).astype(int)
    counts = np.minimum(np.diff(bounds), sizes)
    rng = np.random.default_rng(stream(seed, Purpose.BLENDING))
    drawn = [part.select(rng.permutation(len(part))[:count]) for part, count in zip(parts, counts)]
    merged = datasets.concatenate_datasets(drawn)
    return merged.select(rng.permutation(len(merged)))


def not_read(keys: Collection[str]) -> str:
    """The end of a line that names the keys of rows that are not read; empty where there are none."""
    names = [visible(name, kept="") or "''" for name in sorted(keys)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"; not read: {', '.join(names[:_NAMED])}{more}" if names else ""


def map_rows(
    dataset: datasets.Dataset,
    encode: Callable[[dict], Iterable[dict]],
    features: datasets.Features,
    on_bad_row: str,
    marks: re.Pattern | None = None,
    counts: Counter[str] | None = None,
) -> datasets.Dataset:
    """The dataset of the rows that `encode` makes of each row (none, one or several; BadRow: a bad row).

    In several processes, where there are many rows: what `encode` counts, it counts in `counts`.

    marks: of the chat template's own; rows with texts that hold such are counted in a warning.
    """
    bad_rows, counts = BadRows(on_bad_row), Counter() if counts is None else counts
    marked: Counter[str] = Counter()
    counted: Counter[str] = Counter()

    def of_chunk(first: int) -> tuple[pa.Table, BadRows, Counter[str], Counter[str]]:
        """Of the rows from this number on: the table that they make, and all that was found in them."""
        counts.clear()
        bad, hits = BadRows(on_bad_row), Counter[str]()
        made: list[dict] = []
        for number, row in enumerate(dataset.select(range(first, min(first + CHUNK, len(dataset)))), first):
            found = (marks.search(text) for text in texts_in({**row, "place": None})) if marks else ()
            hits.update(next(([hit[0]] for hit in found if hit), []))
            try:
                made += encode(row)
            except BadRow as error:
                bad.add(row.get("place", f"row {number}"), str(error), error.fix)
        return packed(made, features), bad, hits, Counter(counts)

    def tables() -> Iterator[pa.Table]:
        chunks = range(0, len(dataset), CHUNK)
        made = in_processes(of_chunk, chunks, min(cores(), len(chunks)))
        # In thousands; nothing is shown of what is soon done.
        bar = tqdm(made, "rows", len(chunks), unit="k", delay=_SHOWN_AFTER, disable=distributed.rank() > 0)
        for table, bad, hits, found in bar:
            bad_rows.take(bad)
            marked.update(hits)
            counted.update(found)
            yield table

    result = joined(tables(), features)
    counts.clear()
    counts.update(counted)
    finish(bad_rows, "tokenised data", len(result))
    if marked:
        often = "%d of %d rows hold marks that the chat template itself writes, such as %r; they are read as plain text, and a "
        often += "conversation that was rendered already is better given as messages"
        logger.warning(often, marked.total(), len(dataset), visible(marked.most_common(1)[0][0], kept=""))
    return result


def _converted(
    rows: Iterable[tuple[str, dict]],
    convert: Callable[[object], dict | list[dict]],
    bad_rows: BadRows,
    account: _Account,
    unread: Callable[[object], set[str]],
    most: int | None,
) -> Iterator[dict]:
    good = 0
    for place, row in rows:
        try:
            converted = convert(row)
        except BadRow as error:
            bad_rows.add(place, str(error), error.fix)
            continue
        except LeftOut as reason:
            account.left_out[str(reason)] += 1
            continue
        account.unread.update(unread(row))
        account.used += 1
        for one in converted if isinstance(converted, list) else [converted]:
            yield {**one, "place": place}
            good += 1
            if good == most:
                return


def source_identity(source: str, split: str) -> list:
    """What changes when the source's rows do: its files with sizes and times, or a hash of rows that are in none."""
    path = Path(source)
    if path.is_dir() and source:
        saved = saved_folder(path, split)
        return identities(split_files(path, split) if saved is None else sorted(saved.iterdir()))
    if path.exists() or not is_hub_source(source):
        return identities([path] if path.is_file() else [])
    dataset, _ = _hub_dataset(source, split)
    return identities([Path(file["filename"]) for file in dataset.cache_files]) or [rows_fingerprint(dataset)]


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, dict]]:
    yield from _dataset_rows(*_hub_dataset(source, split)[::-1])


def _hub_dataset(source: str, split: str) -> tuple[datasets.Dataset, str]:
    """A data set on the hub, fetched unless it is stored, and what its rows are called in messages."""
    name, config, split = hub_source(source, split)
    go_offline_if_unreachable()
    try:
        return datasets.load_dataset(name, config, split=split), f"{source}[{split}]"
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source!r} is no file or folder, and the hub gives no such dataset and split ({split}): {error}",
            "check the name, the split and the network, or give a path",
        ) from error


def _saved_rows(folder: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a data set that `Dataset.save_to_disk` wrote."""
    for file in folder.glob("*.arrow"):
        refuse_lfs_pointer(file)
    try:
        yield from _dataset_rows(str(folder), datasets.load_from_disk(str(folder)))
    except (OSError, ValueError, LookupError, TypeError) as error:  # Arrow's errors are among them
        raise UserError(f"{folder}: the saved data set cannot be read: {error}", "save or fetch it again") from error


def _dataset_rows(name: str, dataset: Iterable[dict]) -> Iterator[tuple[str, dict]]:
    for number, row in enumerate(dataset, 1):
        yield place_of(name, number), without_nulls(row)
