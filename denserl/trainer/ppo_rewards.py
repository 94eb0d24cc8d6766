"""What PPO pays: one source of rewards or several, each through its own segments, normaliser and assignment, added up."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.errors import require
from denserl.models.loading import check_same_tokenizer
from denserl.models.reward_settings import StoredSettings
from denserl.plugins import load_named
from denserl.ppo_utils.assignment import OF_SCORE, SHARE, WHOLE, canonical_kind
from denserl.ppo_utils.config import assignment_kind, normalizer_kind
from denserl.ppo_utils.dense_reward import DenseReward, DenseRewards, Penalties, weighted_sum
from denserl.ppo_utils.fits import choose_fit
from denserl.ppo_utils.normalizer import LocationNormalizer, ScalarNormalizer
from denserl.rewards.aggregation import SHIFTED_WHOLE
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.base import RewardSource, Scores, per_token, read_segments
from denserl.rewards.sources.build import Members, reward_model_source, source_of
from denserl.rewards.sources.endpoint import EndpointSource
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.http import new_client, post_json
from denserl.rewards.sources.implicit import ImplicitSource, LogProbs
from denserl.rewards.sources.reading import check_level, choose_aggregation, choose_segmenter, new_segmenter, stored_threshold
from denserl.rewards.sources.reward_model import PrefixDifferences
from denserl.rewards.sources.texts import TextSource
from denserl.segmentation import BANDIT_THRESHOLD, Segmenter, join_segments, level_of
from denserl.trainer.ppo_config import PPOConfig


class PaidSource(NamedTuple):
    """A source of rewards, and how it is paid."""

    name: str
    source: RewardSource
    segmenter: Segmenter  # where the source has no segments of its own
    dense: DenseReward
    weight: float = 1.0


@dataclass(frozen=True)
class Rewards:
    """All sources of a run, and the penalties that take their place."""

    sources: Sequence[PaidSource]
    penalties: Penalties
    answers: Answers | None = None  # that servers gave, where any is asked

    def begin(self, place: str) -> None:
        """Say which rollout is scored next, `word-number`."""
        if self.answers is not None:
            self.answers.begin(place)

    def forget_before(self, number: int) -> None:
        """Let go of what was kept for rollouts before this one, which are never scored again."""
        if self.answers is not None:
            self.answers.drop_before(number)

    def score(self, responses: Responses, batch: ResponseBatch, of_texts: bool = False) -> dict[str, Scores]:
        """What the sources of one sort say of B responses, as (B, T) values, by name.

        of_texts: those that read texts, which are asked once about all responses of a rollout; else those that run models.
        """
        return {
            paid.name: per_token(paid.source(responses, batch), batch.response_mask)
            for paid in self.sources
            if isinstance(paid.source, TextSource) == of_texts
        }

    def logged(self, counted: Tensor) -> dict[str, float]:
        """Means over the counted responses of all ranks of what servers say beside rewards. counted: (N,) bool."""
        asked = {paid.name: paid.source for paid in self.sources if isinstance(paid.source, EndpointSource)}
        if not asked:
            return {}
        kept = counted.tolist()
        mine = [
            (f"{name}/{word}", number)
            for name, source in asked.items()
            for logs, counts in zip(source.logs, kept, strict=True)
            for word, number in logs.items()
            if counts
        ]
        # Ranks may have been told different names.
        found: dict[str, list[float]] = {}
        for word, number in (pair for of_rank in distributed.gather_objects(mine) for pair in of_rank):
            found.setdefault(word, []).append(number)
        return {word: sum(numbers) / len(numbers) for word, numbers in found.items()}

    def pay(
        self, scores: Mapping[str, Scores], entropy: Tensor, response_mask: Tensor, response_ids: Tensor, ended: Tensor
    ) -> tuple[Tensor, list[DenseRewards]]:
        """Rewards of tokens (B, T), and what each source alone comes to.

        scores: of each source, by name. entropy: (B, T) nats, of the reference model. ended: (B,) bool.
        """
        found = []
        for paid in self.sources:
            of_source = scores[paid.name]
            segments = of_source.segments
            if segments is None:
                segments = paid.segmenter(entropy, response_mask, response_ids, ended)
            found.append(paid.dense(*read_segments(of_source.values, segments, of_source.read), response_mask))
        tokens = weighted_sum([rewards.tokens for rewards in found], self.weights)
        return self.penalties(tokens, response_mask, ended), found

    @property
    def weights(self) -> list[float]:
        """Of each source."""
        return [paid.weight for paid in self.sources]

    def settings(self) -> dict[str, object]:
        """What checkpoints remember of how rewards are made, as it is resolved: the same choice may be a flag or a model's."""
        return {
            f"{what} of {paid.name}": value
            for paid in self.sources
            for what, value in (
                ("threshold", paid.segmenter.threshold),
                ("segmenter", paid.segmenter.name),
                ("rewards", str(paid.dense)),
                ("weight", paid.weight),
            )
        }


