"""Chosen above rejected: the Bradley-Terry objective, and the one that keeps scores of chosen responses above 0."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.losses import full, pair_losses, positive_regularization


@dataclass(frozen=True)
class BradleyTerry(Objective):
    """Of a pair, the chosen above the rejected: `pair_losses`, with the rows' `p_chosen` as soft labels.

    label_smoothing applies to them: e of the labels are turned round, whatever they say. soft_label_scale: labels are
    sigmoid(margin / scale) in place of `p_chosen`, another estimate of the same probability.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    use_margin: bool = False
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    centring: Annotated[float, Ge(0)] = 0.0
    soft_label_scale: Annotated[float | None, Gt(0)] = None

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        margin, p_chosen = groups.labels.get("margin"), groups.labels.get("p_chosen")
        chosen, rejected = groups.scores.unbind(1)
        losses = pair_losses(
            chosen,
            rejected,
            margin if self.use_margin else None,
            self.label_smoothing,
            self.centring,
            p_chosen if self.soft_label_scale is None else torch.sigmoid(margin / self.soft_label_scale),
        )
        return losses, {"bt_loss": losses, **({"margin": margin} if self.use_margin else {})}


@dataclass(frozen=True)
class PositiveRegularizer(Objective):
    """Scores of chosen responses above 0: `positive_regularization`, of the counted pairs of one forward together.

    It is a function of their mean score, and each pair bears it whole: what a forward adds up to is the term times its
    counted pairs, by weight. Micro-batches and ranks so give the mean of their terms, weighted by pairs; it is the term of the
    whole optimiser step where there is one forward.
    """

    weight: Annotated[float, Ge(0)] = 1.0

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = groups.scores[:, 0]
        weight = groups.weights()
        total = torch.where(weight > 0, full(chosen) * weight, 0.0).sum()
        mean = total / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)
        losses = positive_regularization(mean).expand(len(chosen))
        return losses, {"pos_loss": losses}
