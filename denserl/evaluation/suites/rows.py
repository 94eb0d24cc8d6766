"""Rows of suites, from files, folders and the hub, and the shapes that several suites share.

Reading itself is in denserl/data/readers.py. Rows of published suites are taken as they are: equal and empty
answers, which training would refuse, are judged.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from denserl.data.bad_rows import BadRow, BadRows, LeftOut
from denserl.data.messages import as_messages, response_of
from denserl.data.readers import DATA_SUFFIXES, is_hub_source, read_rows
from denserl.errors import UserError
from denserl.evaluation.items import Answer, Item
from denserl.files import COMMAND_FILE, without_outputs
from denserl.terminal import visible

log = logging.getLogger(__name__)

Row = tuple[str, str, object]  # the part of the suite (a file or a configuration), the place, the row
PROMPT_KEYS = ("prompt", "question", "input")
ALL = "all"
# In folders; beside rows, tables of text hold results.
_TABLES = tuple(suffix for suffix in DATA_SUFFIXES if not suffix.startswith((".txt", ".csv", ".tsv")))


def read_split(path: str, split: str, bad_rows: BadRows, part: str = ALL) -> Iterator[Row]:
    """The rows of a file, of a folder's split, or of a hub data set's."""
    try:
        for place, row in read_rows(path, split, bad_rows):
            yield part, place, row
    except RuntimeError as error:  # what the library raises for a hub data set that is a program
        if "scripts" not in str(error):
            raise
        raise UserError(
            f"{path}: the hub keeps this data set as a program, which is not run ({error})",
            f"fetch its tables and give the folder: hf download {path.partition(':')[0]} --repo-type dataset "
            "--revision refs/convert/parquet --local-dir FOLDER",
        ) from error


def local(path: str) -> Path | None:
    """The file or folder of that path; None where there is none."""
    try:
        return Path(path) if path and Path(path).exists() else None
    except OSError as error:  # a name too long, or a folder that must not be entered
        raise UserError(f"{path!r}: {error.strerror}", "check the path") from error


def read_files(
    path: str,
    bad_rows: BadRows,
    known: Callable[[str], bool] = lambda part: False,
    without: Sequence[str] = (),
    above: int = 0,
) -> Iterator[Row]:
    """The rows of a file, or of every data file of a folder; the part is the file's path in it, without suffix.

    Output folders are left aside, and hidden ones.

    Args:
        known: whether a part is one of the suite's; if any is, the other files are not read, which is logged.
        without: names of folders that are left aside as well.
        above: where no part is known, the names of so many folders, down to the one that is read, may make them known.
    """
    root = local(path)
    if root is None:
        raise UserError(f"there is no file or folder {path!r}", "give the path of the suite's files")
    files = [root] if root.is_file() else sorted(f for f in root.rglob("*") if _is_data(f, root, without))
    files = without_outputs(files, root)
    if not files:
        raise UserError(f"{path} holds no data file", f"put files of these kinds there: {' '.join(_TABLES)}")
    folder = root if root.is_dir() else root.parent
    inside = {file: _without_suffix(file.relative_to(folder).as_posix()) for file in files}
    names = Path(os.path.abspath(folder)).parts[1:][-above:] if above else ()  # a link keeps the name it is given by
    whole = {file: "/".join([*names, part]) for file, part in inside.items()}
    parts = next((parts for parts in (inside, whole) if any(map(known, parts.values()))), inside)
    own = [file for file in files if known(parts[file])] or files
    if others := sorted({*files} - {*own}):
        log.info("%s: %d files are no part of the suite and not read, such as %s", path, len(others), others[0])
    for file in own:
        yield from read_split(str(file), ALL, bad_rows, parts[file])


def _is_data(file: Path, root: Path, without: Sequence[str]) -> bool:
    steps = file.relative_to(root).parts
    aside = file.name == COMMAND_FILE or any(step.startswith(".") or step in without for step in steps)
    return file.name.lower().endswith(_TABLES) and not aside


def read_parts(path: str, names: Sequence[str], split: str, bad_rows: BadRows) -> Iterator[Row]:
    """The rows of a hub data set's configurations, or of the folders that are named as they are; else as `read_split`."""
    root = local(path)
    if root is None:
        config = path.rpartition(":")[2] if ":" in path else None
        found = [(path, config)] if config or not is_hub_source(path) else [(f"{path}:{name}", name) for name in names]
    else:
        found = [(str(root / name), name) for name in names if (root / name).is_dir()] or [(path, _without_suffix(root.name))]
    for source, name in found:
        yield from read_split(source, split, bad_rows, name)


