"""Options of a reward-model training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from denserl.config import FIRST, INPUT, RESUMABLE, Only
from denserl.data.config import AugmentConfig, ScoredPairsConfig
from denserl.errors import require
from denserl.rewards.config import HeadConfig, LevelConfig, ObjectiveConfig, OrdersConfig, RatingsConfig, StepLabelsConfig
from denserl.rewards.strength_uses import MARGINS
from denserl.trainer.config import SupervisedConfig
from denserl.trainer.members_config import MembersConfig
from denserl.trainer.meta_config import MetaConfig
from denserl.trainer.self_training_config import SelfTrainingConfig
from denserl.trainer.strength_config import StrengthConfig

# What is of preferences alone, and what of all responses that are read at their segments.
OF_PAIRS = (
    "use_margin",
    "soft_label_scale",
    "label_smoothing",
    "centring",
    "pos_reg",
    "reg_type",
    "disentangle",
    "contrastive",
)
OF_SEGMENTS = ("reward_level", "entropy_threshold", "segmenter", "agg_func", "skip_cut_step")
# What has no meaning where both responses stand in one text, of which the context is cut as far as there is some.
OTHER_THAN_PAIR = (*OF_SEGMENTS, "max_prompt_length", "step_separator", "step_pattern", "max_steps")


@dataclass(kw_only=True)
class RewardConfig(
    HeadConfig,
    ObjectiveConfig,
    OrdersConfig,
    StepLabelsConfig,
    RatingsConfig,
    LevelConfig,
    AugmentConfig,
    ScoredPairsConfig,
    SelfTrainingConfig,
    MembersConfig,
    StrengthConfig,
    MetaConfig,
    SupervisedConfig,
):
    """Train a reward model: on preferences or ratings, at segment, token or bandit level, or on labelled steps or outcomes."""

    group: ClassVar[str] = "training"

    input: Annotated[
        Literal["pairs", "pair", "ratings", "steps", "response"],
        FIRST,
        Only("without `input` pairs", lambda c: c.input == "pairs", of=OF_PAIRS),
        Only("with `input` steps or response", lambda c: not c.reads_steps(), of=OF_SEGMENTS),
        Only("with `input` response", lambda c: c.input != "response", of=("max_steps",)),
        Only("with `input` pair", lambda c: c.input != "pair", of=OTHER_THAN_PAIR),
    ] = "pairs"
    """What the rows hold, and how they are read: preferences, each response by itself; preferences, both responses in one text,
    which is answered with the label of the better one (pair); responses whose attributes are rated; solutions whose steps are
    labelled; or solutions, each labelled as a whole (response)."""
    eval_data: Annotated[list[str] | None, INPUT, FIRST, RESUMABLE] = None
    """Held-out rows; default: eval_size rows split off from the data."""
    eval_size: Annotated[int, Ge(1), Only("beside `eval_data`", lambda c: not c.eval_data)] = 512
    """Rows split off for evaluation when there is no eval_data; at most a tenth of the data. Of ratings and labelled steps
    whole questions, with all their responses."""
    flip_frac: Annotated[float, Interval(ge=0, le=1), Only("without preferences", lambda c: c.input in ("pairs", "pair"))] = 0.0
    """Share of the training pairs whose labels are turned round, to study noise; which ones, `data_seed` says."""

    def reads_steps(self) -> bool:
        return self.input in ("steps", "response")

    def reads_ratings(self) -> bool:
        return self.input == "ratings"

    def seed_of_data(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    def subtracts_margins(self) -> bool:
        """Whether rows' margins are in the loss: those of ratings, or those that strength makes."""
        return self.use_margin or self.strength_use in MARGINS

    def check(self) -> None:
        super().check()
        found = f"`input` pair with `head_type` {self.head_type}: the better response is named by a label"
        require(self.input != "pair" or self.head_type == "label", found, "let `head_type` be label")
        found = f"`strength_use` {self.strength_use} with `input` pair: the odds of a label have no margin"
        require(self.input != "pair" or self.strength_use not in MARGINS, found, "let it be flip, soft, votes or sigmoid")
        of_ratings = self.input == "ratings"
        found = f"`head_type` {self.head_type} with `input` {self.input}"
        fix = "ratings are learned by attributes, and by no other head: give `input` ratings `head_type` attributes"
        require(of_ratings == (self.head_type == "attributes"), found, fix)
        if of_ratings:
            self.check_weights(self.rating_names(self.data))
        found = f"`attribute_fit` ridge with `agg_func` {self.agg_func}, which is no linear function of segments"
        linear = self.attribute_fit != "ridge" or self.agg_func in ("avg", "sum", "last")
        require(linear, found, "let it be avg, sum or last, or `attribute_fit` mse")
