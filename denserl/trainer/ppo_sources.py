"""The sources of rewards that options name: a builder for each kind, and what does not go together."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from denserl.config import options_of
from denserl.errors import require
from denserl.http import Patience, new_client, post_json, token_in
from denserl.levels import BANDIT_THRESHOLD, level_of
from denserl.models.tokenizers import check_same_tokenizer
from denserl.plugins import load_named
from denserl.ppo_utils.config import PaidConfig
from denserl.ppo_utils.dense_reward import DenseReward, Penalties
from denserl.rewards.config import StepConfig
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.build import Members, check_scores, compares, judges_steps, reward_model_source, source_of
from denserl.rewards.sources.endpoint import EndpointSource
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.implicit import ImplicitSource, LogProbs
from denserl.rewards.sources.pair_model import pair_model_of
from denserl.rewards.sources.pair_source import PairSource, ReferenceAnswers
from denserl.rewards.sources.reading import check_level, choose_segmenter, new_segmenter, stored_threshold
from denserl.rewards.sources.reward_model import PrefixDifferences
from denserl.segmentation import Segmenter
from denserl.trainer.ppo_config import PPOConfig
from denserl.trainer.ppo_paying import dense_reward_of, plain_reward
from denserl.trainer.ppo_rewards import PaidSource, Rewards


class Loaded(NamedTuple):
    """What sources are made of, beside options."""

    tokenizer: PreTrainedTokenizerBase
    decode: Callable[[list[int]], str]  # token ids -> text, as the texts of responses are made
    members: Members | None  # the reward models as they were loaded; None without any
    readers: Sequence[nn.Module]  # the same as they are called (engines)
    implicit: Sequence[LogProbs] = ()  # the model of the implicit reward, then its reference
    answers: Answers | None = None  # of servers
    reference: ReferenceAnswers | None = None  # with which responses are compared
    of_groups: bool = False  # whether they are compared with the other samples of their group instead, where they have some
    together: bool = False  # whether ranks compute together (ZeRO-3 on several)


def reward_models(config: PaidConfig, loaded: Loaded) -> list[PaidSource]:
    """The reward models, as one source."""
    members = loaded.members
    if members is None:
        return []
    if members.judges_pairs:
        model = pair_model_of(members, model=loaded.readers[0], together=loaded.together)
        source = PairSource(model, loaded.reference, loaded.of_groups)
        return [PaidSource("reward_model", source, Segmenter(BANDIT_THRESHOLD), plain_reward(config))]
    ensemble: dict[str, Any] = {**config.combination(), "read_at": config.read_at}
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


def implicit_reward(config: PaidConfig, loaded: Loaded) -> list[PaidSource]:
    """The implicit reward of a language model."""
    if not config.implicit_reward:
        return []
    segmenter = segmenter_of_increments(config, loaded.tokenizer)
    model, reference, *_ = loaded.implicit
    source = ImplicitSource(model, reference, config.implicit_beta)
    return [PaidSource("implicit_reward", source, segmenter, plain_reward(config, config.reward_model))]


def functions(config: PaidConfig, loaded: Loaded) -> list[PaidSource]:
    """Each function as a source."""
    whole, dense = Segmenter(BANDIT_THRESHOLD), plain_reward(config, config.reward_model)
    return [
        PaidSource(name, FunctionSource.named(name, "reward_function", loaded.decode), whole, dense)
        for name in config.reward_function or []
    ]


def endpoint(config: PaidConfig, loaded: Loaded) -> list[PaidSource]:
    """The server, or several, as one source."""
    if not config.reward_url:
        return []
    client = new_client(token_in("reward_url_token_env", config.reward_url_token_env))
    patience = Patience(config.reward_url_timeout, config.reward_url_tries)
    post = functools.partial(post_json, client, patience=patience)
    render, asked = loaded.tokenizer.decode, config.reward_url
    source = EndpointSource(asked, post, config.reward_url_batch, loaded.answers, loaded.decode, render)
    return [PaidSource("reward_url", source, Segmenter(BANDIT_THRESHOLD), plain_reward(config, config.reward_model))]


def outcome(config: PaidConfig, loaded: Loaded) -> list[PaidSource]:
    """The outcome of a response, paid at its last token whatever the level."""
    if not config.outcome_function:
        return []
    source = FunctionSource.named(config.outcome_function, "outcome_function", loaded.decode)
    at_last = DenseReward("score_last", None, "sum")
    return [PaidSource("outcome_function", source, Segmenter(BANDIT_THRESHOLD), at_last, config.outcome_weight)]


# A builder for each kind of source; in the order of `PaidConfig.source_names`.
BUILDERS: Sequence[Callable[[PaidConfig, Loaded], list[PaidSource]]] = (reward_models, implicit_reward, functions, endpoint)

# How responses are cut: arguments of `choose_segmenter`, and the options that say them.
CUT = {"level": "reward_level", "threshold": "entropy_threshold", "segmenter": "segmenter"}

NOT_OF_COMPARISONS = (
    *CUT.values(),
    *(option.name for option in options_of(StepConfig)),
    *("read_at", "fit", "length_norm", "step_reward", "prefix_differences"),
)

# Options that only some sources know -> the options that ask for one of these.
KNOWN_BY = {
    **dict.fromkeys(CUT.values(), ("reward_model", "implicit_reward")),
    **dict.fromkeys(("read_at", "fit", "length_norm", "step_reward"), ("reward_model",)),
    **dict.fromkeys(("normalizer", "score_clip"), ("reward_model", "implicit_reward", "reward_function", "reward_url")),
}


def make_rewards(config: PaidConfig, loaded: Loaded, others: Sequence[PaidSource] = ()) -> Rewards:
    """The sources that the config names, with one weight each; and others, with weights of their own.

    Raises:
        UserError: settings do not go together, or a function cannot be had.
    """
    sources = [paid for build in BUILDERS for paid in build(config, loaded)]
    weights = config.reward_weights or [1.0] * len(sources)
    weighed = [paid._replace(weight=weight) for paid, weight in zip(sources, weights, strict=True)]
    penalties = Penalties(config.penalise_unfinished, config.penalise_longer_than, config.penalty)
    return Rewards([*weighed, *outcome(config, loaded), *others], penalties, loaded.answers)


def check_sources(config: PaidConfig, others: Sequence[PaidSource] = ()) -> None:
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
    for name in ("fit", "length_norm", "step_reward") if config.prefix_differences else ():
        value = getattr(config, name)
        require(not value, f"`{name}` {value} has no effect with `prefix_differences`", f"leave `{name}` out")


def check_comparisons(config: PaidConfig) -> bool:
    """Whether the reward model compares responses. UserError for what such a one has no use for."""
    paths = config.members()
    if not compares(paths, config):
        return False
    for option in NOT_OF_COMPARISONS:
        value = getattr(config, option)
        found = f"`{option}` {value} has no effect: {', '.join(paths)} compares whole responses"
        require(value in (None, False, 0), found, f"leave `{option}` out")
    return True


def check_run(config: PPOConfig, compares: bool) -> None:
    """UserError for options of a run that do not go with its reward model. compares: whether that compares responses."""
    found = f"`pair_opponent` {config.pair_opponent} has no effect: no `reward_model` compares responses"
    fix = "leave `pair_opponent` out, or give a model of denserl train-rm --input pair"
    require(compares or config.pair_opponent is None, found, fix)
    if config.critic_init == "reward_model":
        names, fix = ", ".join(config.members()), "leave `critic_init` out"
        require(names, "`critic_init` reward_model without `reward_model`", fix)
        found = f"`critic_init` reward_model with {names}, which compares responses, and says nothing of one alone"
        require(not compares, found, fix)
        steps = any(judges_steps(path, config) for path in config.members())
        found = f"`critic_init` reward_model with {names}, whose scores are logits, no values, maybe of another tokenizer"
        require(not steps, found, fix)
    if config.gold_reward_model:
        check_scores([config.gold_reward_model], config)


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


def segmenter_of_increments(config: PaidConfig, tokenizer: PreTrainedTokenizerBase) -> Segmenter:
    """How a source is cut that pays every token what it adds: token by token, unless options say otherwise."""
    check_level(config.reward_level, config.entropy_threshold)
    return new_segmenter(config.reward_level or "token", config.entropy_threshold, config.segmenter, tokenizer, config)
