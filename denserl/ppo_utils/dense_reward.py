"""The way from segment scores to rewards of tokens: normaliser, clip, assignment, penalties. Pure tensor code.

Where the scores come from (a reward model, an ensemble, a function), where responses are cut, and what running moments are
of, is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.ppo_utils.assignment import OF_SCORE, WHOLE, canonical_kind, payments, score_changes, spread
from denserl.ppo_utils.credit import credited, step_rewards
from denserl.ppo_utils.moments import Moments
from denserl.ppo_utils.normalizer import LocationNormalizer, RunningNormalizer, ScalarNormalizer
from denserl.rewards.aggregation import SHIFTED_WHOLE, aggregate, is_within, valid_scores
from denserl.segmentation import Segments


class Payments(NamedTuple):
    """What a padded batch of B responses with up to K_max segments is paid, not yet on tokens."""

    segments: Segments
    raw: Tensor  # (B, K_max) segment scores as the reward source gives them
    normalised: Tensor  # (B, K_max); the changes where the scalar normaliser knows nothing of single segments; of steps their
    # `step_rewards`. Running moments normalise what is paid, not these.
    changes: Tensor  # (B, K_max) what each segment changes in the response's normalised score, which is their sum; 0 past K
    score: Tensor  # (B,) of the response, before normalisation
    paid: Tensor  # (B, K_max), or (B, 1) where one number is paid at the end; before running moments and the clip; 0 past K

    def stream(self) -> Tensor:
        """The numbers that are paid, as `paid` but NaN past a row's K."""
        return torch.where(is_within(self.paid, self.segments.counts), self.paid, torch.nan)


class DenseRewards(NamedTuple):
    """Rewards of the same batch with T token slots; the fields that have their names from `Payments` are as there."""

    tokens: Tensor  # (B, T) reward of each token, before the clip of tokens and the KL penalty
    clipped: Tensor  # (B,) share of the numbers that a response is paid which `score_clip` held
    segments: Segments
    raw: Tensor
    normalised: Tensor
    changes: Tensor
    score: Tensor

    def of_segments(self) -> dict[str, Tensor]:
        """The numbers of each segment, (B, K_max) each, by the names that samples have for them.

        paid: what its tokens are paid, and those after it up to the next one, such as the end of turn.
        """
        paid = torch.zeros_like(self.raw)
        if paid.shape[1]:
            after = self.segments.ids.cummax(1).values.clamp(min=0)
            paid = valid_scores(paid.scatter_add(1, after, self.tokens), self.segments.counts)
        return {"raw": self.raw, "normalised": self.normalised, "change": self.changes, "paid": paid}


