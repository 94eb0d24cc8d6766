"""Servers of vLLM as they are asked, and what must be true of them before anything is sampled there.

None of what is asked needs a login: they belong on loopback, or in a network of one's own (docs/rollouts.md).
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from denserl.errors import UserError, require
from denserl.http import SHOWN, Calls, NoAnswer, Patience, get_json, new_client, post_json

TRIED = ("0.32.0",)
EXTENSION, BACKEND = "denserl_engine.Extension", "denserl"
PROCESSED = "processed_logprobs"
GO_ON = "mend or start it, then go on with `resume` from the last checkpoint"


class Needs(NamedTuple):
    """What the servers of a run must be able to do: tokens of prompt and response together, updates by a group, sleep."""

    tokens: int
    broadcast: bool
    sleep: bool
    any_version: bool


class Servers:
    """Servers at some addresses, asked once: a training that asks again would not know whether it asks the same server.

    seconds: how long an answer is waited for.
    """

    def __init__(self, urls: Sequence[str], seconds: float):
        self.urls = [url.rstrip("/") for url in urls]
        self.client, self.patience = new_client(), Patience(seconds, 1)

    def get(self, url: str, path: str) -> Any:
        """What a server says. UserError where it says nothing, or something else than JSON."""
        return self._answer(url, lambda: get_json(self.client, url + path, self.patience))

    def post(self, url: str, path: str, body: dict) -> Any:
        """What a server answers (see `get`)."""
        return self._answer(url, lambda: post_json(self.client, url + path, body, self.patience))

    def asked(self, path: str, bodies: Mapping[str, dict] | None = None) -> Calls:
        """All servers asked at once; bodies: of each, by its address."""
        return Calls(lambda url, _: self.post(url, path, bodies[url] if bodies else {}), self.urls, len(self.urls))

    def post_all(self, path: str, bodies: Mapping[str, dict] | None = None) -> None:
        """The same, waited for."""
        list(self.asked(path, bodies).answers())

    def check(self, needs: Needs) -> None:
        """UserError unless each server is one that a training can sample from; it says with which options one is."""
        for url in self.urls:
            said = self.get(url, "/version")
            version = said.get("version") if isinstance(said, dict) else None
            require(isinstance(version, str), f"{url} is no server of vLLM: it answered {shown(said)}", "give another address")
            require(
                version.split("+")[0] in TRIED or needs.any_version,
                f"{url} is of vLLM {version}; tried is {', '.join(TRIED)}",
                f"install vllm=={TRIED[-1]} there, or take it as it is with `rollout_any_version`",
            )
            self._check_settings(url, needs)

    def _check_settings(self, url: str, needs: Needs) -> None:
        try:
            said = self.get(url, "/server_info?config_format=json")
        except UserError as error:
            raise fault(url, "does not let itself be given weights", "start it with VLLM_SERVER_DEV_MODE=1") from error
        longest, mode, sleeps = (
            _found(said, "model_config", name) for name in ("max_model_len", "logprobs_mode", "enable_sleep_mode")
        )
        extension = _found(said, "parallel_config", "worker_extension_cls")
        backend = _found(said, "weight_transfer_config", "backend")
        settings = {
            f"max-model-len {needs.tokens}": isinstance(longest, int) and longest >= needs.tokens,
            f"logprobs-mode {PROCESSED}": mode == PROCESSED,
            f"worker-extension-cls {EXTENSION}": extension == EXTENSION,
            f"weight-transfer-config '{json.dumps({'backend': BACKEND})}'": backend == BACKEND or not needs.broadcast,
            "enable-sleep-mode": sleeps is True or not needs.sleep,
        }
        missing = [option for option, there in settings.items() if not there]
        require(not missing, f"{url} was started without {', '.join(missing)}", "start it as docs/rollouts.md has it")

    def _answer(self, url: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except NoAnswer as error:
            raise fault(url, str(error)) from error


def fault(url: str, found: str, fix: str = GO_ON) -> UserError:
    """What is wrong with a server, which other ranks may not have met."""
    return UserError(f"the engine at {url} {found}", fix, one_rank=True)


def shown(said: Any) -> str:
    """The beginning of an answer, for a message."""
    text = json.dumps(said)
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "")


def _found(said: Any, *names: str) -> Any:
    """A value inside the settings that a server tells; None where there is none."""
    inside = said.get("vllm_config") if isinstance(said, dict) else None
    return functools.reduce(lambda value, name: value.get(name) if isinstance(value, dict) else None, names, inside)
