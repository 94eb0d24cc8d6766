"""What texts score, as data: segments, sources, responses, and what decides between two of them."""

import functools
import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from denserl.data.responses import Messages
from denserl.rewards.aggregation import aggregate


@dataclass(frozen=True)
class Segment:
    """A part of a response, and its numbers (docs/score.md)."""

    start: int  # in characters of the response
    end: int  # exclusive
    text: str
    raw: float  # as the source gives it
    normalised: float
    change: float  # of the response's normalised score, which all changes add up to
    paid: float  # what train-ppo would pay for it, by this source alone


@dataclass(frozen=True)
class SourceInfo:
    """What gave the numbers, and how they are read."""

    name: str  # as in train-ppo's metrics
    model: str  # path, address or function
    kind: str  # reward, step, pair, increment, text
    level: str  # segment, token, bandit
    agg_func: str  # how segments make the score of a response
    weight: float

    @property
    def judges_steps(self) -> bool:
        """Whether raw numbers are logits of steps, whose chances make the score of a response."""
        return self.kind == "step"


@dataclass(frozen=True)
class SourceScore:
    """What one source says of one response."""

    source: SourceInfo
    score: float  # of the response, before normalisation
    normalised: float
    segments: tuple[Segment, ...]

    def rewards(self) -> list[float]:
        """What the score is made of, segment by segment: the raw numbers, of steps the chances."""
        raw = torch.tensor([segment.raw for segment in self.segments], dtype=torch.float64)
        return (raw.sigmoid() if self.source.judges_steps else raw).tolist()


@dataclass(frozen=True)
class ScoredResponse:
    """A response with what each source says of it."""

    name: str
    text: str  # as it was scored
    ended: bool
    prompt_cut: int  # tokens lost, since prompt and response were over the longest length
    response_cut: int
    paid: float  # what train-ppo would pay, all sources with their weights, less the KL penalty
    sources: tuple[SourceScore, ...]


@dataclass(frozen=True)
class Part:
    """What one segment adds to the difference of two scores."""

    side: int | None  # 0: of the first response; None: of both, which begin with it
    segment: int  # its number
    adds: float  # above 0 in favour of the first


@dataclass(frozen=True)
class Comparison:
    """What decides between two responses by one source: `parts`, largest first, add up to the difference of the scores."""

    source: SourceInfo
    difference: float  # the first one's score less the second one's
    parts: tuple[Part, ...]  # empty where a source has one number for each


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt, with its responses and what they score."""

    prompt: Messages
    responses: tuple[ScoredResponse, ...]

    @functools.cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """What decides, source by source; empty unless there are two responses."""
        if len(self.responses) != 2:
            return ()
        return tuple(compared(*pair) for pair in zip(*(response.sources for response in self.responses), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """As the line of a file (docs/score.md)."""
        responses = []
        for response in self.responses:
            row = asdict(response)
            scores = zip(row.pop("sources"), response.sources, strict=True)
            responses.append({**row, "scores": [{**score, "source": of.source.name} for score, of in scores]})
        return {
            "prompt": self.prompt,
            "sources": [asdict(score.source) for score in self.responses[0].sources],
            "responses": responses,
            "comparisons": [{**asdict(found), "source": found.source.name} for found in self.comparisons],
        }


def compared(first: SourceScore, second: SourceScore) -> Comparison:
    """What decides between two responses, by one source.

    A score is made of the rewards r_k of K segments. With m, the mean of both scores, a segment adds: of `avg` (r_k - m) / K;
    of `sum` r_k; of `min` and `last` all of score - m where it is the one that counts; of `logsumexp` its share
    exp(r_k - score) of score - m. Of the second response these count negatively; of a segment that both begin with, as long as
    all before it are the same, both are one part. Where a response has no segments, and scores 0, m is 0.
    """
    sides = [torch.tensor([side.rewards()], dtype=torch.float64) for side in (first, second)]
    how = first.source.agg_func
    scores = [aggregate(side, torch.tensor([side.shape[1]]), how).item() for side in sides]
    middle = sum(scores) / 2 if all(side.numel() for side in sides) else 0.0
    adds = [_adds(side[0].numpy(), score, middle, how) for side, score in zip(sides, scores, strict=True)]
    pairs = zip(first.segments, second.segments)
    common = len(list(itertools.takewhile(lambda pair: (pair[0].end, pair[0].text) == (pair[1].end, pair[1].text), pairs)))
    parts = [Part(None, k, float(adds[0][k] - adds[1][k])) for k in range(common)]
    for side, sign in enumerate((1, -1)):
        parts += [Part(side, k, sign * float(adds[side][k])) for k in range(common, len(adds[side]))]
    if first.source.kind == "pair":
        # One number for both: the log-odds of the first.
        return Comparison(first.source, first.score, ())
    largest = sorted(parts, key=lambda part: -abs(part.adds))
    return Comparison(first.source, scores[0] - scores[1], tuple(largest))


def _adds(rewards: np.ndarray, score: float, middle: float, how: str) -> np.ndarray:
    """What each segment adds to score - middle (of `sum`, to score)."""
    if not rewards.size:
        return rewards
    if how == "sum":
        return rewards
    if how == "avg":
        return (rewards - middle) / rewards.size
    if how == "logsumexp":
        shares = np.exp(rewards - score)
    else:
        counts = rewards.argmin() if how == "min" else rewards.size - 1
        shares = np.arange(rewards.size) == counts
    return shares * (score - middle)
