"""An OpenAI-compatible server for tests, whose judge follows a rule: it knows what each answer is worth.

    rule = Rule(find_template("pairwise"), noise=0.2, position_bias=0.3, invalid=0.05)
    with serving(rule) as server:
        denserl ... --judge {server.url}

The rule reads prompt and answers out of any template's text, and says the better one's mark, or a rating of the one answer.
What it says is a function of the request (messages, model, temperature, seed): the same request has the same answer, however
often and beside whatever it is sent; other seeds are other draws. Where log-probabilities are asked for, it tells those of the
marks in closed form. `RuleBackend(rule)` is the same judge without a server: thousands of requests in a second.

`server.bodies` holds what was answered, `server.headers` the headers of all requests. `serving` takes
    faults: of busy (429 with Retry-After), hang, cut (the connection ends within an answer), and others as (status, body):
        every request meets one of them at its first try, drawn by its hash, and is answered at the second; None among them: no
        fault.
    key: without it, 401.
    delay: seconds an answer takes.
"""

import contextlib
import hashlib
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from reward_server import listening, respond

from denserl.judging.contract import Reply, Request
from denserl.judging.endpoint import body_of, reply_of
from denserl.judging.templates import Template
from denserl.world.language import response_reward

MODEL = "rule"
# Private characters: no template has them.
PLACES = "\ue000", "\ue001", "\ue002"


def draw(what: str, body: dict) -> float:
    """A number in [0, 1) that is drawn for a purpose and a request."""
    asked = json.dumps([what, *(body.get(name) for name in ("messages", "model", "temperature", "seed"))], sort_keys=True)
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:6], "big") / 2**48


@dataclass(frozen=True)
class Rule:
    """What the judge says of what a template shows it.

    value: of a prompt and an answer, such as the embedded world's true reward (from -1 to 1).
    noise: how often the worse answer is called the better one, and how often a rating is one off. invalid: how often nothing of
    use is said. position_bias: how often the first answer is preferred, whatever it is.
    rated: what a rating is said in.
    """

    template: Template
    value: Callable[[str, str], float] = response_reward
    noise: float = 0.0
    position_bias: float = 0.0
    invalid: float = 0.0
    rated: str = "Rating: [[{}]]"
    pattern: re.Pattern = field(init=False)

    def __post_init__(self):
        answers = PLACES[1:] if self.template.kind == "compare" else PLACES[1:2]
        shown = self.template.messages([{"role": "user", "content": PLACES[0]}], answers)[-1]["content"]
        assert all(shown.count(place) == 1 for place in (PLACES[0], *answers))
        shown = re.escape(shown)
        for place, name in zip(PLACES, ("prompt", "first", "second"), strict=True):
            shown = shown.replace(re.escape(place), f"(?P<{name}>.*)")
        object.__setattr__(self, "pattern", re.compile(shown, re.DOTALL))

    def read(self, messages: list[dict]) -> tuple[str, list[str]]:
        """The prompt and the answers that are shown."""
        found = self.pattern.fullmatch(messages[-1]["content"])
        assert found, messages
        prompt, *answers = (found[name] for name in ("prompt", "first", "second") if name in self.pattern.groupindex)
        return prompt, answers

    def chance(self, messages: list[dict]) -> float:
        """That of the first answer, where something of use is said."""
        prompt, (first, second) = self.read(messages)
        lead = self.value(prompt, first) - self.value(prompt, second)
        chosen = 0.5 if lead == 0 else 1 - self.noise if lead > 0 else self.noise
        return self.position_bias + (1 - self.position_bias) * chosen

    def says(self, body: dict) -> str:
        """The judge's text."""
        if draw("invalid", body) < self.invalid:
            return "I would rather not say."
        said = self.rating(body) if self.template.kind == "rate" else self.mark(body)
        return said if self.template.one_token else f"I have read what is there.\n\n{said}"

    def mark(self, body: dict) -> str:
        """Of a comparison: of the one that is drawn with the chance above, or of a tie where the template has one."""
        marks = {says: mark for mark, says in self.template.marks.items()}
        prompt, answers = self.read(body["messages"])
        first, second = (self.value(prompt, answer) for answer in answers)
        if first == second and "tie" in marks and draw("bias", body) >= self.position_bias:
            return marks["tie"]
        return marks["first" if draw("chosen", body) < self.chance(body["messages"]) else "second"]

    def rating(self, body: dict) -> str:
        """Of one answer: its value from -1 to 1 on the template's scale."""
        prompt, (answer,) = self.read(body["messages"])
        low, high = self.template.scale
        exact = low + (high - low) * (self.value(prompt, answer) + 1) / 2
        off = 0 if draw("noise", body) >= self.noise else 1 if draw("up", body) < 0.5 else -1
        return self.rated.format(min(max(round(exact) + off, low), high))

    def logprobs(self, body: dict) -> list[dict]:
        """Of the first and the second answer's mark, and of a word that is none, as far as they are possible."""
        marks = {says: mark for mark, says in self.template.marks.items()}
        chance, valid = self.chance(body["messages"]), 1 - self.invalid
        chances = {marks["first"]: valid * chance, marks["second"]: valid * (1 - chance), "I": self.invalid}
        told = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items() if chance > 0]
        return sorted(told, key=lambda entry: -entry["logprob"])[: body["top_logprobs"]]

    def completion(self, body: dict) -> dict:
        """What is answered to the body of a request."""
        words = self.says(body).split(" ")
        kept = words[: body["max_tokens"]]
        choice = {"index": 0, "message": {"role": "assistant", "content": " ".join(kept)}}
        choice["finish_reason"] = "stop" if kept == words else "length"
        if body.get("logprobs"):
            told = self.logprobs(body)
            choice["logprobs"] = {"content": [{**told[0], "top_logprobs": told}]}
        read = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": read, "completion_tokens": len(kept), "total_tokens": read + len(kept)}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}


