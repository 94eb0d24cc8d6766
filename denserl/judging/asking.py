"""A judge is asked what its store does not hold, each question once, after it is said how much that is.

What judges are asked, and what their answers mean, is in comparing.py.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tqdm.auto import tqdm

from denserl import distributed
from denserl.errors import UserError, require
from denserl.judging.contract import Backend, Reply, Request
from denserl.judging.store import Store, key

log = logging.getLogger(__name__)

TOGETHER = 1024  # requests that are in memory at a time
SHARE = 64  # of them, what a rank answers before answers are kept
Made = TypeVar("Made")


class Cost(NamedTuple):
    """What answers cost; of those that are still to be given, at most."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0  # of answers

    def plus(self, prompt_tokens: int, tokens: int) -> "Cost":
        """With one call more."""
        return Cost(self.calls + 1, self.prompt_tokens + prompt_tokens, self.tokens + tokens)


@dataclass
class Limit:
    """Calls that one judge or several may make. most: None for any number."""

    most: int | None = None
    planned: int = 0

    def plan(self, calls: int) -> None:
        """Set calls aside. UserError where they are too many."""
        wanted = self.planned + calls
        found = f"{wanted} answers of judges are to be asked for, and `judge_limit` is {self.most}"
        require(self.most is None or wanted <= self.most, found, f"give `judge_limit` {wanted}, or judge less")
        self.planned = wanted


