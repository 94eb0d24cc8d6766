"""Options of a reward-model training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from denserl.config import FIRST, INPUT, RESUMABLE, Only
from denserl.data.config import AugmentConfig, RatedDataConfig, ScoredPairsConfig
from denserl.rewards.config import HeadConfig, LevelConfig, ObjectiveConfig, StepLabelsConfig
from denserl.trainer.config import SupervisedConfig
from denserl.trainer.self_training_config import SelfTrainingConfig

# What is of preferences alone.
OF_PAIRS = (
    "use_margin",
    "soft_label_scale",
    "label_smoothing",
    "centring",
    "pos_reg",
    "reg_type",
    "disentangle",
    "reward_level",
    "entropy_threshold",
    "segmenter",
    "agg_func",
    "skip_cut_step",
    "flip_frac",
    "cache_dir",
)


@dataclass(kw_only=True)
class RewardConfig(
    HeadConfig,
    ObjectiveConfig,
    StepLabelsConfig,
    LevelConfig,
    RatedDataConfig,
    AugmentConfig,
    ScoredPairsConfig,
    SelfTrainingConfig,
    SupervisedConfig,
):
    """Train a reward model: on preferences, at segment, token or bandit level, or on labelled steps or outcomes."""

    group: ClassVar[str] = "training"

    input: Annotated[
        Literal["pairs", "steps", "response"],
        FIRST,
        Only("without `input` pairs", lambda c: c.input == "pairs", of=OF_PAIRS),
        Only("with `input` response", lambda c: c.input != "response", of=("max_steps",)),
    ] = "pairs"
    """What the rows hold: preferences; solutions whose steps are labelled; or solutions, each labelled as a whole."""
    eval_data: Annotated[list[str] | None, INPUT, FIRST, RESUMABLE] = None
    """Held-out rows; default: eval_size rows split off from the data."""
    eval_size: Annotated[int, Ge(1), Only("beside `eval_data`", lambda c: not c.eval_data)] = 512
    """Rows split off for evaluation when there is no eval_data; at most a tenth of the data. Of labelled steps whole questions,
    with all their solutions."""
    flip_frac: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the training pairs whose labels are turned round, to study noise; which ones, the seed says."""

    def reads_steps(self) -> bool:
        return self.input != "pairs"

    def reads_ratings(self) -> bool:
        return self.input == "ratings"