def join_scores(parts: Sequence[Scores]) -> Scores:
    """What a source says of several batches, under one another. ValueError where it reads some otherwise than others."""
    ways = {(part.read, part.segments is None) for part in parts}
    if len(ways) > 1:
        raise ValueError("a source gave some batches segments and others none, or reads them differently")
    width = max(part.values.shape[1] for part in parts)
    values = torch.cat([pad(part.values, (0, width - part.values.shape[1])) for part in parts])
    own = None if parts[0].segments is None else join_segments([part.segments for part in parts])
    return Scores(values, own, parts[0].read)


class Loaded(NamedTuple):
    """What sources are made of, beside options."""

    tokenizer: PreTrainedTokenizerBase
    decode: Callable[[list[int]], str]  # token ids -> text, as the texts of responses are made
    members: Members | None  # the reward models as they were loaded; None without any
    readers: Sequence[nn.Module]  # the same as they are called (engines)
    implicit: Sequence[LogProbs] = ()  # the model of the implicit reward, then its reference
    answers: Answers | None = None  # of servers


def reward_models(config: PPOConfig, loaded: Loaded) -> list[PaidSource]:
    """The reward models, as one source."""
    members = loaded.members
    if members is None:
        return []
    require(
        config.critic_init == "sft" or not members.judge_steps,
        f"`critic_init` reward_model with {', '.join(members.paths)}, whose scores are logits, no values, maybe of another "
        "tokenizer",
        "leave `critic_init` out",
    )
    ensemble: dict[str, Any] = {"how": config.ensemble, "weight": config.ensemble_weight, "read_at": config.read_at}
    if config.prefix_differences:
        check_of_whole_responses(members)
        check_same_tokenizer(loaded.tokenizer, members.tokenizer, members.paths[0])  # those that judge may have another
        whole = reward_model_source(members, Segmenter(BANDIT_THRESHOLD), **ensemble, models=loaded.readers)
        segmenter = segmenter_of_increments(config, loaded.tokenizer)
        source = PrefixDifferences(whole, chances=members.judge_steps)
        return [PaidSource("reward_model", source, segmenter, plain_reward(config))]
    cut: dict[str, Any] = {name: getattr(config, option) for name, option in CUT.items()}
    segmenter = choose_segmenter(members.each, members.paths, loaded.tokenizer, **cut, steps=config)
    source = source_of(members, segmenter, **ensemble, models=loaded.readers, written_by=loaded.tokenizer)
    return [PaidSource("reward_model", source, segmenter, dense_reward_of(config, members, segmenter))]


def implicit_reward(config: PPOConfig, loaded: Loaded) -> list[PaidSource]:
    """The implicit reward of a language model."""
    if not config.implicit_reward:
        return []
    segmenter = segmenter_of_increments(config, loaded.tokenizer)
    model, reference, *_ = loaded.implicit
    source = ImplicitSource(model, reference, config.implicit_beta)
    return [PaidSource("implicit_reward", source, segmenter, plain_reward(config, config.reward_model))]


def functions(config: PPOConfig, loaded: Loaded) -> list[PaidSource]:
    """Each function as a source."""
    whole, dense = Segmenter(BANDIT_THRESHOLD), plain_reward(config, config.reward_model)
    return [
        PaidSource(name, FunctionSource.named(name, "reward_function", loaded.decode), whole, dense)
        for name in config.reward_function or []
    ]


