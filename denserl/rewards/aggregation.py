"""From segment scores to the one score of a response that the Bradley-Terry loss compares, also of its first segments alone.

From logits of steps to one number for a solution.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from denserl.segmentation import Segments, segment_scores

AGGREGATIONS = ("avg", "sum", "min", "last", "logsumexp")
# Those that commute with sums: of scores that are made of parts, the aggregate is made of the parts' aggregates.
ADDED_UP = ("avg", "sum", "last")
# Those that commute with shifting and scaling every segment's score alike.
SHIFTED_WHOLE = ("avg", "min", "last")
# Of the steps of a solution. There is no sum: it would pay for steps.
STEP_AGGREGATIONS = ("min", "mean", "last", "prod", "mean_logit")


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


def aggregate_outputs(values: Tensor, segments: Segments, how: str = "avg") -> Tensor:
    """Each of C values per token made of segments as the scores of responses are: (B, T, C) -> (B, C) fp32.

    Each is read at the ends of segments, and aggregated on its own (`aggregate`).
    """
    return torch.stack([aggregate(segment_scores(each, segments), segments.counts, how) for each in values.unbind(-1)], -1)


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
    within = is_within(segment_scores, counts)
    scores = segment_scores if segment_scores.dtype == torch.float64 else segment_scores.float()
    return torch.where(within, scores, 0.0)


def is_within(segment_scores: Tensor, counts: Tensor) -> Tensor:
    """(B, K_max) bool: the slots of each row's K."""
    return torch.arange(segment_scores.shape[1], device=counts.device) < counts[:, None]


def aggregate_steps(logits: Tensor, counts: Tensor, how: str = "min") -> Tensor:
    """One number for each solution, of the chances p_k = sigmoid(l_k) that its steps are right.

    Args:
        logits: (B, K_max) l_k, anything past a row's K.
        counts: (B,) long, K of each row; a row without steps has 0 (first_error: -1).
        how: one of STEP_AGGREGATIONS or first_error. min, mean, last, prod: of the p_k; mean_logit: the mean l_k;
            first_error: `first_error`.

    Returns: (B,) fp64, in which a step that is all but sure is not rounded to one that is.

    Raises:
        ValueError: unknown `how`.
    """
    logits = valid_scores(logits.double(), counts)
    if how == "first_error":
        return first_error(logits, counts).double()
    if how == "mean_logit":
        return aggregate(logits, counts, "avg")
    if how == "prod":
        return torch.where(counts > 0, valid_scores(logsigmoid(logits), counts).sum(1).exp(), 0.0)
    if how not in STEP_AGGREGATIONS:
        raise ValueError(f"unknown aggregation {how!r}; known: {', '.join(STEP_AGGREGATIONS)}, first_error")
    return aggregate(logits.sigmoid(), counts, "avg" if how == "mean" else how)


def first_error(logits: Tensor, counts: Tensor, threshold: float = 0.5) -> Tensor:
    """The place, from 0, of the first step whose chance of being right is below the threshold: (B,) long, -1 where none is.

    Args:
        logits, counts: as of `aggregate_steps`. threshold: above 0 and below 1.
    """
    wrong = is_within(logits, counts) & (logits < math.log(threshold) - math.log1p(-threshold))
    # A slot more, for argmax wants one, and takes the first of equal ones.
    return torch.where(wrong.any(1), pad(wrong, (0, 1)).long().argmax(1), -1)
