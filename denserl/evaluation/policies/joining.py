"""Answers of policies joined with their questions and with the baseline's answers. Nothing goes missing unsaid."""

import logging
from collections import Counter
from collections.abc import Sequence

from denserl.errors import UserError, require
from denserl.evaluation.policies.answers import Answers, Gaps, Id, Question, gaps
from denserl.evaluation.policies.outcomes import Match

log = logging.getLogger(__name__)


def joined(
    questions: Sequence[Question], answers: Answers, baseline: Answers | None, allow_missing: bool = False
) -> tuple[list[Match], Gaps]:
    """Each answer with its question and the baseline's answer, in the order of the questions; and what the policy lacks.

    Questions to which the baseline has no answer are left out, which is said, and lost by nobody.
    A policy's sample stands against the baseline's of the same number, as far as this has as many; then from its first one on.

    Raises:
        UserError: questions without an answer, unless these are allowed; answers to other questions.
    """
    found = gaps(questions, answers)
    _check(found, answers.name, len(questions), allow_missing)
    against = gaps(questions, baseline) if baseline else Gaps([], [], [])
    if baseline:
        _check(against, f"`baseline` {baseline.name}", len(questions), allow_missing)
        if against.missing:
            log.warning("%d questions are left out: the baseline %s has no answer to them", len(against.missing), baseline.name)
    left_out = {*found.missing, *against.missing}
    matches = []
    for question in questions:
        if question.id not in left_out:
            others = baseline.by_question[question.id] if baseline else [None]
            for number, answer in enumerate(answers.by_question[question.id]):
                matches.append(Match(question, answer, others[number % len(others)]))
    require(matches, f"{answers.name}: no question has an answer", "give answers to these questions")
    return matches, found


def with_references(questions: Sequence[Question], references: Answers | None) -> list[Question]:
    """The questions with right answers from a file of these, which has the shape of a policy's answers."""
    if references is None:
        return list(questions)
    known = references.by_question
    unknown = known.keys() - {question.id for question in questions}
    require(not unknown, f"`references` holds answers to {len(unknown)} other questions", "give those of these questions")
    return [
        question._replace(references=known[question.id][0].turns) if question.id in known else question
        for question in questions
    ]


def equal_answers(matches: Sequence[Match]) -> list[dict]:
    """Texts that a policy gives to several questions, the commonest first: how many, and how they begin.

    One text for all questions is how judges are attacked (Zheng et al., arXiv 2410.07137).
    """
    asked: dict[tuple[str, ...], set[Id]] = {}
    for match in matches:
        if any(match.policy.turns):
            asked.setdefault(match.policy.turns, set()).add(match.question.id)
    counts = Counter({turns: len(ids) for turns, ids in asked.items() if len(ids) > 1})
    return [{"questions": count, "begins": turns[0][:80]} for turns, count in counts.most_common()]


def check_names(answers: Sequence[Answers], baseline: Answers | None) -> None:
    """UserError where two policies have one name, under which numbers and files stand."""
    counts = Counter(policy.name for policy in answers)
    twice = [name for name, count in counts.items() if count > 1]
    require(not twice, f"several files hold answers of {', '.join(map(repr, twice))}", "give each policy a name of its own")
    if baseline and baseline.name in counts:
        log.warning("the baseline %s is among the policies: against itself it is worth one half", baseline.name)


def _check(found: Gaps, who: str, count: int, allow_missing: bool) -> None:
    if found.unknown:
        what = f"{who} answers {len(found.unknown)} questions that are not asked, e.g. {_shown(found.unknown)}"
        raise UserError(what, "give all questions with `questions`, and answers and baseline of the same set")
    if found.missing and not allow_missing:
        what = f"{who} has no answer to {len(found.missing)} of {count} questions, e.g. {_shown(found.missing)}"
        raise UserError(what, "answer them, or give `allow_missing`: a second number then counts them as lost")


def _shown(ids: Sequence[Id]) -> str:
    return repr(str(ids[0])[:60])
