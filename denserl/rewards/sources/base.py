"""The interface of reward sources, and how their scores are read.

Training, evaluation, best-of-n and the fit use it for reward models, ensembles and Python functions alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.levels import BANDIT_THRESHOLD
from denserl.rewards.aggregation import ADDED_UP, aggregate, aggregate_outputs
from denserl.segmentation import Segmenter, Segments, segment_by_entropy, segment_scores, segment_sums


class Parts(NamedTuple):
    """What scores are made of: each is the sum over K attributes of rating x coefficient."""

    ratings: Tensor  # (B, T, K) fp32 at each response token; or (B, K), of whole responses
    coefficients: Tensor  # (B, K) fp32


class Scores(NamedTuple):
    """Scores of B responses with T token slots.

    values: (B, T) fp32, a score at each response token, with no meaning off the mask; or (B,), one number a response.
    segments: the source's own; None where responses are cut by the segmenter.
    read: how a segment is read: `last`, the score at its end; `sum`, over its tokens.
    """

    values: Tensor
    segments: Segments | None = None
    read: Literal["last", "sum"] = "last"


class RewardSource(Protocol):
    """Scores responses, as this one does:

    ```python
    class Shorter:
        def __call__(self, responses, batch):
            return Scores(-batch.response_mask.sum(1).float())
    ```
    """

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """
        Args:
            responses: the record of B responses: messages, texts, token ids, whether each ended.
            batch: the same token ids as padded tensors on the device, with the response mask (B, T).
        """


class SegmentScores(NamedTuple):
    """Scores read segment by segment."""

    values: Tensor  # (B, K_max) fp32, 0 past a row's K
    segments: Segments


def increments(values: Tensor, mask: Tensor, ended: Sequence[bool]) -> Scores:
    """What each token adds to the value of a response so far, (B, T): a segment earns the sum over its tokens.

    The end-of-turn token lies in no segment below the bandit level; its share stands at the token before it.
    """
    last = mask.long().sum(1) - 1
    at_end = (torch.arange(mask.shape[1], device=mask.device) == last[:, None]) & (last > 0)[:, None]
    at_end &= torch.tensor(ended, device=mask.device)[:, None]
    values = torch.where(mask.bool(), values.float(), 0.0)
    closing = torch.where(at_end, values, 0.0)
    return Scores(values - closing + closing.roll(-1, 1), None, "sum")


def per_token(scores: Scores, mask: Tensor) -> Scores:
    """The scores as (B, T) values; one number a response stands at the end of one segment over all of its tokens."""
    if scores.values.ndim == 2:
        return scores
    whole = segment_by_entropy(torch.zeros_like(mask, dtype=torch.float32), mask, BANDIT_THRESHOLD)
    return Scores(torch.where(whole.ends, scores.values.float()[:, None], 0.0), whole, "sum")


def read_segments(values: Tensor, segments: Segments, read: str = "last") -> SegmentScores:
    """Scores (B, T) read segment by segment (see `Scores`)."""
    return SegmentScores(segment_sums(values, segments) if read == "sum" else segment_scores(values, segments), segments)


@dataclass(frozen=True)
class ResponseScorer:
    """Scores of whole responses by a source at one level: (Responses, ResponseBatch) -> (B,) fp32.

    segmenter: cuts responses where the source has no segments of its own.
    entropies: batch -> (B, T) nats of the frozen language model; None where nothing is cut by them.
    agg_func: how segment scores make the score of a response (`aggregate`).
    """

    source: RewardSource
    segmenter: Segmenter
    entropies: Callable[[ResponseBatch], Tensor] | None = None
    agg_func: str = "avg"

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Tensor:
        return self.read(responses, batch)[1]

    def read(
        self, responses: Responses, batch: ResponseBatch, own: Scores | None = None
    ) -> tuple[SegmentScores, Tensor, Scores]:
        """The scores segment by segment, those of the whole responses (B,), and the source's own.

        own: what the source said of the batch, if it has been asked.
        """
        mask = batch.response_mask
        own = self.source(responses, batch) if own is None else own
        scores = per_token(own, mask)
        segments = scores.segments
        if segments is None:
            entropy = self.entropies(batch) if self.segmenter.reads_entropy else torch.zeros_like(scores.values)
            ended = torch.tensor(responses.ended, device=mask.device)
            segments = self.segmenter(entropy, mask, batch.response_ids, ended)
        found = read_segments(scores.values, segments, scores.read)
        return found, aggregate(found.values, segments.counts, self.agg_func), own

    def whole(self, parts: Parts, segments: Segments) -> Parts | None:
        """What the scores of whole responses are made of, by what those of their tokens are made of.

        None where no sum of what segments are made of is the response's score.
        """
        if not (self.segmenter.cuts_nothing or self.agg_func in ADDED_UP):
            return None
        if parts.ratings.ndim == 2:
            return parts
        return parts._replace(ratings=aggregate_outputs(parts.ratings, segments, self.agg_func))
