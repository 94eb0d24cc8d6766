"""What PPO pays: one source of rewards or several, each through its own segments, normaliser and assignment, added up.

Which sources there are is in ppo_sources.py, and how each is paid in ppo_paying.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from denserl import distributed
from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.ppo_utils.dense_reward import DenseReward, DenseRewards, Payments, Penalties, weighted_sum
from denserl.ppo_utils.moments import RunningMoments
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.base import RewardSource, Scores, per_token, read_segments
from denserl.rewards.sources.endpoint import EndpointSource
from denserl.rewards.sources.pair_source import PairSource
from denserl.rewards.sources.texts import TextSource
from denserl.segmentation import Segmenter, join_segments

OF_ROLLOUTS = (TextSource, PairSource)


class PaidSource(NamedTuple):
    """A source of rewards, and how it is paid."""

    name: str
    source: RewardSource
    segmenter: Segmenter  # where the source has no segments of its own
    dense: DenseReward
    weight: float = 1.0


@dataclass(frozen=True)
class Rewards:
    """All sources of a run, and the penalties that take their place."""

    sources: Sequence[PaidSource]
    penalties: Penalties
    answers: Answers | None = None  # that servers gave, where any is asked
    # Of what each source with a running normaliser pays, by its name; and of the scores of responses, for the log alone.
    moments: RunningMoments = field(default_factory=RunningMoments)

    def begin(self, place: str) -> None:
        """Say which rollout is scored next, `word-number`."""
        if self.answers is not None:
            self.answers.begin(place)

    def forget_before(self, number: int) -> None:
        """Let go of what was kept for rollouts before this one, which are never scored again."""
        if self.answers is not None:
            self.answers.drop_before(number)

    def score(self, responses: Responses, batch: ResponseBatch, of_rollouts: bool = False) -> dict[str, Scores]:
        """What the sources of one sort say of B responses, as (B, T) values, by name.

        of_rollouts: those that read texts or compare responses, and are asked once about all of a rollout; else those that read
        each batch.
        """
        return {
            paid.name: per_token(paid.source(responses, batch), batch.response_mask)
            for paid in self.sources
            if isinstance(paid.source, OF_ROLLOUTS) == of_rollouts
        }

    def logged(self, counted: Tensor) -> dict[str, float]:
        """Means over the counted responses of all ranks of what servers say beside rewards. counted: (N,) bool."""
        asked = {paid.name: paid.source for paid in self.sources if isinstance(paid.source, EndpointSource)}
        if not asked:
            return {}
        kept = counted.tolist()
        mine = [
            (f"{name}/{word}", number)
            for name, source in asked.items()
            for logs, counts in zip(source.logs, kept, strict=True)
            for word, number in logs.items()
            if counts
        ]
        # Ranks may have been told different names.
        found: dict[str, list[float]] = {}
        for word, number in (pair for of_rank in distributed.gather_objects(mine) for pair in of_rank):
            found.setdefault(word, []).append(number)
        return {word: sum(numbers) / len(numbers) for word, numbers in found.items()}

    def pay(
        self,
        scores: Mapping[str, Scores],
        entropy: Tensor,
        response_mask: Tensor,
        response_ids: Tensor,
        ended: Tensor,
        learn: bool = False,
    ) -> tuple[Tensor, list[DenseRewards]]:
        """Rewards of tokens (B, T), and what each source alone comes to.

        scores: of each source, by name. entropy: (B, T) nats, of the reference model. ended: (B,) bool.
        learn: running moments take these responses in, those of all ranks, before they normalise them.
        """
        payments = {}
        for paid in self.sources:
            of_source = scores[paid.name]
            segments = of_source.segments
            if segments is None:
                segments = paid.segmenter(entropy, response_mask, response_ids, ended)
            payments[paid.name] = paid.dense.payments(*read_segments(of_source.values, segments, of_source.read))
        if learn:
            self._take_in(payments)
        found = [
            paid.dense.on_tokens(payments[paid.name], response_mask, self.moments.of(paid.name) if paid.dense.runs else None)
            for paid in self.sources
        ]
        tokens = weighted_sum([rewards.tokens for rewards in found], self.weights)
        return self.penalties(tokens, response_mask, ended), found

    def _take_in(self, payments: Mapping[str, Payments]) -> None:
        streams: dict[str, Tensor] = {}
        for name in self._running:
            found = payments[name]
            answered = found.segments.counts > 0
            streams |= {name: found.stream(), _whole(name): torch.where(answered, found.score, torch.nan)}
        self.moments.update(streams)

    def running(self) -> dict[str, Tensor]:
        """Moments of what is paid, and of the scores of responses, as 0-d tensors for the log (docs/metrics.md)."""
        found: dict[str, Tensor] = {}
        for name in self._running:
            of_source = f"/{name}" if len(self.sources) > 1 else ""
            for word, moments in (("running", self.moments.of(name)), ("running_score", self.moments.of(_whole(name)))):
                found |= {f"{word}_mean{of_source}": moments.mean, f"{word}_std{of_source}": moments.std}
        return found

    @property
    def _running(self) -> list[str]:
        return [paid.name for paid in self.sources if paid.dense.runs]

    @property
    def weights(self) -> list[float]:
        """Of each source."""
        return [paid.weight for paid in self.sources]

    def settings(self) -> dict[str, object]:
        """What checkpoints remember of how rewards are made, as it is resolved: the same choice may be a flag or a model's."""
        return {
            f"{what} of {paid.name}": value
            for paid in self.sources
            for what, value in (
                ("threshold", paid.segmenter.threshold),
                ("segmenter", paid.segmenter.name),
                ("rewards", str(paid.dense)),
                ("weight", paid.weight),
            )
        }


def _whole(name: str) -> str:
    """What the moments of a source's scores of whole responses are kept under."""
    return f"score of {name}"


def join_scores(parts: Sequence[Scores]) -> Scores:
    """What a source says of several batches, under one another. ValueError where it reads some otherwise than others."""
    ways = {(part.read, part.segments is None) for part in parts}
    if len(ways) > 1:
        raise ValueError("a source gave some batches segments and others none, or reads them differently")
    width = max(part.values.shape[1] for part in parts)
    values = torch.cat([pad(part.values, (0, width - part.values.shape[1])) for part in parts])
    own = None if parts[0].segments is None else join_segments([part.segments for part in parts])
    return Scores(values, own, parts[0].read)
