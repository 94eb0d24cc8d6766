"""How far the log-probabilities of what has sampled are from the policy's own, and weights in its loss that make up for it."""

import torch
from torch import Tensor

from denserl.distributed import all_sum, gather_objects
from denserl.ppo_utils.kl import approx_kl

CORRECTIONS = ("none", "truncated", "masked")


def mismatch(logprobs: Tensor, sampled: Tensor, mask: Tensor) -> dict[str, float]:
    """Of the tokens of all ranks: the mean and the largest |log pi - log mu|, and the k3 estimate of KL(mu || pi), in nats.

    Args:
        logprobs, sampled: (N, T), of the policy pi that is trained, and of mu, which sampled. mask: (N, T) bool.

    Returns: by the names of the log; 0 where there are no tokens. The same on every rank.
    """
    gap = torch.where(mask, (logprobs - sampled).float(), 0.0)
    k3 = approx_kl(torch.zeros_like(gap), gap, "k3")
    sums = all_sum(torch.stack([mask.sum(), gap.abs().sum(), torch.where(mask, k3, 0.0).sum()]).double())
    tokens, total, divergence = sums.tolist()
    largest = max(gather_objects(gap.abs().max().item() if gap.numel() else 0.0))
    means = {"rollout_mismatch_mean": total / max(tokens, 1), "rollout_mismatch_k3": divergence / max(tokens, 1)}
    return {**means, "rollout_mismatch_max": largest}


def importance_weights(logprobs: Tensor, sampled: Tensor, mask: Tensor, kind: str, cap: float) -> Tensor:
    """What a token's loss is multiplied by, since it was sampled by mu and not by the policy pi: (N, T), 0 off the mask.

    truncated: min(pi / mu, cap) (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").
    masked: pi / mu where that is from 1 / cap to cap, and 0 elsewhere, as in IcePop (Ling team 2025).

    Args:
        logprobs, sampled, mask: as in `mismatch`, the policy's from before its update. kind: one of CORRECTIONS. cap: above 1.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in CORRECTIONS:
        raise ValueError(f"unknown correction {kind!r}; known: {', '.join(CORRECTIONS)}")
    # Held within the exponential's range, beyond which the cap has long decided.
    ratio = torch.where(mask, (logprobs - sampled).float(), 0.0).clamp(-80, 80).exp()
    if kind == "none":
        ratio = torch.ones_like(ratio)
    elif kind == "truncated":
        ratio = ratio.clamp(max=cap)
    else:
        ratio = torch.where((ratio >= 1 / cap) & (ratio <= cap), ratio, 0.0)
    return torch.where(mask, ratio, 0.0)
