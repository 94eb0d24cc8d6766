"""The clipped losses of PPO, averaged by response or by token, of all tokens or of those with the highest entropies."""

import math

import torch
from torch import Tensor

from denserl.distributed import gather_objects
from denserl.ppo_utils.kl import approx_kl

AVERAGES = ("sequence", "token_mean", "constant")


def masked_average(x: Tensor, mask: Tensor, average: str = "sequence", count: Tensor | float | None = None) -> Tensor:
    """Average per-token terms: `sequence` over each response's tokens then over responses, `token_mean` over all tokens.

    `constant` adds up each response's tokens, then takes the mean over responses and divides by a number of tokens that is the
    same for all (Dr. GRPO, arXiv 2503.20783), so that a token weighs the same in a short and in a long response.

    Args:
        x, mask: (B, T). Responses without tokens are not counted.
        average: one of AVERAGES.
        count: what to divide by, when this batch is a part of a larger one: its number of (non-empty) responses or of
            tokens (see `average_count`). Default: this batch's own, with the constant 1.

    Returns: 0-d fp32; 0 for an empty batch.

    Raises:
        ValueError: unknown average.
    """
    mask = mask.bool()
    x = torch.where(mask, x.float(), 0.0)
    own_count = average_count(mask, average)  # also refuses an unknown average when a count is given
    count = own_count if count is None else count
    if average == "sequence":
        x = x.sum(1) / mask.sum(1).clamp(min=1)
    return x.sum() / torch.as_tensor(count, device=x.device).clamp(min=1e-8)


def average_count(mask: Tensor, average: str, constant: float = 1.0) -> Tensor:
    """The denominator of `masked_average`: non-empty responses or tokens of a batch, 0-d fp32; constant: that of `constant`."""
    if average not in AVERAGES:
        raise ValueError(f"unknown average {average!r}; known: {', '.join(AVERAGES)}")
    mask = mask.bool()
    count = (mask if average == "token_mean" else mask.any(1)).sum().float()
    return constant * count if average == "constant" else count


def highest_entropies(entropy: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The tokens that a policy is most in doubt about, of all ranks together (Wang et al., arXiv 2506.01939).

    They are the ceil(share N) tokens of highest entropy among N, and those that equal the last of them. Which they are depends
    on no order, batch or number of ranks, but for the rounding of entropies.

    Args:
        entropy: (B, T) nats, of the policy that sampled. mask: (B, T) bool. share: in (0, 1].

    Returns: (B, T) bool, and the least entropy among them, 0-d. A token whose entropy is no number is one of them, for its
        optimiser step to be skipped.
    """
    every = torch.cat(gather_objects(entropy[mask & entropy.isfinite()].float().cpu()))
    # What is 3 but for the rounding of the product is 3.
    count = math.ceil(share * len(every) - 1e-6)
    least = every.topk(count).values[-1] if count else torch.tensor(-torch.inf)
    return mask & ~(entropy < least.to(entropy.device)), least


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    average: str = "sequence",
    count: Tensor | float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7): -min(rho A, clip(rho, 1 - eps, 1 + eps) A).

    log rho is held within +-20, so that its exponential and the gradient stay finite.

    Args:
        logprobs, old_logprobs, advantages, mask: (B, T).
        average, count: as in `masked_average`.
        dual_clip: above 1; where A < 0 a token's loss is at most dual_clip |A| (Ye et al. 2020, arXiv 1912.09729).
        weights: (B, T), what a token's loss is multiplied by, without gradient (`mismatch.importance_weights`).

    Returns: the loss, and the share of tokens (averaged alike, no gradient) where a clipped term was chosen.
    """
    ratio = torch.where(mask.bool(), logprobs.float() - old_logprobs.float(), 0.0).clamp(-20, 20).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    terms, is_clipped = torch.maximum(plain, clipped), clipped > plain
    if dual_clip is not None:
        most = -dual_clip * advantages
        bounded = (advantages < 0) & (terms > most)
        terms, is_clipped = torch.where(bounded, most, terms), is_clipped | bounded
    terms = terms if weights is None else weights.detach() * terms
    loss = masked_average(terms, mask, average, count)
    return loss, masked_average(is_clipped.detach(), mask, average, count)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    average: str = "sequence",
    count: Tensor | float | None = None,
) -> Tensor:
    """The mean k3 estimate of KL(policy || reference) as a term of the policy's loss (GRPO, arXiv 2402.03300, eq. 4).

    log pi - log pi_ref is held within +-20, as in `policy_loss`.

    Args:
        logprobs, ref_logprobs, mask: (B, T), of the policy that is trained, and of the reference.
        average, count: as in `masked_average`.
    """
    gap = torch.where(mask.bool(), logprobs.float() - ref_logprobs.float(), 0.0).clamp(-20, 20)
    return masked_average(approx_kl(gap, torch.zeros_like(gap), "k3"), mask, average, count)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    average: str = "sequence",
    count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped value loss: 0.5 max((V - R)^2, (V_clip - R)^2), V_clip within +-clip of the old value (docs/numerics.md).

    Args and returns: as in `policy_loss`.
    """
    values, old_values, returns = (torch.where(mask.bool(), x.float(), 0.0) for x in (values, old_values, returns))
    near = values.clamp(old_values - clip, old_values + clip)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    loss = masked_average(0.5 * torch.maximum(plain, clipped), mask, average, count)
    return loss, masked_average((clipped > plain).detach(), mask, average, count)
