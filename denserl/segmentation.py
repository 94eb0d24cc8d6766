"""Where a response is cut: entropies of the frozen language model -> segments, and scores read at their ends.

Pure tensor code over a padded batch, on any device. What a score is, and what is done with it, is not known here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BANDIT_THRESHOLD = 1000.0


class Segments(NamedTuple):
    """The segments of a padded batch of B responses with T token slots; K_max is the largest count of the batch."""

    ids: Tensor  # (B, T) long: 0..K-1 inside a segment, -1 elsewhere (padding, end-of-turn token)
    ends: Tensor  # (B, T) bool: True at the token whose score is the segment's reward
    lengths: Tensor  # (B, K_max) long: tokens in each segment, 0 past a row's K
    counts: Tensor  # (B,) long: K of each row


def segment_by_entropy(
    entropy: Tensor, response_mask: Tensor, threshold: float, has_end_of_turn: Tensor | None = None
) -> Segments:
    """Cut every response before each token whose entropy is above the threshold (spec dense-rlhf, section 2).

    The first token opens segment 0; a later token t opens a new one when entropy[t] > threshold, strictly. The
    end-of-turn token belongs to no segment, unless it is the only token. A threshold of 1000 or more is the bandit
    level: one segment over all response tokens, read at the last of them.

    Args:
        entropy: (B, T) nats, of the distribution that predicts each response token; ignored off the mask.
        response_mask: (B, T) bool or 0/1, 1 on response tokens (end-of-turn included), contiguous from t = 0.
        threshold: nats, >= 0.
        has_end_of_turn: (B,) bool, whether the last response token closes the turn; default all True.

    Raises:
        ValueError: the threshold is negative or NaN, or the shapes differ.
    """
    if math.isnan(threshold) or threshold < 0:
        raise ValueError(f"the entropy threshold is {threshold}; it must be a number of nats >= 0")
    if entropy.shape != response_mask.shape or entropy.ndim != 2:
        raise ValueError(f"entropy {tuple(entropy.shape)} and response_mask {tuple(response_mask.shape)}: want (B, T)")
    mask = response_mask.bool()
    if threshold >= BANDIT_THRESHOLD:
        content, opens = mask, torch.zeros_like(mask)
    else:
        content, opens = _content(mask, has_end_of_turn), entropy > threshold
    first = torch.zeros_like(mask)
    first[:, :1] = True
    starts = content & (opens | first)
    ids = torch.where(content, starts.long().cumsum(1) - 1, -1)
    counts = starts.sum(1)
    # The only read-back: the width of `lengths`, once per batch.
    lengths = ids.new_zeros(len(ids), int(counts.max()) if len(ids) else 0)
    if lengths.shape[1]:
        lengths.scatter_add_(1, ids.clamp(min=0), content.long())
    return Segments(ids, content & (_next(starts) | ~_next(content)), lengths, counts)


def segment_scores(token_scores: Tensor, segments: Segments) -> Tensor:
    """Read each segment's score at its end: (B, T) token scores -> (B, K_max) fp32, 0 past a row's K."""
    scores = torch.where(segments.ends, token_scores.float(), 0.0)
    out = scores.new_zeros(segments.lengths.shape)
    if not out.shape[1]:
        return out
    # Every segment has exactly one end, so adding the zeros of its other tokens leaves the score as it is.
    return out.scatter_add(1, segments.ids.clamp(min=0), scores)


def _content(mask: Tensor, has_end_of_turn: Tensor | None) -> Tensor:
    """The mask without the end-of-turn token of rows that have one; a lone token always stays."""
    closes = mask & ~_next(mask)
    closes[:, :1] = False
    if has_end_of_turn is not None:
        closes = closes & has_end_of_turn.bool()[:, None]
    return mask & ~closes


def _next(x: Tensor) -> Tensor:
    """x[:, t + 1] at t, False at the last slot."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)
