"""Rows from files, folders and the hub, several sources blended by weight.

What the fields of a row mean is in schemas.py, the count of bad rows in bad_rows.py.
"""

import codecs
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from denserl.data.bad_rows import BadRows, finish
from denserl.data.hub import go_offline_if_unreachable, is_hub_name
from denserl.data.published import hub_source
from denserl.data.schemas import BadRow, LeftOut
from denserl.errors import UserError
from denserl.streams import Purpose, stream
from denserl.terminal import visible

logger = logging.getLogger(__name__)

DATA_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".txt")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
# JSON files that are no data: those beside data, or in a model folder that was given by mistake.
_METADATA = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "model.safetensors.index.json",
)  # fmt: skip
_BROKEN = (EOFError, OSError, zlib.error)
_CHUNK = 1000


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
        for file in _split_files(path, split):
            yield from _read_file(file, bad_rows)
    elif is_file:
        yield from _read_file(path, bad_rows)
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


def load_rows(
    sources: list[str],
    convert: Callable[[object], dict],
    features: datasets.Features,
    *,
    split: str,
    weights: list[float] | None,
    on_bad_row: str,
    limit: int | None,
    seed: int,
    every: int = 1,
    check_size: Callable[[str, str, int], None] | None = None,
) -> datasets.Dataset:
    """The sources' rows as `convert` makes them (BadRow: a bad row, LeftOut: one to leave out), blended, with a column `place`.

    every: of each source, its first row and each `every`th after it, of those that are used.
    check_size: called with source, split and rows (bad ones too, not those left out) of what is read whole from the hub.
    """
    if not sources:
        raise UserError("no data source is given", "name a file, a folder or a hub dataset")
    check_weights(sources, weights)
    if limit is not None and limit < 1:
        raise UserError(f"`limit` is {limit}", "let it be at least 1, or leave it out")
    bad_rows = BadRows(on_bad_row)
    # natural proportions can only be known when every source is read to its end
    most = limit * every if limit is not None and (weights or len(sources) == 1) else None
    features = datasets.Features({**features, "place": datasets.Value("string")})
    parts = []
    for source in sources:
        before = bad_rows.total
        left_out: Counter[str] = Counter()
        rows = _converted(read_rows(source, split, bad_rows), convert, bad_rows, left_out, most)
        part = build_dataset(rows, features)
        bad = bad_rows.total - before
        logger.info("%s: %d rows read, %d of them bad", source, len(part) + bad + left_out.total(), bad)
        for reason, count in left_out.items():
            logger.info("%s: %d rows left out: %s", source, count, reason)
        if check_size is not None and most is None and not Path(source).exists():
            check_size(source, split, len(part) + bad)
        parts.append(part if every == 1 else part.select(range(0, len(part), every)))
    finish(bad_rows, [(source, len(part)) for source, part in zip(sources, parts)])
    return blend(parts, weights, limit, seed)


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


def build_dataset(rows: Iterable[dict], features: datasets.Features) -> datasets.Dataset:
    """A dataset of the rows, packed chunk by chunk, so that never all of them exist as Python objects."""
    schema, tables, chunk = features.arrow_schema, [], []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            tables.append(pa.Table.from_pylist(chunk, schema=schema))
            chunk = []
    tables.append(pa.Table.from_pylist(chunk, schema=schema))
    return datasets.Dataset(pa.concat_tables(tables))


def map_rows(
    dataset: datasets.Dataset, encode: Callable[[dict], Iterable[dict]], features: datasets.Features, on_bad_row: str
) -> datasets.Dataset:
    """The dataset of the rows that `encode` makes of each row (none, one or several; BadRow: a bad row)."""
    bad_rows = BadRows(on_bad_row)

    def encoded():
        for number, row in enumerate(dataset):
            try:
                yield from encode(row)
            except BadRow as error:
                bad_rows.add(row.get("place", f"row {number}"), str(error))

    result = build_dataset(encoded(), features)
    finish(bad_rows, [("tokenised data", len(result))])
    return result


def _converted(
    rows: Iterable[tuple[str, dict]],
    convert: Callable[[object], dict],
    bad_rows: BadRows,
    left_out: Counter[str],
    most: int | None,
) -> Iterator[dict]:
    good = 0
    for place, row in rows:
        try:
            converted = convert(row)
        except BadRow as error:
            bad_rows.add(place, str(error))
            continue
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        yield {**converted, "place": place}
        good += 1
        if good == most:
            return


