"""How options pay a source: its normaliser, step reward, credit and assignment, and what contradicts itself."""

from denserl.errors import require
from denserl.models.reward_settings import StoredSettings
from denserl.ppo_utils.assignment import OF_SCORE, SHARE, WHOLE, canonical_kind
from denserl.ppo_utils.config import RUNNING, PaidConfig, assignment_kind, normalizer_kind
from denserl.ppo_utils.dense_reward import DenseReward
from denserl.ppo_utils.fits import choose_fit
from denserl.ppo_utils.normalizer import LocationNormalizer, RunningNormalizer, ScalarNormalizer
from denserl.rewards.aggregation import SHIFTED_WHOLE
from denserl.rewards.sources.build import Members
from denserl.rewards.sources.reading import choose_aggregation
from denserl.segmentation import Segmenter


def plain_reward(config: PaidConfig, beside: object = None) -> DenseReward:
    """How a source is paid whose numbers are paid as they are, each segment's at its end, unless options say otherwise.

    beside: a source whose the options of paying are, where there is one.
    """
    if beside:
        return DenseReward("difference_end", None, "sum")
    require(
        config.normalizer != "location",
        "`normalizer` location: its lines are of the segments of a reward model as it was trained",
        "use scalar, with `reward_mean` and `reward_std`, or none",
    )
    moments = (config.reward_mean, config.reward_std)
    wanted = config.normalizer == "scalar" or moments != (None, None)
    require(
        not wanted or None not in moments,
        f"`normalizer` scalar with `reward_mean` {moments[0]}, `reward_std` {moments[1]}",
        "give both `reward_mean` and `reward_std`",
    )
    normalizer = ScalarNormalizer(*moments) if wanted and config.normalizer != "none" else running_normalizer(config.normalizer)
    assignment = assignment_kind("segment", config.assignment, config.credit)
    check_credit(config.credit, assignment)
    more = (config.credit, config.credit_temperature, config.score_clip)
    return DenseReward(assignment, normalizer, config.agg_func or "sum", config.tau, False, None, *more)


def running_normalizer(kind: str | None) -> RunningNormalizer | None:
    """The normaliser of what is paid that an option's word asks for; None for other words."""
    return RunningNormalizer(centre=kind == "running") if kind in RUNNING else None


def dense_reward_of(config: PaidConfig, members: Members, segmenter: Segmenter) -> DenseReward:
    """The way from the reward models' scores to token rewards that the level and the overriding options ask for."""
    if members.judge_steps:
        return step_reward_of(config, members, segmenter)
    require(
        config.step_reward is None,
        f"`step_reward` {config.step_reward} has no effect: {', '.join(members.paths)} gives rewards, no chances of steps",
        "leave `step_reward` out, or give a model of denserl train-rm --input steps",
    )
    threshold = segmenter.threshold
    require(
        not config.length_norm or threshold == 0,
        f"`length_norm` at threshold {threshold:g}; it is defined for the token level only",
        "add `reward_level` token, or leave `length_norm` out",
    )
    assignment = assignment_kind(segmenter.level, config.assignment, config.credit)
    check_credit(config.credit, assignment)
    require(
        not config.length_norm or canonical_kind(assignment) not in (*OF_SCORE, *SHARE),
        f"`length_norm` with `assignment` {assignment}, which pays the response's score whatever its length",
        "leave `length_norm` out, or pay as published, `assignment` even",
    )
    agg_func = choose_aggregation(members.stored, members.paths, config.agg_func)
    normalizer = _normalizer(config, members, segmenter, assignment, agg_func)
    more = (config.credit, config.credit_temperature, config.score_clip)
    return DenseReward(assignment, normalizer, agg_func, config.tau, config.length_norm, None, *more)