def endpoint(config: PPOConfig, loaded: Loaded) -> list[PaidSource]:
    """The server, or several, as one source."""
    if not config.reward_url:
        return []
    client = new_client(_token(config.reward_url_token_env))
    post = functools.partial(post_json, client, timeout=config.reward_url_timeout, tries=config.reward_url_tries)
    render, asked = loaded.tokenizer.decode, config.reward_url
    source = EndpointSource(asked, post, config.reward_url_batch, loaded.answers, loaded.decode, render)
    return [PaidSource("reward_url", source, Segmenter(BANDIT_THRESHOLD), plain_reward(config, config.reward_model))]


def outcome(config: PPOConfig, loaded: Loaded) -> list[PaidSource]:
    """The outcome of a response, paid at its last token whatever the level."""
    if not config.outcome_function:
        return []
    source = FunctionSource.named(config.outcome_function, "outcome_function", loaded.decode)
    at_last = DenseReward("score_last", None, "sum")
    return [PaidSource("outcome_function", source, Segmenter(BANDIT_THRESHOLD), at_last, config.outcome_weight)]


# A builder for each kind of source; in the order of `PPOConfig.source_names`.
BUILDERS: Sequence[Callable[[PPOConfig, Loaded], list[PaidSource]]] = (reward_models, implicit_reward, functions, endpoint)

# How responses are cut: arguments of `choose_segmenter`, and the options that say them.
CUT = {"level": "reward_level", "threshold": "entropy_threshold", "segmenter": "segmenter"}

# Options that only some sources know -> the options that ask for one of these.
KNOWN_BY = {
    **dict.fromkeys(CUT.values(), ("reward_model", "implicit_reward")),
    **dict.fromkeys(("read_at", "fit", "length_norm", "step_reward"), ("reward_model",)),
}


def make_rewards(config: PPOConfig, loaded: Loaded, others: Sequence[PaidSource] = ()) -> Rewards:
    """The sources that the config names, with one weight each; and others, with weights of their own.

    Raises:
        UserError: settings do not go together, or a function cannot be had.
    """
    sources = [paid for build in BUILDERS for paid in build(config, loaded)]
    weights = config.reward_weights or [1.0] * len(sources)
    weighed = [paid._replace(weight=weight) for paid, weight in zip(sources, weights, strict=True)]
    penalties = Penalties(config.penalise_unfinished, config.penalise_longer_than, config.penalty)
    return Rewards([*weighed, *outcome(config, loaded), *others], penalties, loaded.answers)


def check_sources(config: PPOConfig, others: Sequence[PaidSource] = ()) -> None:
    """UserError unless something gives rewards, each has one weight, and no option is of a source that is not there."""
    # A wrong name is known before models are loaded.
    for name in config.reward_function or []:
        load_named(name, "reward_function")
    if config.outcome_function:
        load_named(config.outcome_function, "outcome_function")
    own = config.source_names()
    names = [*own, *(["outcome_function"] if config.outcome_function else []), *(paid.name for paid in others)]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{twice} is given twice as a source of rewards", "give it once, with the sum of the weights")
    fix = "add `reward_model` FOLDER, or another source of docs/reward_sources.md"
    require(names, "nothing gives rewards", fix)
    weights = config.reward_weights
    require(
        weights is None or len(weights) == len(own),
        f"`reward_weights` has {len(weights or [])} weights for {len(own)} sources of rewards",
        f"give one for each, in this order: {', '.join(own)}",
    )
    for name, kinds in KNOWN_BY.items():
        value, asking = getattr(config, name), [kind for kind in kinds if getattr(config, kind)]
        without = " or ".join(f"`{kind}`" for kind in kinds)
        require(value in (None, False) or asking, f"`{name}` {value} has no effect without {without}", f"leave `{name}` out")
    if not config.reward_model:
        require(config.critic_init == "sft", "`critic_init` reward_model without `reward_model`", "leave `critic_init` out")
    for name in ("fit", "length_norm", "step_reward") if config.prefix_differences else ():
        value = getattr(config, name)
        require(not value, f"`{name}` {value} has no effect with `prefix_differences`", f"leave `{name}` out")


