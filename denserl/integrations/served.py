"""Asking `denserl serve-rewards`, and putting what it answers on a policy's tokens. It needs the standard library alone."""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from denserl.steps import tokens_up_to

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Variables of the environment: where the server is, and what it must be brought.
URL, TOKEN = "REWARDS_URL", "REWARDS_TOKEN"
SECONDS = 180  # for an answer
WAITS = (1, 2, 4, 8, 16)  # seconds between tries


class NoRewards(Exception):
    """The server cannot be reached, or refuses, in its own words."""


async def rewards(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Any], responses: Sequence[list[int]]
) -> list[tuple[list[float], dict]]:
    """What the tokens of each response are paid (`token_rewards`), and what the server says of it.

    A response is read as its text without special tokens. It was cut off unless a special token closes it.

    Args:
        prompts: messages, or a user's turn as text. responses: token ids of that tokenizer.

    Raises:
        NoRewards: see there.
    """
    special = set(tokenizer.all_special_ids)

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    texts = [decode(ids) for ids in responses]
    ended = [bool(ids) and ids[-1] in special for ids in responses]
    request = {"prompts": list(prompts), "responses": texts, "ended": ended}
    # Another thread waits, so that others of the loop go on.
    rows = (await asyncio.to_thread(asked, "rewards", request))["rewards"]
    found = []
    for row, text, ids in zip(rows, texts, responses, strict=True):
        changes = list(zip(row["segment_ends"], row["segment_changes"], strict=True))
        found.append((token_rewards(changes, text, ids, decode), row))
    return found


def token_rewards(
    changes: Sequence[tuple[int, float]], text: str, ids: list[int], decode: Callable[[list[int]], str]
) -> list[float]:
    """What each token of a response is paid: at the end of a segment what it changes in the score so far, else 0.

    They add up to the response's score. What the last segment changes stands at the last token, the end of the turn, where
    these libraries put a reward of the whole.

    Args:
        changes: for each segment its end in the text, in characters, and what it changes. text: of the response, as it was
            sent. ids: its tokens. decode: ids -> text, as `text` was made.
    """
    paid = [0.0] * len(ids)
    if not ids or not changes:
        return paid
    # A server whose tokenizer writes the text otherwise may count further than it is long.
    ends = [min(end, len(text)) for end, _ in changes]
    for count, (_, change) in zip([*tokens_up_to(ids, text, ends[:-1], decode), len(ids)], changes, strict=True):
        paid[count - 1] += change
    return paid


def asked(path: str, request: dict) -> dict:
    """The answer of a path of the server. One that is busy, or away for a moment, is asked again.

    Raises:
        NoRewards: see there.
    """
    url = urljoin(os.environ.get(URL, "http://127.0.0.1:8000/rewards"), path)
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get(TOKEN):
        headers["Authorization"] = f"Bearer {token}"
    for wait in (*WAITS, None):
        try:
            with urlopen(Request(url, json.dumps(request).encode(), headers), timeout=SECONDS) as answer:
                return json.load(answer)
        except HTTPError as error:
            found = f"status {error.code}, {error.read(500).decode(errors='replace')}"
            if error.code != 503 or wait is None:
                raise NoRewards(f"{url}: {found}") from error
        except (OSError, HTTPException) as error:
            found = str(error)
            if wait is None:
                raise NoRewards(f"{url} ({URL}) gives no answer: {found}; start denserl serve-rewards there") from error
        log.warning("%s: %s; asked again in %d s", url, found, wait)
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")
