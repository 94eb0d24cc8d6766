"""A language model behind a server that speaks the chat completions of OpenAI's API, as vLLM and others do."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from denserl.data.responses import Messages
from denserl.errors import UserError, require
from denserl.http import SHOWN, Calls, NoAnswer, Patience, get_json, new_client, post_json, without
from denserl.judging.contract import Reply, Request
from denserl.judging.seeds import seed_of

# Where a server counts no tokens, or before it has: of English text, by the usual tokenizers, and around a message.
BYTES_PER_TOKEN, TOKENS_AROUND = 4, 4
SEED_BITS = 31  # some servers keep 32, with a sign
# What the longest answer is called: by all servers at first, and by those that refuse it.
LENGTH, NEWER_LENGTH = "max_tokens", "max_completion_tokens"
# Why an answer ends that is one, as OpenAI and text-generation-inference say it; other words, such as error, say it failed.
ENDINGS = ("stop", "length", "content_filter", "eos_token", "stop_sequence")


class Endpoint:
    """A Backend (see `contract.Backend`) that asks a server, several requests at a time.

    Args:
        url: base address, such as http://127.0.0.1:8000/v1.
        model: name by which the server knows the model; default: the one that it serves, for which it is asked.
        key: sent as `Authorization: Bearer`, and shown nowhere.
        concurrency: requests under way at a time.
        patience: of each request.
    """

    # What a server says of itself changes with its start, and an answer must be found again without asking.
    version = ""

    def __init__(self, url: str, model: str | None, key: str | None, concurrency: int, patience: Patience):
        self.url, self.model, self.key, self.concurrency, self.patience = url.rstrip("/"), model, key, concurrency, patience
        self.client, self.length = new_client(key), LENGTH

    @functools.cached_property
    def name(self) -> str:
        """UserError where the server does not say what it serves, or serves several models."""
        if self.model is not None:
            return self.model
        try:
            said = get_json(self.client, f"{self.url}/models", self.patience)
        except NoAnswer as error:
            raise self._fault(
                f"{error}, when asked for its models",
                "give its base address, such as http://HOST:PORT/v1, `judge_model` or `judge_key_env`, or start it",
            ) from error
        entries = said.get("data") if isinstance(said, dict) else None
        names = [entry.get("id") for entry in entries or () if isinstance(entry, dict)] if isinstance(entries, list) else []
        if len(names) == 1 and isinstance(names[0], str):
            return names[0]
        found = f"serves {len(names)} models: {', '.join(map(str, names))}" if names else f"names no model: {_shown(said)}"
        raise self._fault(found, "name one with `judge_model`")

    def prompt_tokens(self, messages: Messages) -> int:
        """An estimate, by the length of the text."""
        size = sum(len(str(message.get("content") or "").encode("utf-8", "replace")) for message in messages)
        return size // BYTES_PER_TOKEN + TOKENS_AROUND * len(messages)

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """The number of a request and its answer, as they come. What is not answered when it is left is not waited for.

        Raises:
            UserError: the server refuses a request, does not answer, or answers something else; with its own words.
        """
        name = self.name
        return Calls(lambda request, wait: self._ask(name, request, wait), requests, self.concurrency).answers()

    def _ask(self, name: str, request: Request, wait: Callable[[float], None]) -> Reply:
        body, patience = body_of(name, request, length := self.length), self.patience._replace(wait=wait)
        try:
            said = post_json(self.client, f"{self.url}/chat/completions", body, patience)
        except NoAnswer as error:
            # OpenAI's reasoning models answer 400, with the name that they take.
            if length == LENGTH and NEWER_LENGTH in str(error):
                self.length = NEWER_LENGTH
                return self._ask(name, request, wait)
            raise self._fault(str(error), "mend or start the server, or `judge_model` or `judge_key_env`") from error
        try:
            return reply_of(said, request, self.prompt_tokens(request.messages))
        except UserError as error:
            raise self._fault(f"{error.found}; it answered {_shown(said)}", error.fix) from error

    def _fault(self, found: str, fix: str) -> UserError:
        return UserError(f"the judge at {self.url} {without(self.key, found)}", fix, one_rank=True)


def body_of(name: str, request: Request, length: str = LENGTH) -> dict:
    """What is sent: the messages, and how an answer is sampled. length: what the longest answer is called."""
    max_new_tokens, temperature, top_p, top_logprobs = request.decoding
    body = {"model": name, "messages": request.messages, length: max_new_tokens, "temperature": temperature}
    if temperature > 0:
        body |= {"top_p": top_p, "seed": seed_of(request, SEED_BITS)}
    if top_logprobs:
        body |= {"logprobs": True, "top_logprobs": top_logprobs}
    return body


def reply_of(said: Any, request: Request, prompt_tokens: int) -> Reply:
    """The answer in a chat completion. prompt_tokens: an estimate, for servers that do not count.

    Raises:
        UserError: it holds no text, does not say why it ended, or lacks log-probabilities that were asked for.
    """
    choices = said.get("choices") if isinstance(said, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    fix = "give the base address of an OpenAI-compatible server, such as http://HOST:PORT/v1"
    require(isinstance(message, dict), "gave no answer", fix)
    require(not message.get("tool_calls"), "calls a tool", "let the server offer its model no tools")
    # A model that declines says so beside a content that is null.
    text = message.get("content") or message.get("refusal") or ""
    ended = choice.get("finish_reason")
    require(isinstance(text, str), "gave an answer that is no text", fix)
    require(ended in ENDINGS, f"gave an answer that ends for the reason {ended!r}; expected {' or '.join(ENDINGS)}", fix)
    usage = said.get("usage") if isinstance(said.get("usage"), dict) else {}
    prompt = _count(usage.get("prompt_tokens"), prompt_tokens)
    tokens = _count(usage.get("completion_tokens"), -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))
    first = first_logprobs(choice, request.decoding.top_logprobs) if request.decoding.top_logprobs else ()
    return Reply(text, ended == "length", prompt, tokens, first)


def first_logprobs(choice: dict, count: int) -> tuple[tuple[str, float], ...]:
    """The `count` most likely first tokens of a choice of a chat completion, with their log-probabilities; of no tokens none.

    Raises:
        UserError: it has no log-probabilities.
    """
    fix = "ask a server that gives `top_logprobs`, or for verdicts in words"
    try:
        content = choice["logprobs"]["content"]
        found = [(entry["token"], entry["logprob"]) for entry in content[0]["top_logprobs"]] if content != [] else []
    except (TypeError, LookupError) as error:
        raise UserError("gave no log-probabilities of first tokens", fix) from error
    for token, number in found:
        sound = isinstance(token, str) and isinstance(number, (int, float)) and abs(number) < math.inf
        require(sound, "gave log-probabilities that are none", fix)
    # Some tell that of the sampled token beside those that are asked for.
    return tuple(sorted(((token, float(number)) for token, number in found), key=lambda entry: -entry[1])[:count])


def _count(said: Any, estimate: int) -> int:
    return said if type(said) is int and said >= 0 else estimate


def _shown(said: Any) -> str:
    text = json.dumps(said)
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "")
