"""The scorer that options of a suite name: reward models, a word, or a judge."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from denserl.errors import require
from denserl.evaluation.baselines import BASELINES, BaselineScorer
from denserl.evaluation.judge_scorer import ComparingJudge, JudgeScorer, RatingJudge
from denserl.evaluation.pair_scorer import load_answer_scorer
from denserl.evaluation.policies.judgements import file_name
from denserl.evaluation.step_errors import StepSuite
from denserl.judging.asking import Asker
from denserl.judging.build import build_judge, build_rater, opened_askers
from denserl.judging.config import is_url
from denserl.judging.templates import Template, find_template

if TYPE_CHECKING:
    from denserl.evaluation.config import JudgedConfig
    from denserl.evaluation.suites.registry import AnySuite

# Templates by what is to be read.
RATES, TOKEN, TEXT = "rating", "pairwise-token", "pairwise"


@contextlib.contextmanager
def opened_scorer(config: "JudgedConfig", suite: "AnySuite", device: torch.device, dtype: str) -> Iterator[Any]:
    """What scores the answers of the suite; the store of a judge is open while the context lasts.

    Raises:
        UserError: it cannot be made, or says nothing of what the suite judges.
    """
    if not config.judge:
        yield make_scorer(config, device, dtype)
        return
    template = judge_template(config, suite)
    with opened_askers(config, config.output_dir, device, dtype, config.template()) as askers:
        yield make_judge(config, template, askers)


def make_scorer(config: "JudgedConfig", device: torch.device, dtype: str) -> Any:
    """The scorer that the words or folders of `scorer` name."""
    scorers = config.scorer or []
    named = [word for word in scorers if word in BASELINES]
    if not named:
        how: dict[str, Any] = {"sft_model": config.sft_model, "aggregate": config.aggregate, "template": config.template()}
        how |= {"rank": config.rank, "seed": config.seed}
        return load_answer_scorer(scorers, config, device, dtype, read=config, **how)
    require(len(scorers) == 1, f"`scorer` has {named[0]} beside others", "give it alone, or reward models alone")
    return BaselineScorer(named[0], config.seed)


def judge_template(config: "JudgedConfig", suite: "AnySuite") -> Template:
    """What a judge is shown. UserError where it, or any judge, has no use for the suite, or for an option."""
    fix = "give a `scorer` that was trained on labels of steps"
    require(not isinstance(suite, StepSuite), "`judge` says how good answers are, and this suite judges their steps", fix)
    own = RATES if suite.rated else TOKEN if config.judge_verdict == "logprob" else TEXT
    template = find_template(config.judge_template or own, "rate" if suite.rated else None)
    found = f"`judge_orders` one has no effect: the template {template.name} rates answers one by one"
    require(template.kind == "compare" or config.judge_orders == "both", found, "leave `judge_orders` out")
    return template


def make_judge(config: "JudgedConfig", template: Template, askers: Sequence[Asker]) -> JudgeScorer:
    """A judge as a scorer; nothing is asked and no model loaded yet."""
    if template.kind == "rate":
        return RatingJudge(build_rater(config, template, askers))
    judge = build_judge(config, template, askers, config.judge_orders)
    return ComparingJudge(judge, calibrated=config.judge_verdict == "logprob")


def outputs_name(config: "JudgedConfig", summary: dict) -> str:
    """The name under which a scorer's outputs are kept: that of its folder, its hub name, or what a judge calls itself."""
    if config.judge:
        asked = zip(config.judge, summary["judge"]["judges"], strict=True)
        # What a server calls its model may be any text.
        return scorer_name([file_name(about["judge"]) if is_url(judge) else judge for judge, about in asked])
    return scorer_name(config.scorer or [])


def scorer_name(scorers: Sequence[str]) -> str:
    """Names of folders and hub names joined, in a form that no file of every run has."""
    names = [Path(path).resolve().name if Path(path).exists() else path for path in scorers]
    name = "+".join(names)
    return f"{name}-model" if name == "results" else name
