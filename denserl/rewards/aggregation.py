"""From segment scores to the one score of a response that the Bradley-Terry loss compares, also of its first segments alone."""

import torch
from torch import Tensor
from torch.nn.functional import pad

AGGREGATIONS = ("avg", "sum", "min", "last", "logsumexp")
# Those of which it is the same to shift and scale every segment's score, or the aggregate.
SHIFTED_WHOLE = ("avg", "min", "last")


def aggregate(segment_scores: Tensor, counts: Tensor, how: str = "avg", tau: float = 1.0) -> Tensor:
    """Aggregate each response's segment scores r_1 ... r_K; `avg` is sum_k r_k / K (arXiv 2501.02790, section 3.2).

    Args:
        segment_scores: (B, K_max), anything past a row's K.
        counts: (B,) long, K of each row; a row with K = 0 scores 0.
        how: one of AGGREGATIONS. avg, sum, min; last: r_K; logsumexp: tau * logsumexp(r / tau).
        tau: temperature of logsumexp, > 0.

    Returns: (B,) fp32.

    Raises:
        ValueError: unknown `how`, or tau <= 0.
    """
    if how == "avg":
        return valid_scores(segment_scores, counts).sum(1) / counts.clamp(min=1)
    running = running_aggregate(segment_scores, counts, how, tau)
    return pad(running, (1, 0)).gather(1, counts[:, None]).squeeze(1)


def running_aggregate(segment_scores: Tensor, counts: Tensor, how: str = "avg", tau: float = 1.0) -> Tensor:
    """The aggregate of each response's first k segment scores, in slot k - 1: (B, K_max) fp32, 0 past a row's K.

    Args and raises: as of `aggregate`, which is its value in a row's last slot, to rounding. What stands in a slot depends on
    the slots before it alone.
    """
    if tau <= 0:
        raise ValueError(f"tau is {tau}; it must be > 0")
    scores = valid_scores(segment_scores, counts)
    if how == "avg":
        scores = scores.cumsum(1) / torch.arange(1, scores.shape[1] + 1, device=scores.device)
    elif how == "sum":
        scores = scores.cumsum(1)
    elif how == "min":
        scores = scores.cummin(1).values
    elif how == "logsumexp":
        scores = tau * (scores / tau).logcumsumexp(1)
    elif how != "last":
        raise ValueError(f"unknown aggregation {how!r}; known: {', '.join(AGGREGATIONS)}")
    return valid_scores(scores, counts)


def valid_scores(segment_scores: Tensor, counts: Tensor) -> Tensor:
    """(B, K_max) fp32 scores with 0 past each row's K."""
    within = torch.arange(segment_scores.shape[1], device=counts.device) < counts[:, None]
    return torch.where(within, segment_scores.float(), 0.0)
