"""From one reward per segment to one reward per token: what a segment is paid, and on which of its tokens."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from denserl.rewards.aggregation import is_within, running_aggregate, valid_scores
from denserl.segmentation import Segments

# What each segment is paid for itself: its reward; its share of the mean; or what it changes in the response's score.
WHOLE = ("even", "repeat", "end")
SHARE = ("even_mean",)
CHANGE = ("difference", "difference_end")
# What the response is paid, at its last token.
AT_LAST = ("mean_last", "logsumexp_last", "score_last")
# What is paid adds up to the score of the response.
OF_SCORE = (*CHANGE, "score_last")
KINDS = (*WHOLE, *SHARE, *CHANGE, *AT_LAST)
ALIASES = {
    "segment_normalization": "even",
    "same_segment_last": "repeat",
    "every_segment_last": "end",
    "segment_last_avg": "mean_last",
    "segment_last_logsumexp": "logsumexp_last",
}


def canonical_kind(kind: str) -> str:
    """The assignment's own name for a name or an alias. ValueError for any other word."""
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise ValueError(f"unknown assignment {kind!r}; known: {', '.join((*KINDS, *ALIASES))}")
    return kind


def score_changes(segment_rewards: Tensor, counts: Tensor, agg_func: str = "avg") -> Tensor:
    """What each segment changes in the score of its response: d_k = m_k - m_{k-1}, with m_0 = 0 (docs/credit.md).

    m_k is the aggregate of the first k segment rewards, so that the sum of the first k changes is m_k, and of all the
    response's score: potential-based shaping (Ng, Harada and Russell 1999) of one reward at the end, segment by segment, with
    the score of what has been said so far as potential.

    Args:
        segment_rewards: (B, K_max), anything past a row's K. counts: (B,) long, K of each row. agg_func: see `aggregate`.

    Returns: (B, K_max) fp32, 0 past a row's K. A change depends on its segment and those before it alone.

    Raises:
        ValueError: unknown aggregate.
    """
    # In double precision: a long response's sum is large beside its last segment's part in it.
    running = running_aggregate(segment_rewards.double(), counts, agg_func)
    return valid_scores(running - pad(running, (1, 0))[:, :-1], counts).float()


def assign_rewards(
    segment_rewards: Tensor,
    segments: Segments,
    kind: str,
    response_mask: Tensor | None = None,
    tau: float = 1.0,
    agg_func: str = "avg",
) -> Tensor:
    """Spread segment rewards over tokens (arXiv 2501.02790, section 3.3; those of the score are ours, docs/credit.md).

    even: r_k / length_k on each token of segment k. repeat: r_k on each. end: r_k at its last token. even_mean: r_k / K, split
    like even. difference: what r_k changes in the aggregate of the rewards so far (`score_changes`), split like even;
    difference_end: the same at the segment's last token. At the response's last token: mean_last, the mean of the r_k;
    logsumexp_last, tau * logsumexp(r / tau); score_last, their aggregate.

    Args:
        segment_rewards: (B, K_max), anything past a row's K.
        segments: of the same batch.
        kind: one of KINDS or of ALIASES.
        response_mask: (B, T), says where the response's last token is for the `_last` kinds. Without it, that is the
            last token of the last segment, which leaves out an end-of-turn token below the bandit level.
        tau: temperature of logsumexp_last, > 0.
        agg_func: how segment rewards make the score of a response (`aggregate`), for the differences and score_last.

    Returns: (B, T) fp32, 0 on every other token and on padding.

    Raises:
        ValueError: unknown kind, tau <= 0, or, where the score is paid, an unknown aggregate.
    """
    kind = canonical_kind(kind)
    if tau <= 0:
        raise ValueError(f"tau is {tau}; it must be > 0")
    if kind in OF_SCORE:
        segment_rewards = score_changes(segment_rewards, segments.counts, agg_func)
    return spread(payments(segment_rewards, segments.counts, kind, tau), segments, kind, response_mask)


def payments(segment_rewards: Tensor, counts: Tensor, kind: str, tau: float = 1.0) -> Tensor:
    """The numbers that are put on tokens: of each segment its own; of the AT_LAST kinds the one that is paid for them all.

    Args:
        segment_rewards: (B, K_max), anything past a row's K: `score_changes` where the kind is OF_SCORE, else rewards.
        counts: (B,) long, K of each row. kind: one of KINDS. tau: as of `assign_rewards`.

    Returns: (B, K_max), or (B, 1), fp32, 0 past a row's K.
    """
    rewards = valid_scores(segment_rewards.float(), counts)
    if kind not in AT_LAST:
        return rewards
    if kind == "logsumexp_last":
        value = tau * torch.where(is_within(rewards, counts), rewards / tau, -torch.inf).logsumexp(1, keepdim=True)
    else:
        value = rewards.sum(1, keepdim=True)
        value = value / counts.clamp(min=1)[:, None] if kind == "mean_last" else value
    return valid_scores(value, counts)


def spread(paid: Tensor, segments: Segments, kind: str, response_mask: Tensor | None) -> Tensor:
    """Put `payments`, or what became of them, on tokens: (B, T), 0 on every other token and on padding."""
    if kind in AT_LAST:
        last = last_token(segments.ids >= 0 if response_mask is None else response_mask)
        return torch.where(last, paid, 0.0)
    if kind == "even_mean":
        paid = paid / segments.counts[:, None]
    if kind in ("even", "even_mean", "difference"):
        paid = paid / segments.lengths  # 0 past a row's K, where no token reads
    # Tokens outside (id -1) read the 0 in front of the first segment's reward.
    paid = pad(paid, (1, 0)).gather(1, segments.ids + 1)
    return torch.where(segments.ends, paid, 0.0) if kind in ("end", "difference_end") else paid


def last_token(mask: Tensor) -> Tensor:
    """(B, T) bool: True at each row's last masked token, nowhere in an empty row."""
    mask = mask.bool()
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
