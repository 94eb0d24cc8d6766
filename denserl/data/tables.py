"""Rows kept between runs, as they were read or as ids: memory-mapped tables in the cache folder, made by one rank for all.

A table is named by a hash of what its rows follow from, so that it is never out of date; what was said when it was made stands
beside it, and is said again. What rows are is not known here: functions that make them come in.
"""

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from denserl import distributed
from denserl.data.features import written_into
from denserl.data.fingerprints import digest_of_file, selection_fingerprint, tokenizer_fingerprint, version
from denserl.data.readers import source_identity
from denserl.errors import require
from denserl.files import flush, make_folder, write_flushed

log = logging.getLogger(__name__)

_RECORD = "table.json"  # in a table's folder: what was said when it was made, and the sums of its files
_LIBRARIES = ("datasets", "pyarrow", "transformers", "tokenizers", "jinja2")
Make = Callable[..., datasets.Dataset]
Said = list[tuple[str, int, str]]  # logger, level, message


def kept(make: Make) -> Make:
    """A function that makes a data set, with a further argument `cache_dir`: the folder in which the data set is kept.

    The name of its table is a hash of the function's arguments (tokenizers and data sets by content, files in `sources` by
    path, size and times), of the code that reads data, and of the libraries' versions. With a folder the call is collective:
    rank 0 makes the table, and the first rank of each host that does not see rank 0's folder one of its own; others wait.
    Without one, each process makes the data set for itself, in memory.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def found(*args: Any, cache_dir: str | None = None, **kw: Any) -> datasets.Dataset:
        if cache_dir is None:
            return make(*args, **kw)
        given = signature.bind(*args, **kw)
        given.apply_defaults()
        name = functools.partial(_name, make, given.arguments)
        return _table(Path(cache_dir).expanduser(), name, functools.partial(make, *args, **kw))

    return found


def _table(cache: Path, name: Callable[[], str], make: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    """The table of that name, made where it is not there. UserError where hosts read different rows."""
    first = distributed.rank() == 0
    (target, own), *_ = distributed.in_own_time(lambda: _work_folder(cache, name()) if first else ("", ""))
    try:
        # All have looked before rank 0, which is done at once where the table is there, takes its folder away.
        sees = distributed.gather_objects((cache / own).is_dir())[distributed.rank()]
        prepares = first or (not sees and os.environ.get("LOCAL_RANK", "0") == "0")
        sums = distributed.in_own_time(lambda: _prepared(cache, target, make) if prepares else None)
    finally:
        if first:
            shutil.rmtree(cache / own, ignore_errors=True)
    read = [each for each in sums if each is not None]
    fix = "give all hosts the same files and versions of libraries, or a `cache_dir` that they share"
    require(all(each == read[0] for each in read), f"hosts read different rows, so that their tables {target} differ", fix)
    seen = f"rank {distributed.rank()} does not see {cache / target}"
    require((cache / target).is_dir(), seen, "give a `cache_dir` that all ranks of a host see")
    return datasets.load_from_disk(str(cache / target))


def _work_folder(cache: Path, name: str) -> tuple[str, str]:
    """The names of a table, and of a new folder beside it to work in."""
    make_folder("cache_dir", str(cache))
    return name, Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache)).name


def _prepared(cache: Path, name: str, make: Callable[[], datasets.Dataset]) -> dict[str, str]:
    """The sums of the files with a table's rows, made unless it is there and whole; what was said of its rows is said."""
    target = cache / name
    record = _record(target)
    if record is None:
        make_folder("cache_dir", str(cache))
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as work:
            record = _written(Path(work) / "table", make)
            _put(Path(work) / "table", target)
        log.info("rows: kept in %s", target)
    else:
        _say(record["said"])
        log.info("rows: found %s", target)
    return {file: digest for file, digest in record["sums"].items() if file.endswith(".arrow")}


def _written(folder: Path, make: Callable[[], datasets.Dataset]) -> dict[str, Any]:
    """Make a table in a new folder; returns its record."""
    said: Said = []
    try:
        with _listening(said), written_into(folder.parent):
            made = make()
    finally:
        _say(said)
    made.save_to_disk(str(folder))
    record = {"said": said, "sums": sums_of(folder)}
    write_flushed(folder / _RECORD, json.dumps(record))
    # After a power failure the table must be whole or absent.
    for path in (*folder.iterdir(), folder):
        flush(path)
    return record


def sums_of(folder: Path) -> dict[str, str]:
    """A hash of each file of a folder, by name."""
    return {file.name: digest_of_file(file) for file in sorted(folder.iterdir())}


def _put(made: Path, target: Path) -> None:
    """Give a table its name, unless another run was first with the same rows."""
    try:
        os.replace(made, target)
    except OSError:
        if _record(target) is None:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(made, target)
    flush(target.parent)


def _record(target: Path) -> dict[str, Any] | None:
    """What is known of a table that is there; None where none is, or where its files are not as they were written."""
    if not target.exists():
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
        sums = sums_of(target)
        del sums[_RECORD]
        if sums == record["sums"]:
            return record
    log.warning("%s is damaged; its rows are made anew", target)
    return None


class _Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, said: Said):
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.levelno, record.getMessage()))


@contextlib.contextmanager
def _listening(said: Said) -> Iterator[None]:
    """What is logged meanwhile is not shown, and goes into the list."""
    logger = logging.getLogger("denserl")
    before = logger.level, logger.propagate
    handler = _Listener(said)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _say(said: Said) -> None:
    for logger, level, message in said:
        logging.getLogger(logger).log(level, "%s", message)


def _name(make: Make, arguments: Mapping[str, Any]) -> str:
    """What a table is called: `rows-` and a hash of what its rows follow from."""
    how = dict(arguments.get("how", {}))
    if len(arguments.get("sources", [])) == 1:
        how.pop("seed", None)  # which only blends
    told = {**arguments, "how": how}
    if "sources" in told:
        split = {**arguments, **how}.get("split", "train")
        told["files"] = [_identity(source, split) for source in told["sources"]]
    libraries = [version(name) for name in _LIBRARIES]
    described = repr([make.__module__, make.__qualname__, _plain(told), libraries, _code()])
    return f"rows-{hashlib.sha256(described.encode()).hexdigest()[:32]}"


def _identity(source: str, split: str) -> list:
    # Which files of a folder are none of the data is said where they are read.
    with _listening([]) if Path(source).is_dir() else contextlib.nullcontext():
        return source_identity(source, split)


def _plain(value: Any) -> Any:
    """A value as numbers, texts and lists of them; tokenizers and data sets are hashes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, datasets.Dataset):
        return selection_fingerprint(value)
    if isinstance(value, Mapping):
        return sorted((key, _plain(item)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, re.Pattern):
        return value.pattern
    if hasattr(value, "save_pretrained"):
        return tokenizer_fingerprint(value)
    raise TypeError(f"rows that follow from {type(value).__name__} cannot be kept")


@functools.cache
def _code() -> str:
    """A hash of the code that reads data."""
    room = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted([*room.glob("*.py"), *room.parent.glob("*.py")]):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
