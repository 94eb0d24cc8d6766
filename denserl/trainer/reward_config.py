"""Options of a reward-model training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from denserl.config import FIRST, INPUT, RESUMABLE, Only
from denserl.data.config import ScoredPairsConfig
from denserl.rewards.config import HeadConfig, LevelConfig, ObjectiveConfig
from denserl.trainer.config import SupervisedConfig


@dataclass(kw_only=True)
class RewardConfig(HeadConfig, ObjectiveConfig, LevelConfig, ScoredPairsConfig, SupervisedConfig):
    """Train a reward model on preferences: segment, token or bandit level is one flag."""

    group: ClassVar[str] = "training"

    eval_data: Annotated[list[str] | None, INPUT, FIRST, RESUMABLE] = None
    """Held-out pairs; default: eval_size pairs split off from the data."""
    eval_size: Annotated[int, Ge(1), Only("beside `eval_data`", lambda c: not c.eval_data)] = 512
    """Pairs split off for evaluation when there is no eval_data; at most a tenth of the data."""
    flip_frac: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the training pairs whose labels are turned round, to study noise; which ones, the seed says."""
