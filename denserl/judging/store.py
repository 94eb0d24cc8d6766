"""Answers of judges as they came, on disk: appended one by one, found again by all that they depend on.

A line holds one answer (`Store.add`); whoever asks for the same again is given it, whichever command asked for it first.
"""

import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from denserl.errors import UserError, require
from denserl.files import cut_torn_line, make_folder
from denserl.judging.contract import Decoding, Reply, Request

AGAIN = "remove that line, and what it held is asked again, or give another file"
OPENING = b'{"key": "'


def key(name: str, version: str, request: Request) -> bytes:
    """A hash of all that an answer depends on: model and its version, messages, settings, and which sample of them it is."""
    decoding = Decoding(*(kind(value) for kind, value in zip((int, float, float, int), request.decoding, strict=True)))
    return _hash([name, version, request.messages, *decoding, request.sample]).digest()


class Store:
    """A JSON-lines file of answers, kept open by one process at a time. In memory there is a place in the file of each.

    A last line that was not written whole is cut off. Of two answers to the same question the first one counts. A file that is
    not there is made when it is opened to be written.

    Raises:
        UserError: another process has it open, it cannot be written, or holds a line that is no answer.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._places: dict[bytes, int] = {}
        self._models: dict[str, tuple[str, str]] = {}
        if self.path.exists():
            self.open()

    def open(self) -> None:
        """Take the file for this process, and see what is in it. Nothing where that has been done."""
        if self._file is not None:
            return
        make_folder("judge_store", str(self.path.parent))
        try:
            file = open(self.path, "a+b")
        except OSError as error:
            raise UserError(f"`judge_store` {self.path}: {error.strerror}", "give a file that can be written") from error
        try:
            self._lock(file)
            self._check_opening()
            cut_torn_line(self.path)
            self._read(file)
        except UserError:
            file.close()
            raise
        self._file = file

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> Reply:
        """The answer under a key, which is there."""
        self._opened.seek(self._places[key])
        row = json.loads(self._opened.readline())
        first = tuple((token, logprob) for token, logprob in row["first"])
        return Reply(row["text"], row["cut"], row["prompt_tokens"], row["tokens"], first)

    def add(self, key: bytes, request: Request, reply: Reply, about: Mapping[str, Any]) -> None:
        """Append an answer, as one line that survives the end of the process.

        about: JSON-able, what else the line says: `judge`, as it was named, `model` and `version`; the template.
        """
        row = {
            "key": key.hex(),
            **about,
            "messages_hash": _hash(request.messages).hexdigest(),
            "decoding": request.decoding._asdict(),
            "sample": request.sample,
            **reply._asdict(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        place = self._opened.seek(0, os.SEEK_END)
        self._opened.write(json.dumps(row).encode() + b"\n")
        self._opened.flush()
        self._enter(row, place)

    def sync(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._opened.fileno())

    def model_of(self, judge: str) -> tuple[str, str] | None:
        """Name and version of the model that answered last as a judge, which is called so on the command line."""
        return self._models.get(judge)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _opened(self) -> BinaryIO:
        self.open()
        assert self._file is not None
        return self._file

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = f"`judge_store` {self.path} is in use by another process"
            raise UserError(found, "wait until it has ended, or give each a file of its own") from error
        except OSError as error:
            found = f"`judge_store` {self.path} cannot be locked: {error.strerror}"
            raise UserError(found, "give a file on another file system") from error

    def _check_opening(self) -> None:
        """UserError, before anything is cut off, for a file that is something else."""
        with open(self.path, "rb") as file:  # of a buffer of its own, which holds no end that is then cut off
            opening = file.read(len(OPENING))
        found = f"`judge_store` {self.path} is no file of answers of judges"
        require(opening == OPENING[: len(opening)], found, "give another name")

    def _read(self, file: BinaryIO) -> None:
        place = 0
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                self._enter(_checked(json.loads(line)), place)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                found = f"`judge_store` {self.path}, line {number} is no answer of a judge ({type(error).__name__}: {error})"
                raise UserError(found, AGAIN) from error
            place += len(line)

    def _enter(self, row: Mapping[str, Any], place: int) -> None:
        self._places.setdefault(bytes.fromhex(row["key"]), place)
        self._models[row["judge"]] = row["model"], row["version"]


def _checked(row: Any) -> dict:
    """A line as it was written. ValueError, KeyError or TypeError where it is something else."""
    reply = Reply(**{field: row[field] for field in Reply._fields})
    first = all(isinstance(token, str) and isinstance(logprob, (int, float)) for token, logprob in reply.first)
    numbers = all(isinstance(number, int) for number in (reply.prompt_tokens, reply.tokens))
    named = all(isinstance(row[name], str) for name in ("judge", "model", "version"))
    if not (first and numbers and named and isinstance(reply.text, str) and isinstance(reply.cut, bool)):
        raise ValueError("not every field is of its kind")
    return row


def _hash(value: Any) -> Any:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode())
