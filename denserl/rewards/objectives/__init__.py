"""Training objectives of reward models, and their losses as pure functions."""

from denserl.rewards.objectives.base import (
    READS,
    UNITS,
    Groups,
    Objective,
    Orders,
    Steps,
    all_labels,
    all_prototypes,
    all_reads,
    all_step_rows,
    all_step_sums,
    all_units,
    counted_weights,
    named_objective,
    total_losses,
    total_step_losses,
)
from denserl.rewards.objectives.bradley_terry import BradleyTerry, PositiveRegularizer
from denserl.rewards.objectives.contrast import Contrast, Contrasted, ContrastedOn
from denserl.rewards.objectives.contrast_terms import simcse_terms, sinkhorn, swav_terms
from denserl.rewards.objectives.disentangle import Disentangle, Orthogonal
from denserl.rewards.objectives.grm import REGULARIZERS, TextRegularizer, grm_regularizer, grm_terms
from denserl.rewards.objectives.losses import bradley_terry, pair_losses, positive_regularization, wins
from denserl.rewards.objectives.pair_labels import (
    PairLabels,
    PositionBias,
    label_cross_entropy,
    label_logprobs,
    position_bias,
)
from denserl.rewards.objectives.ratings import RatingErrors
from denserl.rewards.objectives.separation import separation
from denserl.rewards.objectives.step_labels import StepLabels, step_cross_entropy, whole_cross_entropy

__all__ = [
    "READS",
    "REGULARIZERS",
    "UNITS",
    "BradleyTerry",
    "Contrast",
    "Contrasted",
    "ContrastedOn",
    "Disentangle",
    "Groups",
    "Objective",
    "Orders",
    "Orthogonal",
    "PairLabels",
    "PositionBias",
    "PositiveRegularizer",
    "RatingErrors",
    "StepLabels",
    "Steps",
    "TextRegularizer",
    "all_labels",
    "all_prototypes",
    "all_reads",
    "all_step_rows",
    "all_step_sums",
    "all_units",
    "bradley_terry",
    "counted_weights",
    "grm_regularizer",
    "grm_terms",
    "label_cross_entropy",
    "label_logprobs",
    "named_objective",
    "pair_losses",
    "position_bias",
    "positive_regularization",
    "separation",
    "simcse_terms",
    "sinkhorn",
    "step_cross_entropy",
    "swav_terms",
    "total_losses",
    "total_step_losses",
    "whole_cross_entropy",
    "wins",
]
