"""What critic and policy lose on the micro-batches of an optimiser step, each term averaged over the whole step.

Formulas are in denserl/ppo_utils/losses.py; which of the two is trained when is in ppo_trainer.py.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from denserl import distributed
from denserl.data.batching import ResponseBatch
from denserl.ppo_utils.experience import Experience
from denserl.ppo_utils.kl import approx_kl
from denserl.ppo_utils.losses import average_count, kl_loss, masked_average, policy_loss, value_loss
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_models import Models, logprob_entropy, state_values

# A loss with its gradient, and what is logged beside it.
Loss = tuple[Tensor, dict[str, Tensor]]


class Part(NamedTuple):
    """A micro-batch of an optimiser step."""

    batch: ResponseBatch
    old: Experience
    text: ResponseBatch | None  # for the pretraining loss


class StepLosses:
    """The losses of one optimiser step.

    parts: its micro-batches on this rank, equally many on all. value_clip: the range of values. beta: weight of a KL in the
    loss.
    tokens, policy, text: what a micro-batch's sums are divided by, of all response tokens (or of responses), of those that the
    policy learns from, and of text. DeepSpeed takes the mean over micro-batches and ranks; what remains is the count of
    the whole step.
    """

    def __init__(self, config: PPOConfig, models: Models, parts: Sequence[Part], value_clip: float, beta: float):
        self.config, self.models, self.parts, self.value_clip, self.beta = config, models, parts, value_clip, beta
        everyone, constant = config.average_of_all(), config.max_new_tokens
        self.tokens = self._share([average_count(part.old.mask, everyone) for part in parts])
        self.policy = self._share([average_count(part.old.policy_mask, config.average, constant) for part in parts])
        texts = [part.text.response_mask.sum() for part in parts if part.text is not None]
        self.text = self._share(texts) if texts else None

    def of_critic(self, part: Part) -> Loss:
        """The clipped loss of values."""
        old, values = part.old, state_values(self.models.critic, part.batch)
        averaged = (old.mask, self.value_clip, self.config.average_of_all(), self.tokens)
        loss, clipped = value_loss(values, old.values, old.returns, *averaged)
        return self.config.value_coef * loss, {"value_loss": loss.detach(), "value_clip_fraction": clipped}

    def of_actor(self, part: Part) -> Loss:
        """The clipped surrogate, and what is added to it: the terms of entropy, KL and text."""
        config, old = self.config, part.old
        logprobs, entropy = self._now(part.batch, with_entropy=config.entropy_coef > 0)
        averaged = (old.policy_mask, config.policy_clip, config.average, self.policy, config.dual_clip)
        loss, clipped = policy_loss(logprobs, old.logprobs, old.advantages, *averaged, old.weights)
        now, everyone = logprobs.detach(), (old.mask, config.average_of_all(), self.tokens)
        log = {
            "policy_loss": loss.detach(),
            "clip_fraction": clipped,
            "approx_kl": masked_average(approx_kl(old.logprobs, now, "k3"), *everyone),
            "ratio": masked_average((now - old.logprobs).exp(), *everyone),
        }
        if entropy is not None:
            mean = self._mean_entropy(entropy, old)
            loss = loss + self._entropy_slope * mean
            log["entropy_loss"] = self._entropy_slope * (mean.detach() - (config.entropy_target or 0.0))
        if config.kl_in == "loss":
            of_reference = kl_loss(logprobs, old.ref_logprobs, old.policy_mask, config.average, self.policy)
            loss = loss + self.beta * of_reference
            log["kl_loss"] = of_reference.detach()
        if part.text is not None:
            ptx_loss = self._ptx_loss(part.text.to(logprobs.device))
            loss = loss + config.ptx_coef * ptx_loss
            log["ptx_loss"] = ptx_loss.detach()
        return loss, log

    @cached_property
    def _entropy_slope(self) -> Tensor | float:
        """The derivative of the entropy term by the mean entropy of the optimiser step.

        -entropy_coef, or of the distance to a target its sign, for which the whole step is read once more.
        """
        coef, target = self.config.entropy_coef, self.config.entropy_target
        if target is None:
            return -coef
        with torch.no_grad():
            means = torch.stack([self._mean_entropy(self._now(part.batch, True)[1], part.old) for part in self.parts])
        mean = distributed.all_sum(means.sum()) / len(self.parts) / distributed.world_size()
        return coef * torch.sign(mean - target)

    def _mean_entropy(self, entropy: Tensor, old: Experience) -> Tensor:
        """Of the tokens that the policy learns from, averaged as its loss is."""
        return masked_average(entropy, old.policy_mask, self.config.average, self.policy)

    def _ptx_loss(self, text: ResponseBatch) -> Tensor:
        """Next-token loss of a micro-batch of text, averaged over the response tokens of the whole step."""
        logprobs, _ = logprob_entropy(self.models.actor, text, 1.0, with_entropy=False)
        return -masked_average(logprobs, text.response_mask, "token_mean", self.text)

    def _now(self, batch: ResponseBatch, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities, and entropies where they are wanted, by the policy as it is."""
        return logprob_entropy(self.models.actor, batch, self.config.temperature, with_entropy)

    def _share(self, counts: Sequence[Tensor]) -> Tensor:
        """Of what each micro-batch on this rank counts."""
        count = torch.stack(list(counts)).sum().float().to(self.parts[0].old.mask.device)
        return distributed.all_sum(count) / len(self.parts) / distributed.world_size()
