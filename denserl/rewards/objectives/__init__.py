"""Training objectives of reward models, and their losses as pure functions."""

from denserl.rewards.objectives.base import READS, Groups, Objective, all_labels, all_reads, named_objective, total_losses
from denserl.rewards.objectives.bradley_terry import BradleyTerry, PositiveRegularizer
from denserl.rewards.objectives.grm import REGULARIZERS, TextRegularizer, grm_regularizer, grm_terms
from denserl.rewards.objectives.losses import bradley_terry, pair_losses, positive_regularization, wins

__all__ = [
    "READS",
    "REGULARIZERS",
    "BradleyTerry",
    "Groups",
    "Objective",
    "PositiveRegularizer",
    "TextRegularizer",
    "all_labels",
    "all_reads",
    "bradley_terry",
    "grm_regularizer",
    "grm_terms",
    "named_objective",
    "pair_losses",
    "positive_regularization",
    "total_losses",
    "wins",
]
