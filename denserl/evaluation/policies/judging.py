"""Policies judged as the options say: what is read, who is asked, and what is said of the answers."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from denserl.errors import require
from denserl.evaluation.policies.answers import Gaps, Question
from denserl.evaluation.policies.files import read_answers, read_questions
from denserl.evaluation.policies.games import way_of
from denserl.evaluation.policies.joining import check_names, joined, with_references
from denserl.evaluation.policies.judge_config import PolicyJudgingConfig
from denserl.evaluation.policies.judgements import Names
from denserl.evaluation.policies.origins import rewards_of_policy
from denserl.evaluation.policies.outcomes import Judged, Match, Outcome
from denserl.evaluation.policies.playing import Play, ask_games, differing, outcomes_of, outcomes_of_scores
from denserl.evaluation.policies.reading import Rule
from denserl.evaluation.policies.recorded import read_recorded, recorded_outcomes
from denserl.judging.build import decoding_of, opened_askers
from denserl.judging.comparing import describe
from denserl.judging.contract import Reply
from denserl.judging.models import load_model_judge
from denserl.judging.templates import Template, find_template

log = logging.getLogger(__name__)
OTHER_RULE: dict[Rule, Rule] = {"original": "strict", "strict": "original"}


class Given(NamedTuple):
    """What is judged: the answers of each policy with their questions and the baseline's answers."""

    questions: list[Question]
    baseline: str  # its name; empty where there is none
    policies: list[tuple[str, list[Match], Gaps]]


class Said(NamedTuple):
    """What was said of the policies' answers, by whom, and how that came about.

    other: the same words read by the other rule, and in how many games that gives something else; None where nothing is read.
    """

    policies: list[Judged]
    names: Names
    about: dict[str, Any]
    other: tuple[Rule, list[Judged], int] | None = None


def read_given(options: PolicyJudgingConfig) -> Given:
    """Questions and answers, joined.

    Raises:
        UserError: of the readers and of `joining`.
    """
    suite, allow = options.suite, options.allow_missing
    source = options.questions or options.baseline
    assert source is not None  # of the options
    references = read_answers(suite, options.references) if options.references else None
    questions = with_references(read_questions(suite, source), references)
    baseline = read_answers(suite, options.baseline) if options.baseline else None
    policies = [read_answers(suite, path) for path in options.answers]
    check_names(policies, baseline)
    entries = [(policy.name, *joined(questions, policy, baseline, allow)) for policy in policies]
    return Given(questions, baseline.name if baseline else "", entries)


def said_by_judges(options: PolicyJudgingConfig, given: Given, device: torch.device, dtype: str) -> Said:
    """What language models say, asked in words. device, dtype: of those of this machine.

    Raises:
        UserError: of `build_askers` and `ask_games`; the template does not go with the options.
    """
    play = _play(options)
    if options.suite == "mtbench":
        _check_references(play.template, given.questions)
    matches = [match for _, own, _ in given.policies for match in own]
    with opened_askers(options, options.output_dir, device, dtype, options.template()) as askers:
        heard = ask_games(matches, play, askers)
    if play.template.one_token:
        _check_logprobs([reply for game in heard for said in game.votes for reply in said])
    rules: tuple[Rule, Rule] = (options.parse, OTHER_RULE[options.parse])
    found, other = (outcomes_of(matches, play, heard, rule) for rule in rules)
    names = Names(" + ".join(asker.backend.name for asker in askers), play.template.name, given.baseline)
    about = describe(play.template, askers, play.decoding, play.votes) | {"orders": play.orders}
    own = options.suite == "arenahard" and options.parse == "original"
    newer = outcomes_of(matches, play, heard, "newer") if own else []
    return Said(_split(given, found, newer), names, about, (rules[1], _split(given, other), differing(found, other)))


