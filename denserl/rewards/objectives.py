"""Losses on the scores of chosen and rejected responses. Where the scores come from is not known here."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, label_smoothing: float = 0.0, centring: float = 0.0
) -> Tensor:
    """Bradley-Terry loss, -log sigmoid(s_c - s_r - margin), averaged over pairs (spec dense-rlhf, section 3).

    Args as those of `pair_losses`. Returns: 0-d fp32.
    """
    return pair_losses(chosen, rejected, margin, label_smoothing, centring).mean()


def pair_losses(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, label_smoothing: float = 0.0, centring: float = 0.0
) -> Tensor:
    """The Bradley-Terry loss of each pair.

    Args:
        chosen, rejected: (B,) sequence scores.
        margin: (B,) rating differences, or None.
        label_smoothing: probability that a label is the wrong way round, in [0, 0.5): weighs in the loss of the flipped pair.
        centring: weight of (s_c + s_r)^2, which keeps scores around 0 (Eisenstein et al. 2023, section 2).

    Returns: (B,) fp32.
    """
    gap = chosen.float() - rejected.float()
    if margin is not None:
        gap = gap - margin
    loss = -(1 - label_smoothing) * logsigmoid(gap)
    if label_smoothing:
        loss = loss - label_smoothing * logsigmoid(-gap)
    if centring:
        loss = loss + centring * (chosen.float() + rejected.float()) ** 2
    return loss
