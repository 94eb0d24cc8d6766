"""Advantages: generalised estimation by a critic, returns against those of a group without one, whitening; over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from denserl.distributed import all_max, all_sum

STD_FLOOR = 1e-6  # added to the standard deviation of a group, which is 0 where all its returns are equal
ESTIMATORS = ("gae", "rloo", "grpo", "reinforce")


@dataclass(frozen=True)
class Advantages:
    """How advantages and returns are estimated from rewards of tokens, and what the policy then learns from.

    gamma: discount of rewards. lam: of `gae`, the one kind that has a critic.
    norm: whether advantages are whitened. clip: the bound of their size after that, or None.
    kind: gae; rloo and grpo, a token's return against those of its group (`against_group`); reinforce, its return as it is.
    group_std: whether grpo divides by the standard deviation of its group.

    Raises:
        ValueError: unknown kind.
    """

    gamma: float = 1.0
    lam: float = 0.95
    norm: bool = True
    clip: float | None = None
    kind: str = "gae"
    group_std: bool = True

    def __post_init__(self):
        if self.kind not in ESTIMATORS:
            raise ValueError(f"unknown kind {self.kind!r} of advantages; known: {', '.join(ESTIMATORS)}")

    def __call__(
        self, rewards: Tensor, values: Tensor | None, mask: Tensor, groups: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """(B, T) each, as `gae` has them -> advantages and returns, both (B, T) fp32, 0 off the mask.

        values: None for all kinds but gae. groups: as in `against_group`.
        """
        if self.kind == "gae":
            return gae(rewards, values, mask, self.gamma, self.lam)
        returns, _ = gae(rewards, torch.zeros_like(rewards), mask, self.gamma, 1.0)
        if self.kind == "reinforce":
            return returns, returns
        return against_group(returns, mask, groups, self.kind == "rloo", self.kind == "grpo" and self.group_std), returns

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


def against_group(
    returns: Tensor, mask: Tensor, groups: Sequence[int], leave_one_out: bool = False, by_std: bool = False
) -> Tensor:
    """A token's return less the mean return of its group at that token (docs/ppo_max.md): A_t = G_t - mean_j G_t^j.

    Of a response that has ended before t, the return at its last token counts. One reward at the end of each response then
    gives the published estimates; with dense rewards, what is left to earn is compared token by token.

    Args:
        returns: (B, T) of this rank. mask: (B, T), contiguous from t = 0.
        groups: B numbers from 0, of the group of samples of one prompt that each response is of, which ranks may share.
        leave_one_out: the mean over the others of the group (RLOO, arXiv 2402.14740), which does not depend on what
            it is taken from, so that the gradient's expectation is that without it.
        by_std: divide by the (unbiased) standard deviation of the group (GRPO, arXiv 2402.03300, section 4.1): the root of the
            squares' mean over a response's tokens, added up over the group and divided by its n - 1.

    Returns: (B, T) fp32, 0 off the mask, and 0 in a group of one. Responses that are not finite count in no mean.
    """
    mask, device = mask.bool(), returns.device
    own = torch.where(mask, returns.double(), 0.0)
    sound = mask.any(1) & own.isfinite().all(1)
    numbers = torch.as_tensor(groups, dtype=torch.long, device=device)
    count, width = all_max(max(groups, default=-1) + 1), all_max(mask.shape[1])
    # (B, width): the return at each token, or at the last one.
    last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
    held = own.gather(1, torch.arange(width, device=device).expand(len(own), -1).minimum(last))

    def of_group(x: Tensor) -> Tensor:
        """(B, N) -> (B, N), the sum over the sound responses of each one's group."""
        x = torch.where(sound[:, None], x, 0.0)
        return all_sum(x.new_zeros(count, x.shape[1]).index_add(0, numbers, x))[numbers]

    members = of_group(torch.ones_like(own[:, :1]))
    others = (members - 1).clamp(min=1)
    found = torch.where(mask, own - of_group(held)[:, : mask.shape[1]] / members.clamp(min=1), 0.0)
    if leave_one_out:
        found = found * members / others
    if by_std:
        squares = (found**2).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        found = found / ((of_group(squares) / others).sqrt() + STD_FLOOR)
    return found.float()


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