def said_by_files(options: PolicyJudgingConfig, given: Given) -> Said:
    """What recorded judgements say. UserError of `recorded`."""
    rows = read_recorded(options.suite, options.judged_mode, options.annotations or [])

    def judged(name: str, matches: list[Match], gaps: Gaps) -> Judged:
        own = recorded_outcomes(options.suite, options.judged_mode, rows, name, given.baseline, matches)
        return Judged(name, own, gaps)

    names = Names(rows[0].judge, rows[0].template, given.baseline)
    return Said([judged(*entry) for entry in given.policies], names, {"judges": [{"judge": names.judge}], "recorded": True})


def said_by_reward_models(options: PolicyJudgingConfig, given: Given, device: torch.device, dtype: str) -> Said:
    """What reward models say. UserError of `load_model_judge` and of its judge."""
    paths = options.judge_reward_model or []
    trained = {path: own for path in options.answers if (own := rewards_of_policy(path, paths))}
    for path, own in trained.items():
        log.warning("%s: the policy was trained with %s, and pleases it more than others", path, ", ".join(own))
    how: dict[str, Any] = {"sft_model": options.sft_model, "aggregate": options.aggregate, "template": options.template()}
    judge = load_model_judge(paths, options, device, dtype, options.hard, read=options, **how)
    matches = [match for _, own, _ in given.policies for match in own]
    found = outcomes_of_scores(matches, judge)
    return Said(_split(given, found), Names(" + ".join(paths), "", given.baseline), judge.describe() | {"trained": trained})


def _play(options: PolicyJudgingConfig) -> Play:
    """How games are played, by the options where they say it, else by the suite."""
    way = way_of(options.suite, options.judged_mode, options.judge_verdict or "text")
    assert way is not None  # of the options
    template = find_template(options.judge_template or way.template, "rate" if options.judged_mode == "single" else "compare")
    logprob = options.judge_verdict == "logprob"
    asks = "one token" if template.one_token else "a text"
    found = f"`judge_verdict` is {options.judge_verdict}, and the template {template.name} asks for {asks}"
    require(template.one_token == logprob, found, "give the `judge_verdict`, or the `judge_template`, that goes with the other")
    if options.suite in ("arenahard", "mtbench") and options.judged_mode == "pair" and options.parse == "original":
        _check_marks(template, find_template(way.template), options.suite)
    decoding = way.decoding if logprob else decoding_of(options, way.decoding)
    votes = options.judge_votes
    return Play(options.suite, options.judged_mode, options.judge_orders, template, decoding, votes, options.parse)


def _check_marks(template: Template, own: Template, suite: str) -> None:
    """The programs of these suites read their own marks alone, whatever a template asks for."""
    others = [mark for mark, means in template.marks.items() if own.marks.get(mark) != means]
    found = f"the template {template.name} asks for {', '.join(others)}, which {suite}'s own program does not read as that"
    require(not others, found, f"give `parse` strict, or a template with marks of {', '.join(own.marks)}")


def _check_references(template: Template, questions: Sequence[Question]) -> None:
    known = sum(any(question.references) for question in questions)
    found = f"{known} questions have reference answers, for which the template {template.name} has no place"
    fix = "put a paragraph with {reference} into it (docs/judging.md)"
    require(template.takes_reference or not known, found, fix)


def _check_logprobs(replies: Sequence[Reply]) -> None:
    silent = sum(not reply.first for reply in replies)
    fix = "give `judge_verdict` text: on alpacaeval that is an unweighted win rate"
    require(not silent, f"{silent} of {len(replies)} answers of the judge came without log-probabilities", fix)


def _split(given: Given, outcomes: Sequence[Outcome], newer: Sequence[Outcome] = ()) -> list[Judged]:
    """The outcomes of all matches, policy by policy."""
    found, place = [], 0
    for name, matches, gaps in given.policies:
        own = slice(place, place + len(matches))
        found.append(Judged(name, outcomes[own], gaps, newer[own]))
        place += len(matches)
    return found
