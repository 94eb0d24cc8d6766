"""From segment scores to the one score of a response that the Bradley-Terry loss compares, also of its first segments alone."""

import torch
from torch import Tensor
from torch.nn.functional import pad

AGGREGATIONS = ("avg", "sum", "min", "last", "logsumexp")
# Those that commute with shifting and scaling every segment's score alike.
SHIFTED_WHOLE = ("avg", "min", "last")


def aggregate(segment_scores: Tensor, counts: Tensor, how: str = "avg") -> Tensor:
    """Aggregate each response's segment scores r_1 ... r_K; `avg` is sum_k r_k / K (arXiv 2501.02790, section 3.2).

    Args:
        segment_scores: (B, K_max), anything past a row's K.
        counts: (B,) long, K of each row; a row with K = 0 scores 0.
        how: one of AGGREGATIONS. last: r_K.

    Returns: (B,) fp32 (fp64 of fp64 scores).

    Raises:
        ValueError: unknown `how`.
    """
    if how == "avg":
        return valid_scores(segment_scores, counts).sum(1) / counts.clamp(min=1)
    running = running_aggregate(segment_scores, counts, how)
    return pad(running, (1, 0)).gather(1, counts[:, None]).squeeze(1)


def running_aggregate(segment_scores: Tensor, counts: Tensor, how: str = "avg") -> Tensor:
    """The aggregate of each response's first k segment scores, in slot k - 1: (B, K_max), 0 past a row's K.

    Args, precision and raises: as of `aggregate`, which is its value in a row's last slot, to rounding. What stands in a slot
    depends on that slot and those before it alone.
    """
    scores = valid_scores(segment_scores, counts)
    if how == "avg":
        scores = scores.cumsum(1) / torch.arange(1, scores.shape[1] + 1, device=scores.device)
    elif how == "sum":
        scores = scores.cumsum(1)
    elif how == "min":
        scores = scores.cummin(1).values
    elif how == "logsumexp":
        scores = scores.logcumsumexp(1)
    elif how != "last":
        raise ValueError(f"unknown aggregation {how!r}; known: {', '.join(AGGREGATIONS)}")
    return valid_scores(scores, counts)


def valid_scores(segment_scores: Tensor, counts: Tensor) -> Tensor:
    """(B, K_max) scores with 0 past each row's K, fp32 (fp64 where they were)."""
    within = torch.arange(segment_scores.shape[1], device=counts.device) < counts[:, None]
    scores = segment_scores if segment_scores.dtype == torch.float64 else segment_scores.float()
    return torch.where(within, scores, 0.0)
