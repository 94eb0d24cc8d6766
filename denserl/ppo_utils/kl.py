"""KL between policy and reference: per-token estimators, the penalty in the reward, and its coefficient."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ESTIMATORS = ("k1", "k2", "k3")


def approx_kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy (Schulman 2020, joschu.net/blog/kl-approx).

    With d = log pi - log pi_ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. Any shape in, the same shape out, fp32.

    Raises:
        ValueError: unknown estimator.
    """
    d = logprobs.float() - ref_logprobs.float()
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d**2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"unknown KL estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")


def penalised_rewards(token_rewards: Tensor, kl: Tensor, mask: Tensor, beta: float, clip: float = 10.0) -> Tensor:
    """clip(token reward, -clip, clip) - beta * kl on response tokens, 0 elsewhere (docs/numerics.md). (B, T)."""
    return torch.where(mask.bool(), token_rewards.clamp(-clip, clip) - beta * kl, 0.0)


@dataclass
class KLCoefficient:
    """The weight beta of the KL penalty: constant, or steered towards a target KL (Ziegler et al. 2019, section 2.2)."""

    beta: float
    target: float | None = None
    horizon: int = 10000

    def update(self, kl: float, responses: int) -> None:
        """Adapt to the mean KL per response (nats) of `responses` responses; nothing to do without a target or a finite KL."""
        if self.target is not None and math.isfinite(kl):
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * responses / self.horizon
