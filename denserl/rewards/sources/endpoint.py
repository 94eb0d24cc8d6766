"""A server as a source of rewards: OpenRLHF's contract of remote reward models, and parts (docs/reward_sources.md)."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.http import SHOWN, NoAnswer
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.texts import TextSource, Value, checked_values

GO_ON = "mend or start the server; a run goes on with `resume` from its last checkpoint: what has been answered since is kept"


class EndpointSource(TextSource):
    """One server or several as a source (see `TextSource`); each of several is asked for a share of the responses, in order.

    Args:
        urls: their addresses.
        post: (URL, JSON-able) -> the JSON that is answered, or NoAnswer (`http.post_json`).
        together: responses of one request, at most.
        answers: those that are kept.
        decode, render: token ids -> text, without and with special tokens.
    """

    def __init__(
        self,
        urls: Sequence[str],
        post: Callable[[str, dict], Any],
        together: int,
        answers: Answers,
        decode: Callable[[list[int]], str],
        render: Callable[[list[int]], str],
    ):
        super().__init__(decode)
        self.urls, self.post, self.together, self.answers, self.render = urls, post, together, answers, render
        self.logs: list[dict[str, float]] = []  # of each response, what was said beside the reward at the last call

    def values(self, responses: Responses) -> list[Value]:
        """
        Raises:
            UserError: a server does not answer, or its answer does not hold a number or parts for each response; it names the
                server and shows what it said. What other servers answered meanwhile is kept.
        """
        questions = [self._question(responses, row) for row in range(len(responses.texts))]
        keys = [(row, _hash(question)) for row, question in enumerate(questions)]
        missing = [row for row, key in enumerate(keys) if self.answers.get(*key) is None]
        share = -(-len(missing) // len(self.urls))
        shares = [missing[share * i : share * (i + 1)] for i in range(len(self.urls))]
        with ThreadPoolExecutor(len(self.urls)) as threads:
            asked = [threads.submit(self._ask, url, rows, questions, keys) for url, rows in zip(self.urls, shares, strict=True)]
        told = {row: answer for future in asked for row, answer in future.result().items()}
        found = [told[row] if row in told else self.answers.get(*key) for row, key in enumerate(keys)]
        self.logs = [answer["logs"] for answer in found]
        return [_read_back(answer["value"]) for answer in found]

    def _question(self, responses: Responses, row: int) -> dict:
        """What is asked of one response."""
        start, rest = responses.prompt_ids[row], responses.response_ids[row]
        return {
            "query": self.render([*start, *rest]),
            "prompts": self.render(list(start)),
            "responses": responses.texts[row],
            "labels": responses.labels[row] if responses.labels else "",
            "messages": responses.prompts[row],
        }

    def _ask(
        self, url: str, rows: Sequence[int], questions: Sequence[dict], keys: Sequence[tuple[int, str]]
    ) -> dict[int, dict]:
        """The answers of one server to some rows, kept as they come."""
        told: dict[int, dict] = {}
        for first in range(0, len(rows), self.together):
            chunk = rows[first : first + self.together]
            body = {field: [questions[row][field] for row in chunk] for field in questions[chunk[0]]}
            answers = answers_of(self._posted(url, body), body["responses"], url)
            self.answers.add({keys[row]: answer for row, answer in zip(chunk, answers, strict=True)})
            told |= zip(chunk, answers, strict=True)
        return told

    def _posted(self, url: str, body: dict) -> Any:
        try:
            return self.post(url, body)
        except NoAnswer as error:
            raise fault(url, str(error), GO_ON) from error


def answers_of(said: Any, texts: Sequence[str], url: str) -> list[dict]:
    """An answer of the contract, response by response: `value`, a number or parts, and `logs`, numbers by name.

    Raises:
        UserError: it has no `rewards`, or not a number or parts for each response, or logs that are no numbers.
    """

    def error(found: str, fix: str) -> UserError:
        return fault(url, f"{found}; it answered {_shown(said)}", f"{fix}; {GO_ON}")

    rewards = said.get("rewards") if isinstance(said, dict) else None
    if not isinstance(rewards, list):
        raise error("gave no list 'rewards'", 'let it answer {"rewards": [...]}')
    values, columns = checked_values(rewards, texts, error), {}
    extra = said.get("extra_logs") or {}
    if not isinstance(extra, dict):
        raise error(
            "gave 'extra_logs' that have no names", "let them be numbers, or lists of a number for each response, by name"
        )
    for name, found in {**extra, **({"scores": said["scores"]} if said.get("scores") is not None else {})}.items():
        column = found if isinstance(found, list) else [found] * len(texts)
        if len(column) != len(texts) or not all(_is_finite(number) for number in column):
            raise error(f"gave {name!r} that is neither a number nor one for each response", "leave it out, or correct it")
        columns[name] = column
    logs = [{name: float(column[i]) for name, column in columns.items()} for i in range(len(texts))]
    return [{"value": value, "logs": log} for value, log in zip(values, logs, strict=True)]


def fault(url: str, found: str, fix: str) -> UserError:
    """What is wrong with a server, which other ranks may not have met."""
    return UserError(f"`reward_url` {url} {found}", fix, one_rank=True)


def _read_back(value: Any) -> Value:
    """A value as it was before it was kept as JSON."""
    return value if isinstance(value, float) else [(end, number) for end, number in value]


def _hash(question: dict) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _shown(said: Any) -> str:
    text = json.dumps(said)
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "")
