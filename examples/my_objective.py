"""An objective of one's own: denserl train-rm --objective examples/my_objective.py:Calm,weight=0.05 ..."""

from dataclasses import dataclass

from denserl import Groups, Objective


@dataclass(frozen=True)
class Calm(Objective):
    """Scores of a group within `most` of one another, so that no single pair decides."""

    weight: float = 0.1
    most: float = 5.0

    def __call__(self, groups: Groups):
        spread = groups.scores.amax(1) - groups.scores.amin(1)
        losses = (spread - self.most).clamp(min=0).square()
        return losses, {"calm_loss": losses}
