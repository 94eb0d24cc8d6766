"""The sampler of a PPO run that asks servers: found or started, and given the policy's weights as they are."""

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.chat import stop_ids
from denserl.errors import require
from denserl.files import make_folder
from denserl.models.four_bit import form_of
from denserl.models.gathering import merged_weights
from denserl.models.saving import save_merged
from denserl.ppo_utils.experience import ScoredRollouts
from denserl.ppo_utils.mismatch import importance_weights
from denserl.rollouts.servers import Needs, Servers
from denserl.rollouts.starting import Sizes, Started
from denserl.rollouts.sync import Described, Sync
from denserl.rollouts.vllm import Decoding, VLLMSampler
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_models import Models

log = logging.getLogger(__name__)


# Nats a token, on average, between the policy and an engine with its weights: rounding in bf16 comes to hundredths of one.
MOST_MISMATCH = 0.2


class PolicyWeights:
    """The policy's weights for its servers (see `rollouts.sync.Weights`)."""

    def __init__(self, models: Models):
        self.models = models

    def version(self) -> int:
        return self.models.actor.global_steps

    def described(self) -> list[Described]:
        forms = [(name, form_of(weight)) for name, weight, _ in self._weights()]
        return [Described(name, list(getattr(form, "ds_shape", form.shape)), form.dtype) for name, form in forms]

    def whole(self) -> Iterator[Tensor]:
        for _, _, weight in self._weights():
            yield weight()

    def save(self, folder: Path) -> None:
        policy = self.models.current_policy()
        if distributed.rank() == 0:
            save_merged(policy, folder)
        distributed.barrier()

    def _weights(self) -> Iterator[tuple[str, nn.Parameter, Callable[[], Tensor]]]:
        return merged_weights(self.models.trained_policy)


class Engine:
    """The servers of a run, and what samples from them. What is started for it ends with `close`.

    dtype: fp32 or bf16.
    """

    def __init__(self, config: PPOConfig, models: Models, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: str):
        self.config, self.device, self.dtype = config, device, dtype
        self.weights = PolicyWeights(models)
        self.started: Started | None = None
        self.folder = Path(config.output_dir) / "rollout"
        policy = models.trained_policy
        ends = stop_ids(tokenizer, policy.generation_config)
        vocabulary = policy.config.get_text_config().vocab_size
        decoding = Decoding(ends, config.max_new_tokens, config.temperature, config.top_p, vocabulary)
        files = self.folder / "weights" if config.rollout_sync == "disk" else None
        sync = Sync(self.weights, files, config.rollout_timeout, device)
        self.sampler = VLLMSampler(self._open, sync, decoding, config.sample_batch_size, config.rollout_sleep)

    def close(self) -> None:
        """End the server that was started, if one was."""
        if self.started is not None:
            self.started.close()

    def _open(self) -> Servers:
        """The servers, found to be such as a training can sample from. Collective."""
        config = self.config
        tokens = config.max_prompt_length + config.max_new_tokens
        servers = Servers(config.rollout_url or [self._start(tokens)], config.rollout_timeout)
        needs = Needs(tokens, config.rollout_sync == "broadcast", config.rollout_sleep, config.rollout_any_version)
        distributed.by_rank_0(lambda: servers.check(needs))
        log.info("rollouts by vLLM at %s", ", ".join(servers.urls))
        return servers

    def _start(self, tokens: int) -> str:
        hosts = set(distributed.gather_objects(socket.gethostname()))
        require(
            len(hosts) == 1,
            f"`rollout_python` starts a server for the ranks of one host, and there are {len(hosts)}",
            "start servers yourself, as docs/rollouts.md has it, and give their addresses with `rollout_url`",
        )
        if distributed.rank() == 0:
            make_folder("output_dir", str(self.folder))
        model = self.folder / "weights"
        self.weights.save(model)
        responses = self.config.sample_batch_size * distributed.world_size()
        sizes = Sizes(tokens, responses, self.dtype, self.device.type == "cuda", self.config.rollout_sleep)

        def start() -> str:
            log.info("starting vLLM, which takes minutes; it writes into %s", self.folder / "server.log")
            self.started = Started(
                self.config.rollout_python, model, sizes, self.folder / "server.log", self.config.rollout_args
            )
            self.started.wait(self.config.rollout_timeout)
            return self.started.url

        return distributed.by_rank_0(start)


def correction(config: PPOConfig, scored: ScoredRollouts) -> Tensor | None:
    """Weights of tokens in the policy's loss, where they are asked for."""
    if config.rollout_correction == "none":
        return None
    kind, cap = config.rollout_correction, config.rollout_cap
    return importance_weights(scored.logprobs, scored.sampled, scored.mask, kind, cap)


def check_mismatch(metrics: dict[str, float]) -> None:
    """UserError where what has sampled is not the policy, by the means over a rollout."""
    mean = metrics.get("rollout_mismatch_mean", 0.0)
    require(
        not mean > MOST_MISMATCH,
        f"the engine's log-probabilities are {mean:.2g} nats a token from the policy's, on average: it runs another model, or "
        "runs this one otherwise",
        "start the server with the policy's own model, as docs/rollouts.md has it, and go on with `resume`",
    )
