"""Options of sampling."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, RESUMABLE, Config, Only
from denserl.errors import require


@dataclass(kw_only=True)
class DecodingConfig(Config):
    """How responses are sampled, but for how long they may be and how far from the most likely ones."""

    group: ClassVar[str] = "sampling"

    max_prompt_length: Annotated[int, Ge(1)] = 1024
    """A longer prompt loses tokens on its left."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    sample_batch_size: Annotated[int, Ge(1), RESUMABLE] = 64
    """Responses under way at a time on one rank."""


@dataclass(kw_only=True)
class SamplingConfig(DecodingConfig):
    """How responses are sampled."""

    group: ClassVar[str] = "sampling"

    max_new_tokens: Annotated[int, FIRST, Ge(1)] = 1024
    """Longest response."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Sampling temperature; log-probabilities are of the same distribution."""


# A lower one vLLM takes for this one, or for the most likely token.
LEAST_TEMPERATURE = 0.01
BY_VLLM = Only("without `rollout_engine` vllm", lambda c: c.rollout_engine == "vllm")


@dataclass(kw_only=True)
class EngineConfig(SamplingConfig):
    """What samples the responses of a training, and how far its log-probabilities may be from the policy's."""

    group: ClassVar[str] = "rollouts by an engine"

    rollout_engine: Literal["policy", "vllm"] = "policy"
    """policy: the own decoder. vllm: servers of vLLM, which have an environment of their own (docs/rollouts.md)."""
    rollout_url: Annotated[list[str] | None, RESUMABLE, BY_VLLM] = None
    """Address of a server that is running, http://HOST:PORT; of several each is given its share of the responses."""
    rollout_python: Annotated[str | None, RESUMABLE, BY_VLLM] = None
    """Python of the environment in which vLLM is installed: the command starts a server on this host, and ends it."""
    rollout_args: Annotated[str | None, RESUMABLE, Only("without `rollout_python`", lambda c: c.rollout_python is not None)] = (
        None
    )
    """Further arguments of the server that is started, in quotes: "--gpu-memory-utilization 0.5 --tensor-parallel-size 2"."""
    rollout_sync: Annotated[Literal["broadcast", "disk"], RESUMABLE, BY_VLLM] = "broadcast"
    """How servers are given the weights after an update: by a process group (gloo, or NCCL on CUDA), or as files in the output
    folder, which they must be able to read."""
    rollout_sleep: Annotated[bool, RESUMABLE, BY_VLLM] = False
    """Let the servers free their GPU memory while the policy is trained, where they share its GPUs."""
    rollout_timeout: Annotated[float, Gt(0), RESUMABLE, BY_VLLM] = 600.0
    """Seconds to wait for a server's start, one response, or one step of an update."""
    rollout_any_version: Annotated[bool, RESUMABLE, BY_VLLM] = False
    """Take servers of versions of vLLM that were not tried."""
    rollout_correction: Annotated[Literal["none", "truncated", "masked"], BY_VLLM] = "none"
    """Weight of a token in the policy's loss: its probability by the policy over that by the engine, truncated at `rollout_cap`
    (TIS), or masked, 0 where it is above that or below its inverse (as in IcePop); none: 1."""
    rollout_cap: Annotated[float, Gt(1), Only("without `rollout_correction`", lambda c: c.rollout_correction != "none")] = 2.0
    """The largest weight."""

    def check(self) -> None:
        super().check()
        if self.rollout_engine != "vllm":
            return
        require(
            bool(self.rollout_url) != bool(self.rollout_python),
            f"`rollout_engine` vllm with {'both' if self.rollout_url else 'none'} of `rollout_url` and `rollout_python`",
            "give the address of a server that runs, or the Python of the environment from which one is started",
        )
        require(
            self.top_p == 1 or self.rollout_correction == "none",
            f"`rollout_correction` {self.rollout_correction} with `top_p` {self.top_p:g}: the engine's log-probabilities are "
            "of what is left of the distribution, the policy's of the whole",
            "leave `top_p` or `rollout_correction` out",
        )
        require(
            self.temperature >= LEAST_TEMPERATURE,
            f"`temperature` {self.temperature:g}: vLLM has none between 0 and {LEAST_TEMPERATURE:g}",
            f"give {LEAST_TEMPERATURE:g} or more",
        )
