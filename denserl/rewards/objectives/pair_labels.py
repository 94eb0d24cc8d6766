"""Two responses in one text, of which a language model names the better one: cross-entropy of the label, and position bias."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import log_softmax

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.losses import full
from denserl.rewards.objectives.step_labels import LabelLoss


def label_logprobs(margins: Tensor, first: Tensor | None = None) -> Tensor:
    """Log-probabilities of n labels, among themselves or, where that of the first one is known, among all tokens.

    Args:
        margins: (..., n - 1) the logit of the first label less that of each other one.
        first: (...) log-probability of the first label among all tokens.

    Returns: (..., n) fp32 (fp64 of fp64 margins).
    """
    margins = full(margins)
    logits = torch.cat([torch.zeros_like(margins[..., :1]), -margins], -1)
    return log_softmax(logits, -1) if first is None else full(first)[..., None] + logits


def label_targets(p_first: Tensor, labels: int) -> Tensor:
    """What the labels' probabilities should be: (..., labels), of p_first, (...), that the first response is the better one.

    Of two labels p and 1 - p. Of three too, but at p = .5 the third one, that of a tie, is right.
    """
    both = torch.stack([p_first, 1 - p_first], -1)
    if labels == 2:
        return both
    is_tie = (p_first == 0.5)[..., None]
    return torch.cat([torch.where(is_tie, 0.0, both), is_tie.to(both)], -1)


def label_cross_entropy(margins: Tensor, p_first: Tensor, first: Tensor | None = None) -> Tensor:
    """Cross-entropy of the label: - sum_k t_k log p_k, t of `label_targets`, p of `label_logprobs` (arXiv 2405.07863).

    Among two labels it is -p log sigmoid(a - b) - (1 - p) log sigmoid(b - a).

    Args as of those. Returns: (...) fp32 (fp64 of fp64 margins).
    """
    logprobs = label_logprobs(margins, first)
    return -(label_targets(p_first.to(logprobs), logprobs.shape[-1]) * logprobs).sum(-1)


def position_bias(log_odds: Tensor) -> Tensor:
    """How much the first place is liked: the mean of (..., 2) log-odds that the first response is better, in both orders."""
    return full(log_odds).mean(-1)


@dataclass(frozen=True)
class PairLabels(Objective):
    """The label of the better response: `label_cross_entropy`, the mean of the orders in which a pair is read.

    loss: restricted to the labels, or among the full vocabulary.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    loss: LabelLoss = "restricted"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # it depends on the loss, and nobody writes it
        return ("orders", "label_logp") if self.loss == "full" else ("orders",)

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        margins, p_first, logp = groups.orders
        losses = label_cross_entropy(margins, p_first, logp).mean(1)
        if logp is None:
            return losses, {}
        return losses, {"label_mass": label_logprobs(margins, logp).exp().sum(-1).mean(1)}


@dataclass(frozen=True)
class PositionBias(Objective):
    """The square of a pair's `position_bias`, whose two orders are both read."""

    weight: Annotated[float, Ge(0)] = 1.0
    reads = ("orders",)

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        losses = position_bias(groups.orders.margins[..., 0]).square()
        return losses, {"squared_position_bias": losses}