def step_reward_of(config: PaidConfig, members: Members, segmenter: Segmenter) -> DenseReward:
    """The way from the logits of steps to token rewards. UserError for what is of rewards that are normalised or of scores."""
    assignment, names = config.assignment or "end", ", ".join(members.paths)
    require(
        canonical_kind(assignment) not in OF_SCORE,
        f"`assignment` {assignment} with {names}, which judges steps: what a step changes is its `step_reward` difference",
        "use `assignment` end or even, or leave it out",
    )
    for name in ("normalizer", "fit", "reward_mean", "reward_std", "length_norm"):
        value = getattr(config, name)
        fix = f"leave `{name}` out"
        without = value in (None, False, "none", *RUNNING)
        require(without, f"`{name}` {value} has no effect on chances of steps ({names})", fix)
    check_credit(config.credit, assignment)
    step_reward = config.step_reward or ("difference" if config.credit == "sum" else "centred")
    agg_func = choose_aggregation(members.stored, members.paths, config.agg_func)
    more = (step_reward, config.credit, config.credit_temperature, config.score_clip)
    return DenseReward(assignment, running_normalizer(config.normalizer), agg_func, config.tau, False, *more)


def check_credit(credit: str, assignment: str) -> None:
    """UserError for a credit other than the sum where segments are not paid for themselves."""
    require(
        credit == "sum" or canonical_kind(assignment) in WHOLE,
        f"`credit` {credit} with `assignment` {assignment}, which does not pay segments for themselves",
        f"use `assignment` {', '.join(WHOLE)}, or leave it out",
    )


def _normalizer(
    config: PaidConfig, members: Members, segmenter: Segmenter, assignment: str, agg_func: str
) -> LocationNormalizer | ScalarNormalizer | RunningNormalizer | None:
    kind, names = normalizer_kind(segmenter.level, assignment, config.normalizer, config.credit), ", ".join(members.paths)
    # The level is known only now where the reward model says it.
    for needs, options in (("scalar", ("reward_mean", "reward_std")), ("location", ("fit",))):
        for name in options:
            value = getattr(config, name)
            fix = f"leave `{name}` out, or change what it goes with"
            require(kind == needs or value is None, f"`{name}` {value} has no effect without `normalizer` {needs}", fix)
    if kind == "scalar":
        return _scalar(config, members.stored, names, segmenter, assignment, agg_func)
    if kind == "location":
        return choose_fit(config.fit, members.paths, segmenter.name, agg_func, segmenter.threshold)
    return running_normalizer(kind)


def _scalar(
    config: PaidConfig, stored: StoredSettings, names: str, segmenter: Segmenter, assignment: str, agg_func: str
) -> ScalarNormalizer:
    require(
        agg_func in SHIFTED_WHOLE or assignment in OF_SCORE or segmenter.level == "bandit",
        f"`assignment` {assignment} with the scalar normaliser: its mean and std are of whole responses' scores, and do "
        f"not normalise single segments of the aggregation {agg_func}",
        "use `assignment` difference_end, difference or score_last, or `normalizer` none or location",
    )
    given = config.reward_mean is not None and config.reward_std is not None
    require(
        given or agg_func == stored.agg_func,
        f"{names}: the stored mean and std are of scores by the aggregation {stored.agg_func}; rewards are aggregated with "
        f"{agg_func}",
        "leave `agg_func` out, or add `reward_mean` and `reward_std`",
    )
    mean = config.reward_mean if config.reward_mean is not None else stored.mean
    std = config.reward_std if config.reward_std is not None else stored.std
    as_published = "" if segmenter.level == "bandit" else "; or pay as published, `assignment` even"
    require(
        mean is not None and std is not None and std > 0,
        f"{names}: the scalar normaliser needs a mean and a std > 0; its config has mean {mean}, std {std}",
        "add `reward_mean` and `reward_std`, the score_mean and score_std that denserl evaluate pairs finds, or train it with "
        f"denserl train-rm, which stores them{as_published}",
    )
    return ScalarNormalizer(mean, std)
