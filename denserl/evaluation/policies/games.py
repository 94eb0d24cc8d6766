"""What judges are asked about answers, suite by suite: how often, in which orders, and what they are shown."""

from typing import Literal, NamedTuple

from denserl.data.responses import Messages
from denserl.evaluation.policies.answers import PolicyAnswer, Question
from denserl.evaluation.policies.outcomes import Game, Match
from denserl.judging.contract import Decoding
from denserl.judging.templates import Template
from denserl.judging.verdicts import alpacaeval_switched

Suite = Literal["alpacaeval", "arenahard", "mtbench", "prompts"]
Mode = Literal["single", "pair"]
Orders = Literal["suite", "both"]

LABELS = 5  # most likely first tokens of which AlpacaEval reads its two


class Way(NamedTuple):
    """How a suite is judged: its template, and how the judge's answer is sampled."""

    template: str
    decoding: Decoding


_TEXT = Decoding(2048)
_LOGPROB = Decoding(1, temperature=1.0, top_logprobs=LABELS)
_WAYS = {
    ("alpacaeval", "pair", "logprob"): Way("alpacaeval", _LOGPROB),
    ("alpacaeval", "pair", "text"): Way("pairwise-verdict", _TEXT),
    ("arenahard", "pair", "text"): Way("arenahard", Decoding(4096)),
    ("mtbench", "single", "text"): Way("mtbench-single", _TEXT),
    ("mtbench", "pair", "text"): Way("mtbench-pair", _TEXT),
    ("prompts", "pair", "text"): Way("pairwise", _TEXT),
    ("prompts", "pair", "logprob"): Way("pairwise-token", _LOGPROB),
}


def way_of(suite: Suite, mode: Mode, verdict: str) -> Way | None:
    """How a suite is judged; None where it is not judged so. verdict: text or logprob."""
    return _WAYS.get((suite, mode, verdict))


def games_of(suite: Suite, mode: Mode, orders: Orders, question: Question) -> tuple[Game, ...]:
    """The games that are played on a question.

    AlpacaEval plays one, Arena-Hard two with the baseline's answer shown first, MT-Bench two for each turn with the policy's
    shown first, or rates each turn's answer. `both` plays a second game where a suite plays one.
    """
    if mode == "single":
        return tuple(Game(turn) for turn in _turns(question))
    if suite == "alpacaeval":
        first = alpacaeval_switched(question.turns[0])
        return (Game(1, first), Game(1, not first)) if orders == "both" else (Game(1, first),)
    first = suite != "arenahard"
    return tuple(Game(turn, place) for turn in _turns(question) for place in (first, not first))


def shown(template: Template, match: Match, game: Game) -> Messages:
    """What the judge is sent.

    A rating is of the last answer, and what was said before it is its prompt; of a comparison, the answers are all that was
    said after the first question, each in its own conversation.
    """
    question, policy, baseline = match
    reference = _reference(question, game.turn) if template.takes_reference else None
    if baseline is None:
        before = policy.turns[: game.turn - 1]
        return template.messages(question.conversation(before), [policy.turns[game.turn - 1]], reference)
    answers = [policy, baseline] if game.policy_first else [baseline, policy]
    return template.messages(question.messages, [said_by(question, answer, game.turn) for answer in answers], reference)


def _turns(question: Question) -> range:
    return range(1, len(question.turns) + 1)


def said_by(question: Question, answer: PolicyAnswer, turn: int) -> str | Messages:
    """The answers up to a turn, with what the user says between them."""
    if turn == 1:
        return answer.turns[0]
    before = question.conversation(answer.turns[: turn - 1])[len(question.messages) :]
    return [*before, {"role": "assistant", "content": answer.turns[turn - 1]}]


def _reference(question: Question, turn: int) -> str | Messages | None:
    """The right answer, where one is given: to the first turn a text, later the conversation as it should go."""
    known = question.references[:turn]
    if len(known) < turn or not all(known):
        return None
    if turn == 1:
        return known[0]
    return [*question.conversation(known[:-1]), {"role": "assistant", "content": known[-1]}]
