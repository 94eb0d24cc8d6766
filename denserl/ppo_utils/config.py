"""Options of what PPO learns from: what segments are paid, the KL penalty, advantages and losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from denserl.config import FIRST, INPUT, MODEL, RESUMABLE, Config, Level, ModelSourceConfig, Only, OnOff
from denserl.rewards.config import Aggregation, ReadConfig, RewardModelConfig, SourcesConfig

Assignment = Literal[
    "difference_end",
    "difference",
    "score_last",
    "even",
    "even_mean",
    "repeat",
    "end",
    "mean_last",
    "logsumexp_last",
    "segment_normalization",
    "same_segment_last",
    "every_segment_last",
    "segment_last_avg",
    "segment_last_logsumexp",
]
Normalizer = Literal["location", "scalar", "running", "running_scale", "none"]
Estimator = Literal["gae", "rloo", "grpo", "reinforce"]

# Those of what is paid, by moments that a run takes along.
RUNNING = ("running", "running_scale")
# Those of a group of samples, of which one alone has no advantage.
OF_A_GROUP = ("rloo", "grpo")

WITHOUT_KL = Only("with `kl_coefficient` 0", lambda c: c.kl_coefficient)
WITHOUT_CRITIC = Only("without a critic, which `advantage` gae alone has", lambda c: c.has_critic())

# The normaliser that goes with what an assignment pays: single segments by their place, or the score of the response.
NORMALIZERS: dict[str, Normalizer] = {
    **dict.fromkeys(("even", "repeat", "end", "even_mean"), "location"),
    **dict.fromkeys(("segment_normalization", "same_segment_last", "every_segment_last"), "location"),
    **dict.fromkeys(("difference", "difference_end", "score_last", "mean_last", "logsumexp_last"), "scalar"),
    **dict.fromkeys(("segment_last_avg", "segment_last_logsumexp"), "scalar"),
}


def assignment_kind(level: str, kind: str | None, credit: str = "sum") -> str:
    """The assignment of a reward level and a credit, unless one is given."""
    return kind or ("mean_last" if level == "bandit" else "difference_end" if credit == "sum" else "end")


def normalizer_kind(level: str, assignment: str | None, kind: str | None, credit: str = "sum") -> str:
    """The normaliser of an assignment, unless one is given; a bandit reward has no place to be normalised by."""
    return kind or ("scalar" if level == "bandit" else NORMALIZERS[assignment_kind(level, assignment, credit)])


def _normalizes_by(kind: str) -> Callable[[Any], bool]:
    # Of a level that the reward model says, which is not known yet, either may be needed.
    return lambda c: kind in {normalizer_kind(level, c.assignment, c.normalizer, c.credit) for level in c.possible_levels()}


@dataclass(kw_only=True)
class DenseRewardConfig(ReadConfig):
    """How scores become rewards of tokens."""

    group: ClassVar[str] = "reward"

    reward_level: Annotated[Level | None, RESUMABLE] = None
    """segment: threshold 1.75 or the reward model's own; token: 0; bandit: 1000, paid mean_last. Default: the level that is
    stored with the reward model; one without any, or a function, gives what it gives: a number a response is bandit."""
    entropy_threshold: Annotated[float | None, Ge(0), RESUMABLE] = None
    """Entropy (nats) above which a token opens a segment; default: that of the level, or stored with the reward model."""
    agg_func: Annotated[Aggregation | None, RESUMABLE] = None
    """How segment rewards make the score of a response; default: as is stored with the reward model."""
    assignment: Assignment | None = None
    """difference_end: what a segment changes in the response's score, at its last token; difference: split over all of them.
    even: its whole reward, as published; even_mean: that / number of segments; repeat, end: on each token, on the last.
    score_last: the response's score, at its last token; mean_last, logsumexp_last: as published. Default: the level's own."""
    normalizer: Normalizer | None = None
    """scalar: mean and std of responses' scores. location: lines in a segment's place, from a fit. running: mean and std of all
    that segments were paid so far in training; running_scale: the same without the mean. none: as they are.
    Default: location for even, even_mean, repeat and end below the bandit level, scalar for all others."""
    fit: Annotated[str | None, INPUT, RESUMABLE, Only("without `normalizer` location", _normalizes_by("location"))] = None
    """Fit for the location normaliser: a file by fit-normalizer, or a published one, e.g. phi3-instruct/preference700k_60000.
    Default: the one beside the reward model (fits.json in its folder)."""
    reward_mean: Annotated[float | None, Only("without `normalizer` scalar", _normalizes_by("scalar"))] = None
    """Mean for the scalar normaliser; default: the reward model's config; of an ensemble, whose members are standardised, 0."""
    reward_std: Annotated[float | None, Gt(0), Only("without `normalizer` scalar", _normalizes_by("scalar"))] = None
    """Standard deviation for the scalar normaliser; default: the reward model's config; of an ensemble 1."""
    step_reward: Literal["difference", "centred", "prob", "logit"] | None = None
    """Of a model that judges steps, whose p is the chance that a step is right: difference: p less that of the step before (of
    the first, 1/2); centred: 2p - 1; prob: p; logit: its logit. Default: difference; with another `credit` than sum centred."""
    credit: Literal["sum", "min", "prefix_min"] = "sum"
    """sum: each segment or step is paid its own reward. min: that times softmax(-rewards / `credit_temperature`), about the
    least one. prefix_min: what it changes in the least one so far. Neither pays for an end: add an `outcome_function`. For
    `assignment` end (then the default), even or repeat."""
    credit_temperature: Annotated[float, Gt(0), Only("without `credit` min", lambda c: c.credit == "min")] = 0.1
    """Temperature of `credit` min."""
    score_clip: Annotated[float | None, Gt(0)] = None
    """What a segment is paid is held within +-this once it is normalised, before it is put on tokens; published beside running:
    0.3 and 0.8."""
    tau: Annotated[
        float,
        Gt(0),
        Only("without `assignment` logsumexp_last", lambda c: c.assignment in ("logsumexp_last", "segment_last_logsumexp")),
    ] = 1.0
    """Temperature of logsumexp_last."""
    length_norm: bool = False
    """Also divide token rewards by the response length (token level only; not with what pays the response's score)."""
    penalise_unfinished: bool = False
    """A response without end-of-turn token gets -penalty on every token instead of its rewards."""
    penalise_longer_than: Annotated[int | None, Ge(1)] = None
    """The same for a response of more tokens than this."""
    penalty: Annotated[
        float,
        Ge(0),
        Only(
            "without `penalise_unfinished` or `penalise_longer_than`",
            lambda c: c.penalise_unfinished or c.penalise_longer_than,
        ),
    ] = 0.05
    """The penalty of the two options above."""
    reward_clip: Annotated[float, Gt(0)] = 10.0
    """Token rewards are clipped to +-this before the KL penalty."""

    def possible_levels(self) -> tuple[str, ...]:
        """The level that is asked for, or all that a reward model may have."""
        return (self.reward_level,) if self.reward_level else ("segment", "token", "bandit")


