"""JSON to an HTTP server and back, with patience for one that is busy or away, and none for one that talks nonsense."""

import json
import logging
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2

log = logging.getLogger(__name__)

# A server is overloaded, starting or behind a gateway that waits for it: the same request may succeed later.
PASSING = (408, 429, 500, 502, 503, 504)
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries, doubled each time
MOST_BYTES = 2**26  # of an answer
SHOWN = 200  # characters of an answer that a message quotes


class NoAnswer(Exception):
    """What a server said or did in the place of an answer, in words."""


class Reply(NamedTuple):
    """An HTTP response, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        text = self.body.decode("utf-8", "replace")
        return f"{self.status}" + (f": {text[:SHOWN]!r}" + ("..." if len(text) > SHOWN else "") if text else "")


def new_client(token: str | None = None) -> httpx2.Client:
    """A client without proxies, logins or redirects that nobody asked for. token: sent as `Authorization: Bearer`."""
    headers = {"accept": "application/json", "accept-encoding": "identity", "content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return httpx2.Client(headers=headers, trust_env=False, follow_redirects=False)


def post_json(client: httpx2.Client, url: str, body: dict, timeout: float, tries: int) -> Any:
    """The JSON that a server answers to JSON.

    Connections that fail, answers that take longer than `timeout` seconds and statuses that pass (PASSING) are tried again
    after growing waits, or later if the server says (Retry-After), up to `tries` tries and `tries` times `timeout` seconds in
    all.

    Raises:
        NoAnswer: nothing came in these, or what came is a redirect, a refusal, too long or no JSON.
    """
    content, deadline, wait = json.dumps(body).encode(), time.monotonic() + timeout * tries, FIRST_WAIT
    for number in range(1, tries + 1):
        asked_to_wait = None
        try:
            # A wait may have ended a moment late.
            reply = _post(client, url, content, max(min(timeout, deadline - time.monotonic()), 0.001))
        except httpx2.RequestError as error:
            found = f"gave no answer ({type(error).__name__}: {error})"
        else:
            if reply.status not in PASSING:
                return _json_of(reply)
            found, asked_to_wait = f"answered {reply}", _retry_after(reply.headers)
        pause = max(wait, asked_to_wait or 0.0)
        if number == tries or time.monotonic() + pause >= deadline:
            said = "" if asked_to_wait is None else f"; it asks to be tried again after {asked_to_wait:g} s"
            raise NoAnswer(f"{found}, at try {number} of {tries} within {timeout * tries:g} s{said}")
        log.warning("%s %s; tried again in %g s", url, found, pause)
        time.sleep(pause)
        wait = min(2 * wait, LONGEST_WAIT)


def _post(client: httpx2.Client, url: str, content: bytes, timeout: float) -> Reply:
    """One try. httpx2.RequestError where nothing comes, or not all of it in time; NoAnswer for too much of it."""
    until, body = time.monotonic() + timeout, bytearray()
    with client.stream("POST", url, content=content, timeout=timeout) as response:
        for part in response.iter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise NoAnswer(f"answered more than {MOST_BYTES >> 20} MiB")
            if time.monotonic() > until:
                # The client's own limit is of each wait for more, which a slow server never reaches.
                raise httpx2.ReadTimeout("not all of it came in time")
    return Reply(response.status_code, response.headers, bytes(body))


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
