"""JSON to an HTTP server and back, with patience for one that is busy or away, and none for one that talks nonsense."""

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2

from denserl.errors import require

log = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries, doubled each time
MOST_BYTES = 2**26  # of an answer
SHOWN = 200  # characters of an answer that a message quotes


class NoAnswer(Exception):
    """What a server said or did in the place of an answer, in words."""


class Left(Exception):
    """Nobody waits for the answer any more."""


class Calls:
    """A function called for each of several items, some at a time, in threads that a program which ends does not wait for.

    Args:
        call: (item, what waits for seconds, and raises Left where nobody is left to wait for the answer) -> answer.
        threads: calls under way at a time.
    """

    def __init__(self, call: Callable[[Any, Callable[[float], None]], Any], items: Sequence[Any], threads: int):
        self.call, self.count = call, len(items)
        self.left = threading.Event()
        self.error: BaseException | None = None
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()
        self.answered: queue.SimpleQueue = queue.SimpleQueue()
        for numbered in enumerate(items):
            self.waiting.put(numbered)
        for _ in range(min(threads, self.count)):
            threading.Thread(target=self._work, daemon=True).start()

    def answers(self) -> Iterator[tuple[int, Any]]:
        """The number of an item and its answer, as they come, or the first error. Calls are let go of when it is left."""
        try:
            for _ in range(self.count):
                number, found = self.answered.get()
                if number is None:
                    raise found
                yield number, found
        finally:
            self.left.set()

    def check(self) -> None:
        """The error of a call, where one has failed already."""
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        while not self.left.is_set():
            try:
                number, item = self.waiting.get_nowait()
                self.answered.put((number, self.call(item, self._wait)))
            except (queue.Empty, Left):
                return
            except BaseException as error:  # for the one who waits
                self.error = self.error or error
                self.left.set()
                self.answered.put((None, error))

    def _wait(self, seconds: float) -> None:
        if self.left.wait(seconds):
            raise Left


class Reply(NamedTuple):
    """An HTTP response, read whole. token: what was sent to the server as such, which is not shown where it is sent back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    token: str = ""

    @property
    def passes(self) -> bool:
        """Whether the server is overloaded, starting, or behind a gateway that waits for it: it may answer the same later."""
        return self.status in (408, 429) or self.status >= 500

    def __str__(self) -> str:
        text = without(self.token, self.body.decode("utf-8", "replace"))
        return f"{self.status}" + (f": {text[:SHOWN]!r}" + ("..." if len(text) > SHOWN else "") if text else "")


def new_client(token: str | None = None) -> httpx2.Client:
    """A client without proxies, logins or redirects that nobody asked for. token: sent as `Authorization: Bearer`."""
    headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    # As many connections as are asked for at a time.
    limits = httpx2.Limits(max_connections=None)
    return httpx2.Client(headers=headers, trust_env=False, follow_redirects=False, limits=limits)


def without(token: str | None, text: str) -> str:
    """The text, with a word in the place of the token."""
    return text.replace(token, "(token)") if token else text


def token_in(option: str, variable: str | None) -> str | None:
    """The token that an environment variable holds, if one is named by an option.

    Raises:
        UserError: it is not set, or holds what no header can.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    sound = token and token.isascii() and token.isprintable()
    found = "is not set" if not token else "holds other characters than a token has"
    require(sound, f"`{option}`: the environment variable {variable} {found}", f"export {variable}, as one line")
    return token


class Patience(NamedTuple):
    """How long a server is asked, `timeout` seconds a try, `tries` tries and tries x timeout seconds in all.

    wait: what waits for some seconds between two tries.
    """

    timeout: float
    tries: int
    wait: Callable[[float], object] = time.sleep


def post_json(client: httpx2.Client, url: str, body: dict, patience: Patience) -> Any:
    """The JSON that a server answers to JSON (see `get_json`)."""
    return _answer(client, "POST", url, json.dumps(body).encode(), patience)


def get_json(client: httpx2.Client, url: str, patience: Patience) -> Any:
    """The JSON that a server has at an address.

    Connections that fail, answers that take too long and statuses that pass (`Reply.passes`) are tried again after growing
    waits, or later if the server says (Retry-After), as long as there is patience.

    Raises:
        NoAnswer: nothing came meanwhile, or what came is a redirect, a refusal, too long or no JSON.
    """
    return _answer(client, "GET", url, None, patience)


def _answer(client: httpx2.Client, method: str, url: str, content: bytes | None, patience: Patience) -> Any:
    timeout, tries, wait_for = patience
    deadline, wait = time.monotonic() + timeout * tries, FIRST_WAIT
    for number in range(1, tries + 1):
        asked_to_wait = None
        try:
            # A wait may have ended a moment late.
            reply = _try(client, method, url, content, max(min(timeout, deadline - time.monotonic()), 0.001))
        except httpx2.RequestError as error:
            found = f"gave no answer ({type(error).__name__}: {error})"
        else:
            if not reply.passes:
                return _json_of(reply)
            found, asked_to_wait = f"answered {reply}", _retry_after(reply.headers)
        pause = max(wait, asked_to_wait or 0.0)
        if number == tries or time.monotonic() + pause >= deadline:
            said = "" if asked_to_wait is None else f"; it asks to be tried again after {asked_to_wait:g} s"
            raise NoAnswer(f"{found}, at try {number} of {tries} within {timeout * tries:g} s{said}")
        log.warning("%s %s; tried again in %g s", url, found, pause)
        wait_for(pause)
        wait = min(2 * wait, LONGEST_WAIT)


def _try(client: httpx2.Client, method: str, url: str, content: bytes | None, timeout: float) -> Reply:
    """One try. httpx2.RequestError where nothing comes, or not all of it in time; NoAnswer for too much of it."""
    until, body = time.monotonic() + timeout, bytearray()
    with client.stream(method, url, content=content, timeout=timeout) as response:
        for part in response.iter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise NoAnswer(f"answered more than {MOST_BYTES >> 20} MiB")
            if time.monotonic() > until:
                # The client's own limit is of each wait for more, which a slow server never reaches.
                raise httpx2.ReadTimeout("not all of it came in time")
    token = client.headers.get("authorization", "").removeprefix("Bearer ")
    return Reply(response.status_code, response.headers, bytes(body), token)


def _json_of(reply: Reply) -> Any:
    if 300 <= reply.status < 400:
        raise NoAnswer(f"answered {reply.status}, a redirect to {reply.headers.get('location')!r}")
    if reply.status != 200:
        raise NoAnswer(f"answered {reply}")
    try:
        return json.loads(reply.body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"answered no JSON ({error}): {reply}") from error


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, said as such or as a date; None where it does not, or not legibly."""
    said = headers.get("retry-after", "")
    if said.isdecimal():
        return float(said)
    try:
        return max((parsedate_to_datetime(said) - datetime.now(timezone.utc)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
