"""What servers have answered in a run, kept until no checkpoint needs it: a resumed run asks nothing twice."""

import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from denserl import distributed
from denserl.errors import UserError
from denserl.files import cut_torn_line

NAME = re.compile(r"[a-z]+-(\d+)-rank-\d+\.jsonl")


class Answers:
    """This rank's answers, one file for each rollout, a line for each response: its row, what was asked, the answer.

    Lines are appended as answers come and are on the disk before the run goes on. An answer is taken again where the same is
    asked of the same row of the same rollout.

    Args:
        folder: in which the files are. resumed: whether they are of this run; otherwise they are removed.
    """

    def __init__(self, folder: Path, resumed: bool):
        self.folder, self.lock = folder, threading.Lock()
        self.known: dict[tuple[int, str], dict] = {}
        self.path: Path | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for file in () if resumed else self._files():
            file.unlink()

    def begin(self, place: str) -> None:
        """Open the file of a rollout, `word-number`."""
        self.path = self.folder / f"{place}-rank-{distributed.rank()}.jsonl"
        self.known = {(line["row"], line["asked"]): line["answer"] for line in _whole_lines(self.path)}

    def get(self, row: int, asked: str) -> dict | None:
        """The answer to what was asked of a row, if there is one. asked: a hash of it."""
        return self.known.get((row, asked))

    def add(self, answers: Mapping[tuple[int, str], dict]) -> None:
        """Keep JSON-able answers, each under its row and what was asked. Safe to call from several threads."""
        lines = [json.dumps({"row": row, "asked": asked, "answer": answer}) for (row, asked), answer in answers.items()]
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def drop_before(self, number: int) -> None:
        """Remove the answers of rollouts before this one."""
        for file in self._files():
            if int(NAME.fullmatch(file.name)[1]) < number:
                file.unlink()

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"*-rank-{distributed.rank()}.jsonl") if NAME.fullmatch(path.name)]


def _whole_lines(path: Path) -> list[dict]:
    """The rows of a file, of which a torn last line, which a kill has left, is cut off."""
    if not path.exists():
        return []
    cut_torn_line(path)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is not as it was written ({error})", "remove it: what it held is asked again") from error
