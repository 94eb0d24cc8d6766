"""The way from per-token scores to per-token rewards: segments, normaliser, assignment, penalties. Pure tensor code.

Where the scores come from (a reward model, an ensemble, a function) is not known here.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.ppo_utils.assignment import OF_SCORE, canonical_kind, score_changes, spread
from denserl.ppo_utils.normalizer import LocationNormalizer, ScalarNormalizer
from denserl.rewards.aggregation import SHIFTED_WHOLE, aggregate
from denserl.segmentation import Segments, segment_by_entropy, segment_scores


class DenseRewards(NamedTuple):
    """Rewards of a padded batch of B responses with T token slots and up to K_max segments."""

    tokens: Tensor  # (B, T) reward of each token, before clipping and the KL penalty
    segments: Segments
    raw: Tensor  # (B, K_max) segment scores as the reward source gives them
    normalised: Tensor  # (B, K_max); the changes where the scalar normaliser knows nothing of single segments
    changes: Tensor  # (B, K_max) what each segment changes in the response's normalised score, which is their sum; 0 past K


@dataclass(frozen=True)
class DenseReward:
    """How scores become rewards (arXiv 2501.02790, section 3; docs/credit.md).

    threshold: entropy (nats) above which a token opens a segment. assignment and tau: see `assign_rewards`.
    agg_func: how segment rewards make the score of a response, as the reward model was trained (`aggregate`).
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
    normalizer: LocationNormalizer | ScalarNormalizer | None
    # Checkpoints compare it by itself, beside this object's text.
    agg_func: str = field(default="avg", repr=False)
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
        normalised, changes = self._normalised(raw, segments.counts)
        kind = canonical_kind(self.assignment)
        rewards = spread(changes if kind in OF_SCORE else normalised, segments, kind, response_mask, self.tau)
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
        return aggregate(segment_scores, counts, self.agg_func)

    def _normalised(self, raw: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K_max) normalised segment rewards, and what each segment changes in the response's normalised score."""
        if not isinstance(self.normalizer, ScalarNormalizer):
            normalised = self.normalizer(raw, counts) if self.normalizer else raw
            return normalised, score_changes(normalised, counts, self.agg_func)
        changes = self.normalizer.changes(score_changes(raw, counts, self.agg_func), counts)
        # The moments of a sum's scores are not those of its segments, of which then only the changes are known.
        return self.normalizer(raw, counts) if self.agg_func in SHIFTED_WHOLE else changes, changes