@dataclass(frozen=True)
class DenseReward:
    """How one source's scores become rewards (arXiv 2501.02790, section 3; docs/credit.md).

    assignment and tau: see `assign_rewards`.
    agg_func: how segment rewards make the score of a response, as the reward model was trained (`aggregate`).
    normalizer: LocationNormalizer, of segment rewards, which are aggregated afterwards; ScalarNormalizer, of the scores of
    responses, the score of a response's first segments being normalised like that of a whole one; RunningNormalizer, of what
    is paid; or None.
    length_norm: also divide by the response's length in tokens.
    step_reward: where scores are logits of steps, the kind of `step_rewards`; the response's score is then the aggregate of the
    chances, and nothing is normalised. None: scores are rewards.
    credit, temperature: see `credited`; other than `sum` only where each segment is paid for itself (assignment.WHOLE).
    score_clip: hold what is paid, normalised, within +-this before it is put on tokens; None: as it is.

    Raises:
        ValueError: unknown assignment, or settings that contradict one another.
    """

    assignment: str
    normalizer: LocationNormalizer | ScalarNormalizer | RunningNormalizer | None
    agg_func: str = "avg"
    tau: float = 1.0
    length_norm: bool = False
    # Options of a run as they are given, which checkpoints remember as such, beside the text of this.
    step_reward: str | None = field(default=None, repr=False)
    credit: str = field(default="sum", repr=False)
    temperature: float = field(default=0.1, repr=False)
    score_clip: float | None = field(default=None, repr=False)

    def __post_init__(self):
        kind = canonical_kind(self.assignment)
        if self.credit != "sum" and kind not in WHOLE:
            raise ValueError(f"credit {self.credit} with the assignment {kind}; it needs one of {', '.join(WHOLE)}")
        of_scores = self.normalizer is not None and not self.runs
        if self.step_reward and (of_scores or kind in OF_SCORE):
            raise ValueError(f"the step reward {self.step_reward} with a normaliser of scores, or with the assignment {kind}")

    @property
    def runs(self) -> bool:
        """Whether what is paid is normalised by running moments, which `on_tokens` is then given."""
        return isinstance(self.normalizer, RunningNormalizer)

    def __call__(self, raw: Tensor, segments: Segments, response_mask: Tensor) -> DenseRewards:
        """raw: (B, K_max) segment scores. response_mask: (B, T)."""
        return self.on_tokens(self.payments(raw, segments), response_mask)

    def payments(self, raw: Tensor, segments: Segments) -> Payments:
        """What is paid for segments of these raw scores (B, K_max), before running moments and the clip."""
        counts, kind = segments.counts, canonical_kind(self.assignment)
        scores = raw.sigmoid() if self.step_reward else raw
        normalised, changes = self._normalised(scores, counts)
        if self.step_reward:
            normalised = step_rewards(raw, counts, self.step_reward)
        paid = changes if kind in OF_SCORE else credited(normalised, counts, self.credit, self.temperature)
        score = aggregate(scores, counts, self.agg_func)
        return Payments(segments, raw, normalised, changes, score, payments(paid, counts, kind, self.tau))

    def on_tokens(self, found: Payments, response_mask: Tensor, moments: Moments | None = None) -> DenseRewards:
        """What is paid, normalised by the moments of all that was paid so far and clipped, on tokens.

        Raises:
            ValueError: moments are missing, or are given to a normaliser that does not run.
        """
        if self.runs != (moments is not None):
            raise ValueError(f"the normaliser {self.normalizer} with the moments {moments}")
        paid = found.paid
        if moments is not None:
            paid = valid_scores(self.normalizer(paid, moments), found.segments.counts)
        clipped = paid.new_zeros(len(paid))
        if self.score_clip is not None:
            # Clipping would make an infinite number look like a large one.
            beyond = paid.isfinite() & (paid.abs() > self.score_clip)
            paid = torch.where(beyond, paid.clamp(-self.score_clip, self.score_clip), paid)
            clipped = beyond.sum(1) / is_within(paid, found.segments.counts).sum(1).clamp(min=1)
        tokens = spread(paid, found.segments, canonical_kind(self.assignment), response_mask)
        if self.length_norm:
            tokens = tokens / response_mask.sum(1, keepdim=True).clamp(min=1)
        return DenseRewards(tokens, clipped, *found[:-1])

    def _normalised(self, raw: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K_max) normalised segment rewards, and what each segment changes in the response's normalised score."""
        if not isinstance(self.normalizer, ScalarNormalizer):
            normalised = self.normalizer(raw, counts) if isinstance(self.normalizer, LocationNormalizer) else raw
            return normalised, score_changes(normalised, counts, self.agg_func)
        changes = self.normalizer.changes(score_changes(raw, counts, self.agg_func), counts)
        # The moments of a sum's scores are not those of its segments, of which then only the changes are known.
        return self.normalizer(raw, counts) if self.agg_func in SHIFTED_WHOLE else changes, changes


@dataclass(frozen=True)
class Penalties:
    """What takes the place of a response's rewards, from whatever sources, where it has a fault of form.

    unfinished: a response without end-of-turn token gets -penalty on every token. longer_than: so does one of more tokens.
    """

    unfinished: bool = False
    longer_than: int | None = None
    penalty: float = 0.05

    def __call__(self, tokens: Tensor, response_mask: Tensor, ended: Tensor) -> Tensor:
        """Rewards of tokens (B, T) -> (B, T). ended: (B,) bool."""
        penalised = torch.zeros_like(ended)
        if self.unfinished:
            penalised = penalised | ~ended
        if self.longer_than is not None:
            penalised = penalised | (response_mask.sum(1) > self.longer_than)
        return torch.where(penalised[:, None], -self.penalty * response_mask.float(), tokens)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of the sources' values times their weights; a single one of weight 1 as it is."""
    total = values[0] if weights[0] == 1 else weights[0] * values[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + weight * value
    return total