@dataclass(kw_only=True)
class PaidConfig(RewardModelConfig, SourcesConfig, DenseRewardConfig, ModelSourceConfig):
    """What gives rewards, and how they are paid."""

    group: ClassVar[str] = "reward"

    reward_model: Annotated[list[str] | None, MODEL, FIRST, RESUMABLE] = None
    """Trained reward model: folder or hub name. Several are an ensemble, each standardised by its own mean and std."""


@dataclass(kw_only=True)
class KLConfig(Config):
    """How the policy is held near the reference."""

    group: ClassVar[str] = "KL penalty"

    kl_coefficient: Annotated[float, FIRST, Ge(0)] = 0.01
    """Weight of the KL penalty."""
    kl_in: Annotated[Literal["reward", "loss"], WITHOUT_KL] = "reward"
    """reward: the KL is taken off the rewards of tokens. loss: its k3 estimate is added to the policy's loss, as in GRPO."""
    kl_estimator: Annotated[
        Literal["k1", "k2", "k3"],
        WITHOUT_KL,
        Only("with `kl_in` loss, where the estimate is k3", lambda c: c.kl_in == "reward"),
    ] = "k1"
    """Per-token KL estimate in the reward."""
    kl_target: Annotated[float | None, Gt(0), WITHOUT_KL] = None
    """Multiply the coefficient up or down towards this KL per response."""
    kl_horizon: Annotated[int, Ge(1), Only("without `kl_target`", lambda c: c.kl_target)] = 10000
    """Responses over which the adaptive coefficient moves."""


