"""The way from per-token scores to per-token rewards: segments, normaliser, assignment, penalties. Pure tensor code.

Where the scores come from (a reward model, an ensemble, a function) is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.ppo_utils.assignment import CHANGE, canonical_kind, score_changes, spread
from denserl.ppo_utils.normalizer import ScalarNormalizer
from denserl.rewards.aggregation import aggregate, running_aggregate, valid_scores
from denserl.segmentation import Segments, segment_by_entropy, segment_scores


class DenseRewards(NamedTuple):
    """Rewards of a padded batch of B responses with T token slots and up to K_max segments."""

    tokens: Tensor  # (B, T) reward of each token, before clipping and the KL penalty
    segments: Segments
    raw: Tensor  # (B, K_max) segment scores as the reward source gives them
    normalised: Tensor  # (B, K_max)
    changes: Tensor  # (B, K_max) what each segment changes in the response's normalised score, which is their sum; 0 past K


@dataclass(frozen=True)
class DenseReward:
    """How scores become rewards (arXiv 2501.02790, section 3; docs/credit.md).

    assignment and tau: see `assign_rewards`. agg_func: how segment rewards make the score of a response, as the reward model
    was trained (`aggregate`).
    normalizer: LocationNormalizer, of segment rewards, which are aggregated afterwards; ScalarNormalizer, of the scores of
    responses, the score of a response's first segments being normalised like that of a whole one; or None.
    length_norm: also divide by the response's length in tokens.
    penalise_unfinished: a response without end-of-turn token gets -penalty on every token instead of its rewards.
    penalise_longer_than: the same for a response of more tokens than this.

    Raises:
        ValueError: unknown assignment.
    """

    threshold: float
    assignment: str
    normalizer: Callable[[Tensor, Tensor], Tensor] | None
    agg_func: str = "avg"
    tau: float = 1.0
    length_norm: bool = False
    penalise_unfinished: bool = False
    penalise_longer_than: int | None = None
    penalty: float = 0.05

    def __post_init__(self):
        canonical_kind(self.assignment)

    def __call__(self, token_scores: Tensor, entropy: Tensor, response_mask: Tensor, ended: Tensor) -> DenseRewards:
        """token_scores, entropy (reference model, nats), response_mask: (B, T); ended: (B,) bool."""
        segments = segment_by_entropy(entropy, response_mask, self.threshold, ended)
        raw = segment_scores(token_scores, segments)
        normalised = self.normalizer(raw, segments.counts) if self.normalizer else raw
        changes = self._changes(raw, normalised, segments.counts)
        kind = canonical_kind(self.assignment)
        paid = changes if kind in CHANGE or kind == "score_last" else normalised
        rewards = spread(paid, segments, kind, response_mask, self.tau)
        length = response_mask.sum(1, keepdim=True)
        if self.length_norm:
            rewards = rewards / length.clamp(min=1)
        penalised = torch.zeros_like(ended)
        if self.penalise_unfinished:
            penalised = penalised | ~ended
        if self.penalise_longer_than is not None:
            penalised = penalised | (length.squeeze(1) > self.penalise_longer_than)
        rewards = torch.where(penalised[:, None], -self.penalty * response_mask.float(), rewards)
        return DenseRewards(rewards, segments, raw, normalised, changes)

    def score(self, segment_scores: Tensor, counts: Tensor) -> Tensor:
        """(B,) the scores of responses, before normalisation."""
        return aggregate(segment_scores, counts, self.agg_func, self.tau)

    def _changes(self, raw: Tensor, normalised: Tensor, counts: Tensor) -> Tensor:
        """(B, K_max) what each segment changes in the response's normalised score."""
        of_responses = isinstance(self.normalizer, ScalarNormalizer)
        running = running_aggregate(raw if of_responses else normalised, counts, self.agg_func, self.tau)
        running = self.normalizer(running, counts) if of_responses else running
        return valid_scores(score_changes(running), counts)
