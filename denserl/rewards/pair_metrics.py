"""Scores of response tokens, and the metrics of scored groups of responses. Shared by training, evaluation and the fit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from denserl.data.batching import ResponseBatch, response_slots
from denserl.intervals import LEVEL, wilson
from denserl.models.scoring import token_rewards
from denserl.rewards.objectives.losses import wins
from denserl.segmentation import Segments

FEW_PAIRS = 100  # of which an accuracy is known to about a tenth at best
HUGE_SCORE = 1e4  # usual ones are units, at most hundreds


def response_token_rewards(reward_model: nn.Module, batch: ResponseBatch, before: int = 0) -> Tensor:
    """The reward head's score at each response token, (B, T) fp32; no meaning off the response mask.

    before: the scores of so many prompt tokens stand before them, (B, before + T).
    """
    scores = token_rewards(reward_model, batch.input_ids, batch.attention_mask, batch.shared)
    return response_slots(scores, batch.response_start - before, before + batch.response_mask.shape[1])


def group_sums(
    scores: Tensor, segments: Segments, lengths: Tensor, counted: Tensor, p_chosen: Tensor | None = None
) -> dict[str, Tensor]:
    """What the metrics of groups of any size are made of, as sums (0-d, fp64, no gradient); of pairs those of `pair_sums`.

    Args:
        scores, lengths: (G, M) sequence scores and response lengths in tokens. counted, p_chosen: as those of `pair_sums`.
        segments: of the M G responses, all first candidates before all second ones.
    """
    if scores.shape[1] == 2:
        return pair_sums(scores.T.flatten(), segments, lengths.T.flatten(), counted, p_chosen)
    scores, group = scores.detach().double(), counted.double()
    response = group[:, None].expand(scores.shape)
    each = response.T.flatten()
    return {
        "pairs": group.sum(),
        "responses": response.sum(),
        "score": (scores * response).sum(),
        "score_square": (scores**2 * response).sum(),
        "segments": (segments.counts * each).sum(),
        "segment_tokens": (segments.lengths.sum(1) * each).sum(),
        "tokens": (lengths * response).sum(),
    }


def group_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics of what `group_sums` summed: of pairs `pair_metrics`, of others mean and spread of scores, and lengths."""
    if "responses" not in sums:
        return pair_metrics(sums)
    count = sums["responses"] or 1.0
    mean = sums["score"] / count
    return {
        "segments_per_response": sums["segments"] / count,
        "segment_length": sums["segment_tokens"] / (sums["segments"] or 1.0),
        "response_length": sums["tokens"] / count,
        "score_mean": mean,
        "score_std": max(sums["score_square"] / count - mean**2, 0.0) ** 0.5,
    }


def pair_sums(
    scores: Tensor,
    segments: Segments,
    lengths: Tensor,
    counted: Tensor | None = None,
    p_chosen: Tensor | None = None,
) -> dict[str, Tensor]:
    """What the metrics of pairs are made of, as sums over pairs (0-d, fp64, no gradient), so that batches and ranks add up.

    Args:
        scores, lengths: (2B,) sequence scores and response lengths in tokens; the chosen ones first, then the rejected.
        segments: of the same 2B responses.
        counted: (B,) bool, the pairs to sum over, or how often each counts; default all, once.
        p_chosen: (B,) probability that the chosen response is the better one; default 1. Below a half the pair is turned round,
            and at a half, a tie, it is none of the `decided`, of which alone accuracy and differences can be told.
    """
    scores, lengths = scores.detach().double(), lengths.double()
    # Products, not selections, whose size the host would have to wait for.
    pair = torch.ones(len(scores) // 2, device=scores.device).double() if counted is None else counted.double()
    decided, turned = pair, torch.zeros_like(pair, dtype=torch.bool)
    if p_chosen is not None:
        decided, turned = pair * (p_chosen != 0.5), p_chosen < 0.5
    (chosen, rejected), (long, short) = (
        (torch.where(turned, second, first), torch.where(turned, first, second))
        for first, second in (scores.chunk(2), lengths.chunk(2))
    )
    response = pair.repeat(2)
    return {
        "pairs": pair.sum(),
        "decided": decided.sum(),
        "correct": (wins(chosen, rejected) * decided).sum(),
        "longer_correct": (wins(long, short) * decided).sum(),
        "chosen": (chosen * decided).sum(),
        "rejected": (rejected * decided).sum(),
        "score": (scores * response).sum(),
        "segments": (segments.counts * response).sum(),
        "segment_tokens": (segments.lengths.sum(1) * response).sum(),
        "tokens": (lengths * response).sum(),
        "score_square": (scores**2 * response).sum(),
        "length_square": (lengths**2 * response).sum(),
        "score_length": (scores * lengths * response).sum(),
    }


def pair_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Metrics of the pairs that `pair_sums` summed: accuracy (equal scores count half), rewards, lengths, length bias.

    `length_accuracy` is the accuracy of preferring the longer response; `length_correlation` is Pearson's between score and
    length; `score_mean` and `score_std` are over all sequences, for the scalar normaliser.
    """
    decided = sums["decided"] or 1.0
    count = 2 * sums["pairs"] or 1.0
    mean, length = sums["score"] / count, sums["tokens"] / count
    variance = max(sums["score_square"] / count - mean**2, 0.0)
    length_variance = max(sums["length_square"] / count - length**2, 0.0)
    covariance = sums["score_length"] / count - mean * length
    spread = (variance * length_variance) ** 0.5
    return {
        "accuracy": sums["correct"] / decided,
        "chosen_reward": sums["chosen"] / decided,
        "rejected_reward": sums["rejected"] / decided,
        "reward_difference": (sums["chosen"] - sums["rejected"]) / decided,
        "segments_per_response": sums["segments"] / count,
        "segment_length": sums["segment_tokens"] / (sums["segments"] or 1.0),
        "response_length": length,
        "length_accuracy": sums["longer_correct"] / decided,
        "length_correlation": covariance / spread if spread > 0 else 0.0,
        "score_mean": mean,
        "score_std": variance**0.5,
    }


def remarks(accuracy: float, count: int, largest: float = 0.0, interval: Sequence[float] = (), of: str = "pairs") -> list[str]:
    """What a reader of an accuracy has to know, a line each: that pairs are few, that scores have exploded; often nothing.

    Args:
        accuracy: on `count` independent things, which `of` names. interval: its bounds; default Wilson's.
        largest: magnitude of the largest score, or of a usual one.
    """
    found = []
    if count < FEW_PAIRS:
        low, high = interval or wilson(accuracy, count)
        found.append(f"accuracy {accuracy:.3f} is of {count} {of} only: {LEVEL:.0%} interval [{low:.3f}, {high:.3f}]")
    if largest >= HUGE_SCORE:
        found.append(f"scores reach {largest:.1e} in magnitude: such a model has diverged in training, or is no reward model")
    return found