def _split_files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        f for f in folder.rglob("*")
        if f.is_file() and f.name.lower().endswith(DATA_SUFFIXES) and f.name not in _METADATA
        and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )  # fmt: skip
    named = {name: [f for f in files if _is_named(f, folder, name)] for name in (split, *_SPLITS)}
    if named[split]:
        return named[split]
    others = [name for name in _SPLITS if named[name]]
    if others:
        raise UserError(f"{folder} has no split {split!r} but {', '.join(others)}", f"choose `split` {others[0]}")
    if not files:
        raise UserError(f"{folder} holds no data file", f"put files of these kinds there: {' '.join(DATA_SUFFIXES)}")
    return files


def _is_named(file: Path, folder: Path, split: str) -> bool:
    named_folder = split in file.relative_to(folder).parts[:-1]
    return named_folder or re.match(re.escape(split) + r"[^A-Za-z]", file.name) is not None


def _read_file(path: Path, bad_rows: BadRows | None) -> Iterator[tuple[str, dict]]:
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet_rows(path)
    if name.endswith((".json", ".json.gz")):
        return _json_rows(path, bad_rows)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _parsed(_lines(path, bad_rows), bad_rows)
    if name.endswith(".txt"):
        return ((place, {"text": line}) for place, line in _lines(path, bad_rows))
    raise UserError(f"{path} is of no known kind", f"use one of {' '.join(DATA_SUFFIXES)}")


def _place(source: Path | str, line: int) -> str:
    """`source:line` as valid Unicode on one line, whatever characters the file's name has."""
    return f"{visible(str(source), kept='')}:{line}"


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _lines(path: Path, bad_rows: BadRows | None) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    _report(bad_rows, _place(path, number), "the line is not valid UTF-8")
                    continue
                if text:
                    yield _place(path, number), text
    except _BROKEN as error:
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}", "fetch or write the file again") from error


def _parsed(lines: Iterator[tuple[str, str]], bad_rows: BadRows | None) -> Iterator[tuple[str, dict]]:
    for place, line in lines:
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            _report(bad_rows, place, f"invalid JSON ({_json_reason(error)})")


def _json_rows(path: Path, bad_rows: BadRows | None) -> Iterator[tuple[str, dict]]:
    """Rows of a JSON list, each with its own line; a .json file that opens no list is read as JSON lines."""
    try:
        with _open(path) as file:
            data = file.read()
    except _BROKEN as error:
        raise UserError(f"{path}: cannot be read: {error}", "fetch or write the file again") from error
    if not data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        _refuse_object(path, data)
        yield from _parsed(_lines(path, bad_rows), bad_rows)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: the line is not valid UTF-8", "correct the file") from error
    yield from _json_list(path, text)


def _parses(data: bytes) -> object:
    """What the JSON says, or None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _refuse_object(path: Path, data: bytes) -> None:
    """UserError when the file is one JSON object over several lines, such as {"data": [rows]}."""
    if _parses(data.strip().partition(b"\n")[0]):
        return
    whole = _parses(data)
    if isinstance(whole, dict):
        keys = ", ".join(map(repr, list(whole)[:5]))
        found = f"{path} holds one object (with {keys}) over several lines; expected a list of rows, or one row on each line"
        raise UserError(found, "write its rows as a list: [row, row, ...]")


def _json_list(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    decoder, space, line, counted = json.JSONDecoder(), re.compile(r"\s*"), 1, 0
    position = space.match(text, text.index("[") + 1).end()
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: invalid JSON ({_json_reason(error)})", "correct the file") from error
        yield _place(path, line), row
        position = space.match(text, position).end()
        if text[position : position + 1] == ",":
            position = space.match(text, position + 1).end()
        elif text[position : position + 1] != "]":
            raise UserError(f"{path}:{line}: invalid JSON (no ',' or ']' after this row)", "correct the file")


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict]]:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK):
                for row in batch.to_pylist():
                    number += 1
                    yield _place(path, number), row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # invalid UTF-8, dates out of range
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}", "fetch or write the file again") from error


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, dict]]:
    name, config, split = hub_source(source, split)
    go_offline_if_unreachable()
    try:
        dataset = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source!r} is no file or folder, and the hub gives no such dataset and split ({split}): {error}",
            "check the name, the split and the network, or give a path",
        ) from error
    for number, row in enumerate(dataset, 1):
        yield _place(f"{source}[{split}]", number), row


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _report(bad_rows: BadRows | None, place: str, reason: str) -> None:
    if bad_rows is None:
        raise UserError(f"{place}: {reason}", "correct the file")
    bad_rows.add(place, reason)
