"""Reward sources behind HTTP: for runs of other libraries, and of this one, in other environments and on other machines."""

import importlib.util
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from denserl.cli.launch import launch
from denserl.errors import require
from denserl.serving.config import ServeConfig
from denserl.terminal import quiet_libraries, say

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(ServeConfig):
    """Score responses for whoever asks by HTTP: the numbers of `evaluate` and `train-ppo`, for any library's policy."""


def run(options: Options) -> None:
    options.check()
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    require(not missing, f"{' and '.join(missing)} is not installed", "pip install denserl[serve]")
    require(
        os.environ.get("WORLD_SIZE", "1") == "1",
        f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')}: a server is one process",
        "start it without a launcher; several servers, each with its port, share the work",
    )
    token = token_of(options.token_env)

    from denserl.serving.server import bound_socket, is_loopback, serve

    with bound_socket(options.host, options.port) as bound:
        if token is None and not is_loopback(bound):
            log.warning("anyone who reaches %s can ask: name the variable of a token with --token_env", options.host)
        app = app_of(options, token)
        bound.listen()  # who reads the next line may ask
        host, port = bound.getsockname()[:2]
        say(f"serving {' '.join(options.members()) or options.reward_function} at http://{_in_url(host)}:{port}")
        serve(app, bound)
    say("stopped")


def app_of(options: Options, token: str | None = None) -> "FastAPI":
    """The application that a server answers by. token: what it asks for."""
    from denserl.serving.app import Limits, make_app

    limits = Limits(options.max_rows, options.max_request_mib * 2**20, options.max_waiting)
    return make_app(make_service(options), limits, token)


def token_of(variable: str | None) -> str | None:
    """The token in an environment variable; None where none is asked for."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    require(token, f"`token_env` {variable}: that variable is not set, or empty", f"set it before: export {variable}=...")
    return token


def make_service(options: Options):
    """What scores."""
    require(
        options.reward_model or options.reward_function,
        "neither `reward_model` nor `reward_function` is given",
        "give one of the two",
    )
    if options.reward_function:
        from denserl.serving.functions import FunctionService

        return FunctionService(options.reward_function)

    from denserl.rewards.scorer import RewardScorer
    from denserl.rewards.step_scorer import load_scorer
    from denserl.serving.models import ModelService
    from denserl.serving.step_models import StepModelService
    from denserl.trainer.start import device_and_precision

    quiet_libraries()
    device, dtype = device_and_precision(options)
    how: dict[str, Any] = {"sft_model": options.sft_model, "aggregate": options.aggregate, "template": options.template()}
    scorer = load_scorer(options.reward_model, options, device, dtype, read=options, **how)
    return ModelService(scorer) if isinstance(scorer, RewardScorer) else StepModelService(scorer)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main(argv: list[str] | None = None) -> None:
    launch(Options, "serve-rewards", run, argv)


if __name__ == "__main__":
    main()
