"""The one thread that scores. Requests that come while it is busy wait, and are then scored together."""

import logging
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.errors import UserError
from denserl.serving.rows import Rendered, Row, Scored, Service

log = logging.getLogger(__name__)


class Busy(Exception):
    """So many responses wait that no more are taken."""


class Job(NamedTuple):
    """The rows of a request, and where what they score is put."""

    rows: Sequence[Row | Rendered]
    answer: "Future[list[Scored]]"


class Worker:
    """Scores the rows of requests in a thread of its own, in the order in which they came.

    Args:
        most: rows of one pass; a request with more has a pass of its own.
        max_waiting: rows that may wait.
    """

    def __init__(self, service: Service, most: int, max_waiting: int):
        self.service, self.most, self.max_waiting = service, most, max_waiting
        self.scored = 0  # rows so far
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take no more rows, and wait until those that came are scored."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Rows that wait, those of the pass at hand not counted."""
        with self._changed:
            return sum(len(job.rows) for job in self._jobs)

    def submit(self, rows: Sequence[Row | Rendered]) -> "Future[list[Scored]]":
        """What the rows score, when it is known: BadRow where one cannot be scored, UserError where the source fails.

        Raises:
            Busy: too many rows wait.
        """
        job = Job(rows, Future())
        with self._changed:
            waiting = sum(len(job.rows) for job in self._jobs)
            if self._closed or (waiting and waiting + len(rows) > self.max_waiting):
                raise Busy(f"{waiting} responses wait to be scored")
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def _work(self) -> None:
        while jobs := self._next():
            # Those whose request was given up meanwhile are left out.
            self._score([job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def _next(self) -> list[Job]:
        """The jobs of the next pass; none when the worker is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            jobs: list[Job] = []
            while self._jobs and (not jobs or sum(len(job.rows) for job in [*jobs, self._jobs[0]]) <= self.most):
                jobs.append(self._jobs.popleft())
            return jobs

    def _score(self, jobs: list[Job]) -> None:
        """Answer the jobs. One that fails does so alone: the others are then scored without it."""
        encoded = {}
        for number, job in enumerate(jobs):
            try:
                encoded[number] = [_named(self.service.encode, place, row) for place, row in enumerate(job.rows)]
            except Exception as error:  # a row may be anything, and the thread must go on
                job.answer.set_exception(error)
        wanted = [row for rows in encoded.values() for row in rows]
        try:
            found = iter(self.service.score(wanted) if wanted else [])
        except Exception as error:
            if len(encoded) == 1:
                jobs[next(iter(encoded))].answer.set_exception(error)
            else:
                for number in encoded:
                    self._score([jobs[number]])
            return
        for number, rows in encoded.items():
            self._answer(jobs[number], [next(found) for _ in rows])

    def _answer(self, job: Job, found: list[Scored]) -> None:
        self.scored += len(found)
        wrong = [place for place, scored in enumerate(found) if not _is_finite(scored)]
        if wrong:
            error = UserError(f"the score of response {wrong[0]} is not finite", "try `dtype` fp32, or another reward model")
            job.answer.set_exception(error)
        else:
            job.answer.set_result(found)


def _named(encode, place: int, row: Row | Rendered):
    try:
        return encode(row)
    except BadRow as error:
        raise BadRow(f"response {place}: {error}", error.fix) from error


def _is_finite(scored: Scored) -> bool:
    numbers = [scored.score, *(score for _, score in scored.segments or []), *(token.score for token in scored.tokens or [])]
    return all(map(math.isfinite, numbers))