@dataclass(kw_only=True)
class LossConfig(Config):
    """Advantages, and the losses of policy and critic."""

    group: ClassVar[str] = "PPO"

    advantage: Annotated[
        Estimator, Only("with `samples_per_prompt` 1", lambda c: c.advantage not in OF_A_GROUP or c.samples_per_prompt > 1)
    ] = "gae"
    """gae: by a critic. Without one: rloo, a token's return less the mean of the prompt's other samples there; grpo, less the
    mean of all of them, by their standard deviation; reinforce, its return."""
    group_std: Annotated[OnOff, Only("without `advantage` grpo", lambda c: c.advantage == "grpo")] = "on"
    """Whether grpo divides by the standard deviation of the prompt's samples."""
    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Discount of rewards."""
    lam: Annotated[float, Interval(ge=0, le=1), WITHOUT_CRITIC] = 0.95
    """Lambda of GAE."""
    advantage_norm: OnOff | None = None
    """Whether advantages are brought to mean 0 and variance 1 over all response tokens of a rollout. Default: on, but with
    `advantage` rloo or grpo off."""
    advantage_clip: Annotated[float | None, Gt(0)] = None
    """Clip advantages to +-this, after `advantage_norm`."""
    policy_clip: Annotated[float, Gt(0)] = 0.2
    """Clip range of the ratio."""
    dual_clip: Annotated[float | None, Gt(1)] = None
    """Of a token with an advantage A below 0, let the loss be at most this times |A|, however large the ratio."""
    value_clip: Annotated[float | None, Gt(0), WITHOUT_CRITIC] = None
    """Clip range of values; default 0.25, of a bandit reward model 0.2."""
    value_coef: Annotated[float, Gt(0), WITHOUT_CRITIC] = 1.0
    """Weight of the value loss; the critic has its own optimiser, so that it shows where gradients are clipped."""
    entropy_coef: Annotated[float, Ge(0)] = 0.0
    """Weight in the policy's loss of the mean entropy (nats) of its choices; with `entropy_target`, of the distance to that."""
    entropy_target: Annotated[
        float | None,
        Gt(0),
        Only("without `entropy_coef`", lambda c: c.entropy_coef),
        Only("with `average` constant, which makes no mean of it", lambda c: c.average != "constant"),
    ] = None
    """The mean entropy that the policy is drawn to; without one, the more the better."""
    policy_tokens: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of each rollout's tokens that the policy learns from, those of highest entropy; the critic learns from all."""
    average: Literal["sequence", "token_mean", "constant"] = "sequence"
    """Average losses over each response then over responses, or over all tokens. constant: add up the policy's loss over the
    tokens of each response, divide by `max_new_tokens`, then over responses; a critic's is over all tokens."""

    def estimation(self) -> dict[str, Any]:
        """What `advantages.Advantages` is given."""
        norm = self.advantage_norm or ("off" if self.advantage in OF_A_GROUP else "on")
        ways = {"kind": self.advantage, "group_std": self.group_std == "on", "norm": norm == "on", "clip": self.advantage_clip}
        return {"gamma": self.gamma, "lam": self.lam, **ways}

    def average_of_all(self) -> str:
        """The average of what is not the policy's loss."""
        return "token_mean" if self.average == "constant" else self.average

    def has_critic(self) -> bool:
        """Whether advantages are estimated by a critic."""
        return self.advantage == "gae"