class RuleBackend:
    """A judge that follows a rule, as a Backend; `asked` are the requests."""

    name, version = MODEL, ""

    def __init__(self, rule: Rule):
        self.rule, self.asked = rule, []

    def prompt_tokens(self, messages: list[dict]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for number, request in enumerate(requests):
            self.asked.append(request)
            yield number, reply_of(self.rule.completion(body_of(self.name, request)), request, 0)


class Server:
    """What a server has seen: bodies that were answered, headers of all requests, tries of each body."""

    url = ""

    def __init__(self):
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.tries: Counter = Counter()
        self.closing = threading.Event()


@contextlib.contextmanager
def serving(
    rule: Rule,
    *more: Rule,
    faults: Sequence[str | tuple[int, str] | None] = (None,),
    key: str | None = None,
    delay: float = 0.0,
    model: str = MODEL,
) -> Iterator[Server]:
    """Serves while the context lasts. more: rules of further templates that may be shown."""
    seen = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.begin()
            if self.is_let_in("/v1/models"):
                self.say(200, {"object": "list", "data": [{"id": model, "object": "model"}]})

        def do_POST(self):
            self.begin()
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.is_let_in("/v1/chat/completions"):
                return
            if body["model"] != model:
                self.say(404, {"error": {"message": f"no model {body['model']}"}})
            elif not self.fails(body):
                seen.closing.wait(delay)
                said = next(each for each in (rule, *more) if each.pattern.fullmatch(body["messages"][-1]["content"]))
                self.say(200, said.completion(body))
                seen.bodies.append(body)

        def begin(self):
            seen.headers.append({name.lower(): value for name, value in self.headers.items()})

        def is_let_in(self, path: str) -> bool:
            """Whether a request has the key and knows the place; else it is told."""
            has_key = key is None or self.headers["authorization"] == f"Bearer {key}"
            if not has_key:
                self.say(401, {"error": {"message": "no such key", "type": "invalid_request_error"}})
            elif self.path != path:
                self.say(404, {"detail": "Not Found"})
            return has_key and self.path == path

        def fails(self, body: dict) -> bool:
            """Whether the request meets a fault."""
            asked = json.dumps(body)
            seen.tries[asked] += 1
            fault = faults[int(draw("fault", body) * len(faults))] if seen.tries[asked] == 1 else None
            if fault == "busy":
                self.say(429, {"error": {"message": "too many requests"}}, {"retry-after": "0"})
            elif fault == "hang":
                seen.closing.wait()
            elif fault == "cut":
                self.say(200, {}, {"content-length": "1000"})
            elif fault is not None:
                self.say(fault[0], fault[1])
            self.close_connection = self.close_connection or fault in ("hang", "cut")
            return fault is not None

        def say(self, status: int, said: dict | str, headers: dict[str, str] | None = None):
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            respond(self, status, headers or {}, content)

        def log_message(self, *args):
            pass

    with listening(Handler) as port:
        seen.url = f"http://127.0.0.1:{port}/v1"
        try:
            yield seen
        finally:
            seen.closing.set()
