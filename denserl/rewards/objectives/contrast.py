"""Responses told apart by their features: two random passes of one are alike, and unlike all others (arXiv 2401.06080).

The terms are in contrast_terms.py, the prototypes in denserl/models/prototypes.py.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn.functional import dropout

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.contrast_terms import mean_cosines, simcse_terms, swav_terms
from denserl.rewards.objectives.losses import full

Contrasted = Literal["simcse", "swav"]
ContrastedOn = Literal["pair", "diff"]
# What is known of all pairs of an optimiser step: features, their cosines with prototypes, and what each pair weighs.
FEATURES, SCORES, WEIGHTS = "contrast_features", "contrast_scores", "contrast_weights"


@dataclass(frozen=True)
class Contrast(Objective):
    """`simcse_terms`, or `swav_terms`, of the pairs of a whole optimiser step: of each pair the mean of its two features.

    on: pair, f of either response; diff, f(chosen) - f(rejected), and the negative of it; f being the hidden state at which a
    response's last score is read. temperature: of simcse. dropout: share of f that is dropped, in each pass anew.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    kind: Contrasted = "simcse"
    on: ContrastedOn = "pair"
    temperature: Annotated[float, Gt(0)] = 0.05
    dropout: Annotated[float, Interval(gt=0, lt=1)] = 0.05

    prototypes: Annotated[int, Ge(0)] = 0

    reads = ("hidden", "second_pass", "step_rows")
    in_evaluation: ClassVar[bool] = False

    def step_rows(self, groups: Groups) -> dict[str, Tensor]:
        features = self._features(groups)
        scores = {SCORES: groups.prototypes(features)} if self.kind == "swav" else {}
        return {FEATURES: features, **scores, WEIGHTS: groups.weights()}

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses are the terms of the batch's own pairs, with the gradient of those of the whole step."""
        whole = groups.in_step(self.step_rows(groups))
        counted = (whole[WEIGHTS] > 0).repeat_interleave(2)
        first, second = whole[FEATURES].flatten(0, 1).unbind(1)
        if self.kind == "simcse":
            terms = simcse_terms(first, second, self.temperature, counted)
        else:
            scores, others = whole[SCORES].flatten(0, 1).unbind(1)
            terms = swav_terms(scores, others, counted)
        terms = terms.view(-1, 2).mean(1)
        own, weight = groups.own_of_step(terms).detach(), groups.weights().sum().clamp(min=torch.finfo(torch.float32).tiny)
        total = (terms * whole[WEIGHTS]).sum()
        # The features of a pair are also negatives of others, in whose terms they have a part.
        losses = own + (total - total.detach()) / weight
        positive, negative = mean_cosines(first.detach(), second.detach(), counted)
        means = {"positive_cosine": positive, "negative_cosine": negative}
        means = {name: groups.own_of_step(values.view(-1, 2).mean(1)) for name, values in means.items()}
        return losses, {"contrastive_loss": own, **means, "contrastive_batch": torch.full_like(own, counted.sum())}

    def _features(self, groups: Groups) -> Tensor:
        """(G, 2, 2, H) fp32: of each pair two, by both passes."""
        read = torch.stack([groups.hidden, groups.second.hidden], 2)
        chosen, rejected = dropout(full(read), self.dropout).unbind(1)
        first, second = (chosen, rejected) if self.on == "pair" else (chosen - rejected, rejected - chosen)
        return torch.stack([first, second], 1)
