"""Options of `serve-rewards`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from denserl.config import FIRST, MODEL, Only
from denserl.evaluation.config import SolutionConfig
from denserl.rewards.config import EnsembleConfig, ReadConfig, ScorerConfig


@dataclass(kw_only=True)
class ServeConfig(SolutionConfig, ReadConfig, EnsembleConfig, ScorerConfig):
    """Answer HTTP requests with the rewards of responses: of their tokens, their segments and the whole."""

    group: ClassVar[str] = "server"

    reward_model: Annotated[
        list[str] | None,
        MODEL,
        FIRST,
        Only(
            "without `reward_model`",
            lambda c: c.reward_model,
            of=(
                *("sft_model", "entropy_threshold", "segmenter", "read_at", "max_length", "score_tokens", "dtype"),
                *("step_separator", "step_pattern", "max_steps", "skip_cut_step", "aggregate"),
                *("chat_template", "system_prompt", "template_date", "revision", "device", "attention", "trust_remote_code"),
            ),
        ),
    ] = None
    """Reward model: folder or hub name. Several are an ensemble, each standardised by its own mean and std."""
    reward_function: Annotated[str | None, FIRST, Only("with `reward_model`", lambda c: not c.reward_model)] = None
    """module:function of (prompts, responses) -> a number each, or (end character, number) of its parts, instead."""
    sft_model: Annotated[str | None, MODEL] = None
    """Model whose entropies cut the responses; default: the one in the reward model's config."""
    host: Annotated[str, FIRST] = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone."""
    port: Annotated[int, FIRST, Interval(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    token_env: Annotated[str | None, FIRST] = None
    """Name of the environment variable with the token that requests must bring; default: none is asked for."""
    max_rows: Annotated[int, Ge(1)] = 1024
    """Responses in one request, and in one pass of the requests that wait."""
    max_request_mib: Annotated[int, Ge(1)] = 32
    """Size of a request's body."""
    max_waiting: Annotated[int, Ge(1)] = 16384
    """Responses that wait to be scored, over all requests; beyond, a request is told to come back later."""

    def members(self) -> list[str]:
        return self.reward_model or []