class Asker:
    """A judge and the store of its answers. On several ranks all ask together, and rank 0 has the store.

    Args:
        backend: says its name and version without loading a model.
        judge: what it is called on the command line.
        store: None on the other ranks. limit: may be shared by several judges.
        shared: every rank has the model, and is asked for a share; otherwise rank 0 asks for all.
    """

    def __init__(self, backend: Backend, judge: str, store: Store | None, limit: Limit | None = None, shared: bool = False):
        self.backend, self.judge, self.store, self.limit = backend, judge, store, limit or Limit()
        self.shared = shared
        self.cost = Cost()  # of all that was asked for, each once, whether the store held it or not
        self._planned: set[bytes] = set()  # keys of what is known to be missing
        self._used: set[bytes] = set()

    def plan(self, requests: Sequence[Request]) -> None:
        """Say what the requests will cost, those left out that were planned before.

        Raises:
            UserError: they are more than the limit allows.
        """
        of_rank_0(lambda: self._plan(requests))

    def ask(
        self,
        requests: Sequence[Request],
        read: Callable[[Reply], Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """What is read of the answers, in the order of the requests: without `read` the answers.

        Equal requests have one answer.

        requests: made when they are asked for, so that they are not all in memory. about: what the store's lines say of the
        template.

        Raises:
            UserError: as of `plan`; or the judge cannot be asked, or refuses. What has been answered is kept.
        """
        self.plan(requests)
        made: list[Any] = []
        with tqdm(total=len(requests), desc="answers", disable=distributed.rank() > 0) as bar:
            for first in range(0, len(requests), TOGETHER):
                part = [requests[number] for number in range(first, min(first + TOGETHER, len(requests)))]
                self._fill(part, about or {}, bar)
                made += of_rank_0(functools.partial(self._read, part, read or _whole))
        self.cost = of_rank_0(lambda: self.cost)
        return made

    def recall(self, requests: Sequence[Request], read: Callable[[Reply], Made]) -> list[Made | None]:
        """What is read of the answers that the store holds, None in the place of those that it does not."""

        def of_store() -> list[Made | None]:
            keys = map(self._key, map(requests.__getitem__, range(len(requests))))
            return [read(self._count(own)) if own in self._store else None for own in keys]

        found, self.cost = of_rank_0(lambda: (of_store(), self.cost))
        return found

    def describe(self) -> dict[str, Any]:
        """The judge, and what its answers cost, whenever they were given."""
        return {"judge": self.backend.name, "version": self.backend.version, **self.cost._asdict()}

    def _plan(self, requests: Sequence[Request]) -> None:
        missing = self._missing(requests)
        cost = self._cost_of(missing)
        self.limit.plan(cost.calls)
        self._planned |= set(missing)
        if missing:
            self._store.open()
            log.info(
                "%s: %d answers to ask for, at most, of %d questions: about %d tokens of prompts, at most %d of answers",
                self.judge,
                cost.calls,
                len(requests),
                cost.prompt_tokens,
                cost.tokens,
            )

    def _missing(self, requests: Sequence[Request]) -> dict[bytes, Cost]:
        """What the store does not hold, and is not planned."""
        found: dict[bytes, Cost] = {}
        for request in map(requests.__getitem__, range(len(requests))):
            own = self._key(request)
            if not (own in self._store or own in self._planned or own in found):
                found[own] = Cost(1, self.backend.prompt_tokens(request.messages), request.decoding.max_new_tokens)
        return found

    def _fill(self, requests: Sequence[Request], about: Mapping[str, Any], bar: tqdm) -> None:
        """Ask for what is missing, and keep each answer as it comes."""
        missing = of_rank_0(lambda: self._first_of_missing(requests))
        bar.update(len(requests) - len(missing))
        if not self.shared or distributed.world_size() == 1:
            of_rank_0(lambda: self._keep(requests, self._replies(requests, missing), about, bar))
            return
        size = SHARE * distributed.world_size()
        for first in range(0, len(missing), size):
            mine = missing[first : first + size][distributed.rank() :: distributed.world_size()]
            found = of_all_ranks(functools.partial(self._share, requests, mine))
            of_rank_0(functools.partial(self._keep, requests, [entry for share in found for entry in share], about, bar))

    def _first_of_missing(self, requests: Sequence[Request]) -> list[int]:
        """The numbers of the requests that the store does not answer, of equal ones the first."""
        missing: dict[bytes, int] = {}
        for number, own in enumerate(map(self._key, requests)):
            if own not in self._store:
                missing.setdefault(own, number)
        return list(missing.values())

    def _replies(self, requests: Sequence[Request], numbers: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        """The judge's answers to some of the requests, with their numbers."""
        try:
            for place, reply in self.backend.replies([requests[number] for number in numbers]) if numbers else ():
                yield numbers[place], reply
        except UserError as error:
            kept = "what has been answered is kept, and the same command goes on"
            raise UserError(error.found, f"{error.fix}; {kept}", error.one_rank) from error

    def _share(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[tuple[int, Reply]]:
        return list(self._replies(requests, numbers))

    def _keep(
        self, requests: Sequence[Request], replies: Iterable[tuple[int, Reply]], about: Mapping[str, Any], bar: tqdm
    ) -> None:
        """Add answers to the store, as they come."""
        who = {"judge": self.judge, "model": self.backend.name, "version": self.backend.version, **about}
        try:
            for number, reply in replies:
                self._store.add(self._key(requests[number]), requests[number], reply, who)
                bar.update()
        finally:
            self._store.sync()

    def _read(self, requests: Sequence[Request], read: Callable[[Reply], Made]) -> list[Made]:
        return [read(self._count(self._key(request))) for request in requests]

    def _count(self, own: bytes) -> Reply:
        """An answer, which counts once."""
        reply = self._store.get(own)
        if own not in self._used:
            self._used.add(own)
            self.cost = self.cost.plus(reply.prompt_tokens, reply.tokens)
        return reply

    def _key(self, request: Request) -> bytes:
        return key(self.backend.name, self.backend.version, request)

    def _cost_of(self, missing: Mapping[bytes, Cost]) -> Cost:
        return Cost(*map(sum, zip(*missing.values(), strict=True))) if missing else Cost()

    @property
    def _store(self) -> Store:
        assert self.store is not None  # of rank 0
        return self.store


def _whole(reply: Reply) -> Reply:
    return reply


def of_rank_0(make: Callable[[], Made]) -> Made:
    """What rank 0 makes, on every rank. A UserError of it is raised by all."""
    return of_all_ranks(lambda: make() if distributed.rank() == 0 else None)[0]


def of_all_ranks(make: Callable[[], Made]) -> list[Made]:
    """What each rank makes, on every rank. A UserError of one of them is raised by all."""
    made: Made | None = None
    error: UserError | None = None
    try:
        made = make()
    except UserError as raised:
        error = raised
    told = distributed.gather_objects((made, error))
    first = next((error for _, error in told if error is not None), None)
    if first is not None:
        # No longer of one rank alone.
        raise UserError(first.found, first.fix) from first
    return [found for found, _ in told]
