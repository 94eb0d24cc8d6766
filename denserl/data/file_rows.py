"""The rows of one file, by its suffix: JSON, JSON lines, tables of text, parquet, plain text.

Which files are read is decided in readers.py and splits.py, what the fields of a row mean in schemas.py.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from denserl.data.bad_rows import BadRows
from denserl.data.features import CHUNK
from denserl.errors import UserError
from denserl.files import refuse_lfs_pointer
from denserl.terminal import visible

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
DATA_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".txt")
_BROKEN = (EOFError, OSError, zlib.error)
# Characters of a cell; the csv module's own limit is less than a long conversation has.
_LONGEST_CELL = 10_000_000
# What the csv module says where a quote swallows what follows: the file's end, or too much to be a cell.
_NEVER_CLOSED = ("unexpected end of data", "field larger than field limit")
_NO_UTF_8 = re.compile("[\udc80-\udcff]")

Rows = Iterator[tuple[str, dict]]


def without_suffix(name: str) -> str:
    """A file's name without the suffix that says its kind."""
    suffixes = [suffix for suffix in DATA_SUFFIXES if name.lower().endswith(suffix)]
    return name[: -len(max(suffixes, key=len))] if suffixes else name


def read_file(path: Path, bad_rows: BadRows | None) -> Rows:
    """Yields ("file:line", row) of a file.

    Lines that cannot be read go to `bad_rows` (None: the first one raises). UserError for a file of no known kind, or that is
    broken from some point on.
    """
    name = path.name.lower()
    kind = Path(name.removesuffix(".gz")).suffix
    if not name.endswith(DATA_SUFFIXES):
        raise UserError(f"{path} is of no known kind", f"use one of {' '.join(DATA_SUFFIXES)}")
    refuse_lfs_pointer(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind == ".json":
        return _json_rows(path, bad_rows)
    if kind == ".jsonl":
        return _parsed(_lines(path, bad_rows), bad_rows)
    if kind == ".txt":
        return _text_rows(path, bad_rows)
    return _table_rows(path, _DELIMITERS[kind], bad_rows)


def place_of(source: Path | str, line: int) -> str:
    """`source:line` as valid Unicode on one line, whatever characters the file's name has."""
    return f"{visible(str(source), kept='')}:{line}"


def without_nulls(row: dict) -> dict:
    """A row of an Arrow table without the nulls in objects inside it, which stand where other rows have a key."""
    return {key: _without_nulls(value) for key, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


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
                    _report(bad_rows, place_of(path, number), "the line is not valid UTF-8")
                    continue
                if text:
                    yield place_of(path, number), text
    except _BROKEN as error:
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}", "fetch or write the file again") from error


def _text_rows(path: Path, bad_rows: BadRows | None) -> Rows:
    """Each line as plain text. UserError where the first is JSON, which nobody means to be learned as letters."""
    is_first = True
    for place, line in _lines(path, bad_rows):
        found = _objects(_parses(line.encode())) if is_first and line.startswith(("{", "[")) else ""
        if found:
            suffix = ".json" if line.startswith("[") else ".jsonl"
            raise UserError(f"{place}: the line is {found} in JSON; expected plain text", f"name the file {suffix}")
        is_first = False
        yield place, {"text": line}


def _parsed(lines: Iterator[tuple[str, str]], bad_rows: BadRows | None) -> Rows:
    for place, line in lines:
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            _report(bad_rows, place, f"invalid JSON ({_json_reason(error)})")


def _json_rows(path: Path, bad_rows: BadRows | None) -> Rows:
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


def _objects(value: object) -> str:
    """What a value is called that is an object, or a list of some; empty for any other."""
    if isinstance(value, dict):
        return "an object"
    return "a list of objects" if isinstance(value, list) and any(isinstance(item, dict) for item in value) else ""


def _refuse_object(path: Path, data: bytes) -> None:
    """UserError when the file is one JSON object over several lines, such as {"data": [rows]}."""
    if _parses(data.strip().partition(b"\n")[0]):
        return
    whole = _parses(data)
    if isinstance(whole, dict):
        keys = ", ".join(map(repr, list(whole)[:5]))
        found = f"{path} holds one object (with {keys}) over several lines; expected a list of rows, or one row on each line"
        raise UserError(found, "write its rows as a list: [row, row, ...]")


def _json_list(path: Path, text: str) -> Rows:
    decoder, space, line, counted = json.JSONDecoder(), re.compile(r"\s*"), 1, 0
    position = space.match(text, text.index("[") + 1).end()
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: invalid JSON ({_json_reason(error)})", "correct the file") from error
        yield place_of(path, line), row
        position = space.match(text, position).end()
        if text[position : position + 1] == ",":
            position = space.match(text, position + 1).end()
        elif text[position : position + 1] != "]":
            raise UserError(f"{path}:{line}: invalid JSON (no ',' or ']' after this row)", "correct the file")


def _table_rows(path: Path, delimiter: str, bad_rows: BadRows | None) -> Rows:
    """Rows of a table of text, its header being the keys. Empty cells are null; the line is the one where a row begins."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    start = 1
    try:
        # A byte that is no UTF-8 is half a surrogate pair then, and told with the row that has it.
        with io.TextIOWrapper(_open(path), "utf-8-sig", "surrogateescape", newline="") as file:
            table = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header(path, table, delimiter)
            while True:
                start = table.line_num + 1
                try:
                    cells = next(table, None)
                except csv.Error as error:
                    if any(words in str(error) for words in _NEVER_CLOSED):
                        fix = "close it; a quote inside a quoted cell is doubled"
                        raise UserError(f"{path}:{start}: a quoted cell is never closed", fix) from error
                    _report(bad_rows, place_of(path, start), f"no row of a table ({error})")
                    continue
                if cells is None:
                    return
                if any(map(_NO_UTF_8.search, cells)):
                    _report(bad_rows, place_of(path, start), "the line is not valid UTF-8")
                elif len(cells) not in (0, len(header)):
                    _report(bad_rows, place_of(path, start), f"the row has {len(cells)} cells, and the header {len(header)}")
                elif cells:
                    yield place_of(path, start), dict(zip(header, (cell or None for cell in cells)))
    except _BROKEN as error:
        raise UserError(f"{path}:{start}: cannot be read: {error}", "fetch or write the file again") from error


def _header(path: Path, table: Iterator[list[str]], delimiter: str) -> list[str]:
    """The names of a table's columns. UserError where they are not told apart, or another delimiter stands between them."""
    try:
        header = next((cells for cells in table if cells), [])
    except csv.Error as error:
        raise UserError(f"{path}:1: the header is no row of a table ({error})", "correct the file") from error
    if any(map(_NO_UTF_8.search, header)):
        raise UserError(f"{path}: its header is not valid UTF-8", "write the file in UTF-8")
    other = next((mark for mark in ",;\t|" if mark in header[0]), None) if len(header) == 1 else None
    if other is not None:
        expected = {",": "commas", "\t": "tabs"}[delimiter]
        raise UserError(
            f"{path}: its header is one column, {visible(header[0], kept='')!r}; expected columns with {expected} between them",
            f"write the file with {expected}" + (", or name it .tsv" if other == "\t" else ""),
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        found = f"{path}: its header has {visible(twice[0], kept='')!r} more than once"
        raise UserError(found, "give each column a name of its own")
    return [name.strip() for name in header]


def _parquet_rows(path: Path) -> Rows:
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK):
                for row in batch.to_pylist():
                    number += 1
                    yield place_of(path, number), without_nulls(row)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # invalid UTF-8, dates out of range
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}", "fetch or write the file again") from error


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _report(bad_rows: BadRows | None, place: str, reason: str) -> None:
    if bad_rows is None:
        raise UserError(f"{place}: {reason}", "correct the file")
    bad_rows.add(place, reason)
