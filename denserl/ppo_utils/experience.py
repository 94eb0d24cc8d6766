"""What PPO learns from: scored rollouts, and the experience made of them. Pure tensor code; models are run elsewhere."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.distributed import all_sum
from denserl.ppo_utils.advantages import Advantages, masked_moments
from denserl.ppo_utils.dense_reward import DenseRewards
from denserl.ppo_utils.kl import approx_kl, penalised_rewards
from denserl.ppo_utils.losses import highest_entropies


class ScoredRollouts(NamedTuple):
    """N responses with T token slots, scored by policy, reference and reward source."""

    mask: Tensor  # (N, T) bool
    ended: Tensor  # (N,) bool: the response closes with an end token
    logprobs: Tensor  # (N, T) of the policy that sampled
    ref_logprobs: Tensor  # (N, T)
    entropy: Tensor  # (N, T) nats, of the policy
    rewards: Tensor  # (N, T), before clipping and the KL penalty
    sources: list[DenseRewards]  # what each source of rewards says, before weights and penalties
    sampled: Tensor | None = None  # (N, T) log-probabilities as the sampler told them


class Experience(NamedTuple):
    """What one policy and value update needs, all (N, T), fp32 but the masks, and 0 off the mask."""

    mask: Tensor
    logprobs: Tensor
    values: Tensor | None  # None without a critic
    advantages: Tensor  # as `Advantages.scaled` has them
    returns: Tensor
    ref_logprobs: Tensor  # for a KL that is a term of the loss
    policy_mask: Tensor  # bool: the tokens that the policy learns from
    weights: Tensor | None = None  # of tokens in the policy's loss; None: 1

    def rows(self, index: Tensor, width: int) -> "Experience":
        """The experience of some rows, cut to `width` token slots."""
        return Experience._make(None if x is None else x[index, :width] for x in self)


def make_experience(
    scored: ScoredRollouts,
    values: Tensor | None,
    *,
    groups: Sequence[int] = (),
    beta: float,
    reward_clip: float,
    kl_estimator: str,
    estimate: Advantages,
    policy_tokens: float = 1.0,
    weights: Tensor | None = None,
) -> tuple[Experience, dict[str, Tensor]]:
    """Rewards with KL penalty, returns and scaled advantages (docs/numerics.md).

    Args:
        values: (N, T), of the state before each token, by the critic at sampling time; None without one.
        groups: N numbers, of the group of samples of one prompt that each response is of, where `estimate` compares these.
        estimate: how advantages and returns are made of rewards and values, and scaled.
        beta: weight of the KL penalty in the reward, 0 for a KL that is a term of the loss.
        policy_tokens: share of the tokens that the policy learns from, those of highest entropy (`highest_entropies`).
        weights: (N, T), of tokens in the policy's loss (`mismatch.importance_weights`).

    Returns: the experience, NaN in advantages and returns of a response whose reward, KL or value is not finite; and 0-d
        tensors for the log, of the finite responses, that are the same on every rank.
    """
    # Clipping would make an infinite reward look like a large one.
    tokens = torch.where(scored.rewards.isfinite(), scored.rewards, torch.nan)
    kl = approx_kl(scored.logprobs, scored.ref_logprobs, kl_estimator)
    rewards = penalised_rewards(tokens, kl, scored.mask, beta, reward_clip)
    advantages, returns = estimate(rewards, values, scored.mask, groups)
    # A response that is not finite is left as it is, for its optimiser step to be skipped; the others know nothing of it.
    sound = (advantages + returns).isfinite().all(1, keepdim=True)
    finite = scored.mask & sound
    mean, variance = masked_moments(advantages, finite)
    log = {"advantage_mean": mean, "advantage_std": variance.sqrt()}
    if values is not None:
        _, return_variance = masked_moments(returns, finite)
        _, error_variance = masked_moments(returns - values, finite)
        log["explained_variance"] = 1 - error_variance / return_variance.clamp(min=1e-8)
        values = torch.where(scored.mask, values, 0.0)
    logprobs, ref_logprobs = (torch.where(scored.mask, x, 0.0) for x in (scored.logprobs, scored.ref_logprobs))
    learned = estimate.scaled(advantages, finite)
    own_advantages, own_returns = (torch.where(scored.mask & ~sound, torch.nan, x) for x in (learned, returns))
    chosen = scored.mask
    if policy_tokens < 1:
        chosen, log["policy_entropy"] = highest_entropies(scored.entropy, scored.mask, policy_tokens)
        counts = all_sum(torch.stack([chosen.sum(), scored.mask.sum()]).double())
        log["policy_tokens"] = counts[0] / counts[1].clamp(min=1)
    return Experience(scored.mask, logprobs, values, own_advantages, own_returns, ref_logprobs, chosen, weights), log