def _token(variable: str | None) -> str | None:
    """What an environment variable holds, if one is named. UserError where it is not set, or holds what no header can."""
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    sound = token and token.isascii() and token.isprintable()
    found = "is not set" if not token else "holds other characters than a token has"
    require(sound, f"`reward_url_token_env`: the environment variable {variable} {found}", f"export {variable}, as one line")
    return token


def check_of_whole_responses(members: Members) -> None:
    """UserError where a reward model is of segments or steps: what they change is paid without differences of prefixes.

    Outcomes are judged as if a response were one step.
    """
    for stored, path in zip(members.each, members.paths, strict=True):
        if members.judge_steps:
            require(
                stored.max_steps == 1 and stored.context_signs in (None, "none"),
                f"`prefix_differences`: {path} was trained to judge steps, not whole responses",
                "leave `prefix_differences` out: each step is paid what it changes in the chance of success",
            )
            continue
        level = level_of(stored_threshold(stored))
        require(
            level == "bandit",
            f"`prefix_differences`: {path} was trained to score the {level}s of a response, not whole responses",
            "leave `prefix_differences` out: each segment is paid what it changes in the score",
        )


def segmenter_of_increments(config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Segmenter:
    """How a source is cut that pays every token what it adds: token by token, unless options say otherwise."""
    check_level(config.reward_level, config.entropy_threshold)
    return new_segmenter(config.reward_level or "token", config.entropy_threshold, config.segmenter, tokenizer, config)


def plain_reward(config: PPOConfig, beside: object = None) -> DenseReward:
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
    normalizer = ScalarNormalizer(*moments) if wanted and config.normalizer != "none" else None
    assignment = assignment_kind("segment", config.assignment, config.credit)
    check_credit(config.credit, assignment)
    credit = (config.credit, config.credit_temperature)
    return DenseReward(assignment, normalizer, config.agg_func or "sum", config.tau, False, None, *credit)


def dense_reward_of(config: PPOConfig, members: Members, segmenter: Segmenter) -> DenseReward:
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
    credit = (config.credit, config.credit_temperature)
    return DenseReward(assignment, normalizer, agg_func, config.tau, config.length_norm, None, *credit)


def step_reward_of(config: PPOConfig, members: Members, segmenter: Segmenter) -> DenseReward:
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
        require(value in (None, False, "none"), f"`{name}` {value} has no effect on chances of steps ({names})", fix)
    check_credit(config.credit, assignment)
    step_reward = config.step_reward or ("difference" if config.credit == "sum" else "centred")
    agg_func = choose_aggregation(members.stored, members.paths, config.agg_func)
    return DenseReward(assignment, None, agg_func, config.tau, False, step_reward, config.credit, config.credit_temperature)


def check_credit(credit: str, assignment: str) -> None:
    """UserError for a credit other than the sum where segments are not paid for themselves."""
    require(
        credit == "sum" or canonical_kind(assignment) in WHOLE,
        f"`credit` {credit} with `assignment` {assignment}, which does not pay segments for themselves",
        f"use `assignment` {', '.join(WHOLE)}, or leave it out",
    )


def _normalizer(
    config: PPOConfig, members: Members, segmenter: Segmenter, assignment: str, agg_func: str
) -> LocationNormalizer | ScalarNormalizer | None:
    kind, names = normalizer_kind(segmenter.level, assignment, config.normalizer, config.credit), ", ".join(members.paths)
    # The level is known only now where the reward model says it.
    for needs, options in (("scalar", ("reward_mean", "reward_std")), ("location", ("fit",))):
        for name in options:
            value = getattr(config, name)
            fix = f"leave `{name}` out, or change what it goes with"
            require(kind == needs or value is None, f"`{name}` {value} has no effect without `normalizer` {needs}", fix)
    if kind == "none":
        return None
    if kind == "scalar":
        return _scalar(config, members.stored, names, segmenter, assignment, agg_func)
    return choose_fit(config.fit, members.paths, segmenter.name, agg_func, segmenter.threshold)


def _scalar(
    config: PPOConfig, stored: StoredSettings, names: str, segmenter: Segmenter, assignment: str, agg_func: str
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
        f"add `reward_mean` and `reward_std`, or train it with denserl train-rm, which stores them{as_published}",
    )
    return ScalarNormalizer(mean, std)
