"""Losses of pairs of scores, as pure functions. The term on log-probabilities is in grm.py."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
    soft_labels: Tensor | None = None,
) -> Tensor:
    """Bradley-Terry loss, -log sigmoid(s_c - s_r - margin), averaged over pairs (arXiv 2501.02790, equation 2).

    Args as those of `pair_losses`. Returns: 0-d fp32.
    """
    return pair_losses(chosen, rejected, margin, label_smoothing, centring, soft_labels).mean()


def pair_losses(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
    soft_labels: Tensor | None = None,
) -> Tensor:
    """The Bradley-Terry loss of each pair: cross-entropy of sigmoid(s_c - s_r - margin) with the label.

    Args:
        chosen, rejected: (B,) sequence scores.
        margin: (B,) rating differences, or None.
        label_smoothing: probability that a label is the wrong way round, in [0, 0.5): weighs in the loss of the flipped pair.
        centring: weight of (s_c + s_r)^2, which keeps scores around 0 (Eisenstein et al. 2023, section 2).
        soft_labels: (B,) probability that the chosen response is the better one; default 1.

    Returns: (B,) fp32 (fp64 of fp64 scores).
    """
    chosen, rejected = full(chosen), full(rejected)
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    right, wrong = 1 - label_smoothing, label_smoothing
    if soft_labels is not None:
        turned = 1 - soft_labels
        right, wrong = right * soft_labels + wrong * turned, wrong * soft_labels + right * turned
    loss = -right * logsigmoid(gap)
    if label_smoothing or soft_labels is not None:
        loss = loss - wrong * logsigmoid(-gap)
    if centring:
        loss = loss + centring * (chosen + rejected) ** 2
    return loss


def positive_regularization(chosen: Tensor) -> Tensor:
    """-log sigmoid(mean(s_c)), which keeps the scores of chosen responses above 0 (docs/reward_models.md). (B,) -> 0-d fp32."""
    return -logsigmoid(full(chosen).mean())


def wins(first: Tensor, second: Tensor) -> Tensor:
    """fp64: 1 where the first is larger, a half where both are equal."""
    return (first > second).double() + 0.5 * (first == second).double()


def full(x: Tensor) -> Tensor:
    """At least fp32."""
    return x if x.dtype == torch.float64 else x.float()
