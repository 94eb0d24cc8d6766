"""Rated attributes: squared errors of the ratings that are there."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor

from denserl.data.rated_rows import ATTRIBUTES
from denserl.rewards.attributes import squared_errors
from denserl.rewards.objectives.base import Groups, Objective


@dataclass(frozen=True)
class RatingErrors(Objective):
    """A response's attributes, all outputs but the score, near its ratings: `squared_errors`, averaged over all of a step.

    A mean per attribute first would weigh one that few responses have as much as one that all have.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    units: ClassVar[str] = "entries"

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        return squared_errors(groups.outputs[:, 0, 1:], groups.labels[ATTRIBUTES]).sum(1), {}
