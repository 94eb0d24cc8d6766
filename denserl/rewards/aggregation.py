"""From segment scores to the one score of a response that the Bradley-Terry loss compares."""

import torch
from torch import Tensor

AGGREGATIONS = ("avg",)


def aggregate(segment_scores: Tensor, counts: Tensor, how: str = "avg") -> Tensor:
    """Aggregate each response's segment scores; `avg` is f({r_k}) = sum_k r_k / K (spec dense-rlhf, section 3).

    Args:
        segment_scores: (B, K_max), anything past a row's K.
        counts: (B,) long, K of each row; a row with K = 0 scores 0.
        how: one of AGGREGATIONS.

    Returns: (B,) fp32.

    Raises:
        ValueError: unknown `how`.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {how!r}; known: {', '.join(AGGREGATIONS)}")
    return valid_scores(segment_scores, counts).sum(1) / counts.clamp(min=1)


def valid_scores(segment_scores: Tensor, counts: Tensor) -> Tensor:
    """(B, K_max) fp32 scores with 0 past each row's K."""
    within = torch.arange(segment_scores.shape[1], device=counts.device) < counts[:, None]
    return torch.where(within, segment_scores.float(), 0.0)
