"""The way from per-token scores to per-token rewards: segments, normaliser, assignment, penalties. Pure tensor code.

Where the scores come from (a reward model, an ensemble, a function) is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.ppo_utils.assignment import assign_rewards
from denserl.segmentation import Segments, segment_by_entropy, segment_scores


class DenseRewards(NamedTuple):
    """Rewards of a padded batch of B responses with T token slots and up to K_max segments."""

    tokens: Tensor  # (B, T) reward of each token, before clipping and the KL penalty
    segments: Segments
    raw: Tensor  # (B, K_max) segment scores as the reward source gives them
    normalised: Tensor  # (B, K_max)


@dataclass(frozen=True)
class DenseReward:
    """How scores become rewards (spec dense-rlhf, sections 2, 4 and 5).

    normalizer: LocationNormalizer, ScalarNormalizer or None. assignment and tau: see `assign_rewards`.
    length_norm: also divide by the response's length in tokens.
    penalise_unfinished: a response without end-of-turn token gets -penalty on every token instead of its rewards.
    penalise_longer_than: the same for a response of more tokens than this.
    """

    threshold: float
    assignment: str
    normalizer: Callable[[Tensor, Tensor], Tensor] | None
    tau: float = 1.0
    length_norm: bool = False
    penalise_unfinished: bool = False
    penalise_longer_than: int | None = None
    penalty: float = 0.05

    def __call__(self, token_scores: Tensor, entropy: Tensor, response_mask: Tensor, ended: Tensor) -> DenseRewards:
        """token_scores, entropy (reference model, nats), response_mask: (B, T); ended: (B,) bool."""
        segments = segment_by_entropy(entropy, response_mask, self.threshold, ended)
        raw = segment_scores(token_scores, segments)
        normalised = self.normalizer(raw, segments.counts) if self.normalizer else raw
        rewards = assign_rewards(normalised, segments, self.assignment, response_mask, self.tau)
        length = response_mask.sum(1, keepdim=True)
        if self.length_norm:
            rewards = rewards / length.clamp(min=1)
        penalised = torch.zeros_like(ended)
        if self.penalise_unfinished:
            penalised = penalised | ~ended
        if self.penalise_longer_than is not None:
            penalised = penalised | (length.squeeze(1) > self.penalise_longer_than)
        rewards = torch.where(penalised[:, None], -self.penalty * response_mask.float(), rewards)
        return DenseRewards(rewards, segments, raw, normalised)