def _without_suffix(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in sorted(_TABLES, key=len)[::-1] if name.lower().endswith(suffix)), name)


def as_items(rows: Iterator[Row], convert: Callable[[dict, str], Any], bad_rows: BadRows, left_out: Counter) -> Iterator[Any]:
    """The items, one or a list, that `convert` makes of rows and their parts.

    BadRow: a bad row. LeftOut: one that is counted by its reason.
    """
    for part, place, row in rows:
        try:
            if not isinstance(row, dict):
                raise BadRow("the row is not an object")
            found = convert(row, part)
        except BadRow as error:
            bad_rows.add(place, str(error), error.fix)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # of a suite of the user's own
            bad_rows.add(place, f"the suite makes no item of it: {type(error).__name__}: {error}")
        else:
            for item in found if isinstance(found, list) else [found]:
                # Names come from the data, and go to files and terminals.
                yield item._replace(place=place, subset=visible(item.subset, kept=""))


def checked(item: Item) -> Item:
    """The item. BadRow unless it has a better and a worse answer, each a text."""
    for side, answers in (("better", item.better), ("worse", item.worse)):
        if not answers or not all(isinstance(answer.text, str) for answer in answers):
            raise BadRow(f"its item has no {side} answer that is a text")
    return item


def field(row: dict, key: str, kind: type = str):
    """A value of a row. BadRow where it is missing or of another kind; it names the keys that are there."""
    value = row.get(key)
    if not isinstance(value, kind):
        there = ", ".join(map(repr, list(row)[:8]))
        found = "missing" if value is None else f"a {type(value).__name__}, expected {kind.__name__}"
        raise BadRow(f"{key!r} is {found}; the row has {there}")
    return value


def identity(row: dict, key: str = "id") -> str:
    """A row's own number or name, or nothing."""
    return str(row[key]) if row.get(key) is not None else ""


def texts(row: dict, key: str) -> list[str]:
    """A list of texts under a key. BadRow where it is none, or empty."""
    found = field(row, key, list)
    if not found or not all(isinstance(text, str) for text in found):
        raise BadRow(f"{key!r} is no list of texts")
    return found


def messages(value: object, key: str) -> list[dict]:
    """A text as one user turn, or the messages of a list; contents may be empty."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadRow(f"{key!r} is neither text nor a list of messages")
    return as_messages(value, key)


def answer(row: dict, key: str) -> Answer:
    """The answer under a key: a text, with the row's prompt before it, or a whole conversation that ends with it."""
    if isinstance(row.get(key), str):
        name = next((name for name in PROMPT_KEYS if row.get(name) is not None), PROMPT_KEYS[0])
        return Answer(messages(row.get(name), name), row[key])
    return last_answer(messages(field(row, key, list), key), key)


def last_answer(conversation: list[dict], key: str) -> Answer:
    """The last turn of a conversation, the assistant's, and what is before it."""
    *prompt, last = conversation
    if not prompt or last["role"] != "assistant":
        raise BadRow(f"{key!r} is no conversation that ends with an assistant turn")
    return Answer(prompt, text_alone(response_of(last), key))


def text_alone(response: str | dict, key: str) -> str:
    """The text of a response. BadRow where it is a message that holds more, which would not be judged."""
    if isinstance(response, dict):
        more = ", ".join(map(repr, sorted(response.keys() - {"role", "content"})))
        raise BadRow(f"the answer in {key!r} has {more}; only texts are judged")
    return response
