"""Steps of solutions told right from wrong: cross-entropy of their labels, hard or soft, some of them missing."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import logsigmoid

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.losses import full

StepAverage = Literal["steps", "solutions"]
LabelLoss = Literal["restricted", "full"]


def step_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each step's label y: -y log sigmoid(l) - (1 - y) log sigmoid(-l) (arXiv 2312.08935, section 3.3).

    With l = logit(+) - logit(-) it is that of a softmax over the two.

    Args:
        logits: l, of any shape. labels: of the same shape, in [0, 1]; NaN: none.

    Returns: fp32 (fp64 of fp64 logits), 0 where there is no label.
    """
    logits, right = full(logits), labels.nan_to_num(0.0)
    return torch.where(labels.isnan(), 0.0, -right * logsigmoid(logits) - (1 - right) * logsigmoid(-logits))


def whole_cross_entropy(logprobs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The same among all tokens: -y log P(+) - (1 - y) log P(-), where log P(-) = log P(+) - l.

    Args: logprobs: log P(+). The others, and what is returned, as of `step_cross_entropy`.
    """
    return torch.where(labels.isnan(), 0.0, (1 - labels.nan_to_num(0.0)) * full(logits) - full(logprobs))


@dataclass(frozen=True)
class StepLabels(Objective):
    """Right steps above 0, wrong ones below: `step_cross_entropy`.

    loss: restricted to both labels, or among the full vocabulary. average: over all steps that have labels, or over those of
    each solution and then over solutions.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    loss: LabelLoss = "restricted"
    average: StepAverage = "steps"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # it depends on the loss, and nobody writes it
        return ("steps", "label_logp") if self.loss == "full" else ("steps",)

    @property
    def units(self) -> str:  # type: ignore[override]
        return "steps" if self.average == "steps" else "groups"

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels, logprobs = groups.steps
        losses = whole_cross_entropy(logprobs, logits, labels) if self.loss == "full" else step_cross_entropy(logits, labels)
        totals = losses.sum(1)
        if self.average == "solutions":
            totals = totals / (~labels.isnan()).sum(1).clamp(min=1)
        return totals, {}
