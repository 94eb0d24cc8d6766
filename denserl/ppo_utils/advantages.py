"""Generalised advantage estimation and whitening over all ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from denserl.distributed import all_sum


@dataclass(frozen=True)
class Advantages:
    """How advantages and returns are estimated from rewards of tokens (see `gae`), and what the policy then learns from.

    norm: whether advantages are whitened. clip: the bound of their size after that, or None.
    """

    gamma: float = 1.0
    lam: float = 0.95
    norm: bool = True
    clip: float | None = None

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) each, as `gae` has them -> advantages and returns, both (B, T) fp32, 0 off the mask."""
        return gae(rewards, values, mask, self.gamma, self.lam)

    def scaled(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Advantages (B, T) of the rollouts of all ranks, whitened over the masked ones and clipped as the settings say.

        (B, T) fp32, off the mask 0 where they are whitened, else clipped as they stand there.
        """
        scaled = whiten(advantages, mask) if self.norm else advantages
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): A_t = delta_t + gamma lam A_{t+1}.

    delta_t = r_t + gamma V_{t+1} - V_t, with V = 0 after the last response token. The recurrence is summed by doubling,
    log2(T) tensor steps instead of a loop over tokens.

    Args:
        rewards, values: (B, T); values[:, t] is of the state before token t. Ignored off the mask.
        mask: (B, T), contiguous from t = 0.

    Returns: advantages and returns (advantages + values), both (B, T) fp32, 0 off the mask.
    """
    mask = mask.bool()
    rewards = torch.where(mask, rewards.float(), 0.0)
    values = torch.where(mask, values.float(), 0.0)
    advantages = rewards + gamma * _shift(values, 1) - values
    width, decay = 1, gamma * lam
    while width < rewards.shape[1]:
        # advantages[t] holds the sum over the next `width` deltas; the doubled window adds the following one.
        advantages = advantages + decay**width * _shift(advantages, width)
        width *= 2
    advantages = torch.where(mask, advantages, 0.0)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Shift and scale to mean 0, variance 1 (biased) over the masked entries of all ranks of the group.

    Args:
        x, mask: (B, T).
        group: process group; None is the default group, or this process alone where none is initialised.

    Returns: (B, T) fp32, 0 off the mask. A constant or empty x gives 0.
    """
    mask = mask.bool()
    mean, variance = masked_moments(x, mask, group)
    return torch.where(mask, (x.float() - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def masked_moments(x: Tensor, mask: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the masked entries over all ranks, as two 0-d tensors; 0, 0 when there are none."""
    x, mask = x.double(), mask.bool()
    count, total = all_sum(torch.stack([mask.sum().double(), torch.where(mask, x, 0.0).sum()]), group)
    mean = total / count.clamp(min=1)
    squares = all_sum(torch.where(mask, (x - mean) ** 2, 0.0).sum(), group)
    return mean.float(), (squares / count.clamp(min=1)).float()


def _shift(x: Tensor, by: int) -> Tensor:
    """x[:, t + by] at t, 0 past the end."""
    return torch.cat([x[:, by:], x.new_zeros(x.shape[0], min(by, x.shape[1]))], dim=1)
