"""Language models as judges: votes in both orders are one judgement of two answers, or one rating of an answer.

How a single answer of a judge is read is in verdicts.py.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, overload

from denserl.data.responses import Messages
from denserl.judging.asking import Asker
from denserl.judging.contract import Comparison, Decoding, Judgement, Reply, Request, Verdict
from denserl.judging.tallies import VALID, majority
from denserl.judging.templates import Template
from denserl.judging.verdicts import chance, strict, strict_rating

# both: each pair is shown in both orders. one: in one, drawn by a hash of the question. given: as it is given.
Orders = Literal["both", "one", "given"]
TURNED: dict[Verdict, Verdict] = {"first": "second", "second": "first"}
SCORES: dict[Verdict, float] = {"first": 1.0, "second": 0.0, "tie": 0.5}
Item = TypeVar("Item")


class Vote(NamedTuple):
    """What one answer of a judge says of two that it was shown.

    chance: of the first one being better, as the judge's log-probabilities have it; None where only a verdict is read.
    """

    verdict: Verdict
    chance: float | None = None

    def turned(self) -> "Vote":
        """The same, where the second one was shown first."""
        return Vote(TURNED.get(self.verdict, self.verdict), None if self.chance is None else 1 - self.chance)


class Ballot:
    """The votes on one comparison in one order.

    number: of the comparison. is_turned: the second answer is shown first. most: votes that may be asked for.
    """

    def __init__(self, number: int, is_turned: bool, most: int):
        self.number, self.is_turned, self.most = number, is_turned, most
        self.votes: list[Vote] = []

    def wanted(self) -> int:
        """How many of the votes that are out must be asked for before the majority can be certain; 0: it is.

        A tie is certain also where another verdict may still become as common. Chances are all asked for.
        """
        out, counts = self.most - len(self.votes), Counter(vote.verdict for vote in self.votes)
        if any(vote.chance is not None for vote in self.votes):
            return out
        ways = []
        for verdict in VALID:
            lead = counts[verdict] - max(counts[other] for other in VALID if other != verdict)
            ways.append((out - lead + 1) // 2 if verdict == "tie" else (out - lead) // 2 + 1)
        return min(max(min(ways), 0), out)

    def add(self, vote: Vote) -> None:
        """The next vote, on the answers as they are shown."""
        self.votes.append(vote.turned() if self.is_turned else vote)


def score_of_votes(votes: Sequence[Vote]) -> float | None:
    """The score of a comparison by votes in one order: that of their majority, or the mean chance where chances are read.

    None where no vote is valid.
    """
    chances = [vote.chance for vote in votes if vote.chance is not None]
    verdict = majority([vote.verdict for vote in votes])
    return _mean(chances) if chances or verdict is None else SCORES[verdict]


def score_of_orders(scores: Sequence[float | None], are_chances: bool) -> float | None:
    """The score by both orders, or by the one that is valid: 1 or 0 where both say the same, else 0.5; of chances the mean."""
    valid = [score for score in scores if score is not None]
    if are_chances or len(set(valid)) < 2:
        return _mean(valid)
    return 0.5


def text_vote(template: Template) -> Callable[[Reply], Vote]:
    """Reads the verdict in an answer's text."""
    return lambda reply: Vote(strict(reply.text, reply.cut, template.marks))


def chance_vote(template: Template) -> Callable[[Reply], Vote]:
    """Reads the verdict in the log-probabilities of an answer's first token."""

    def vote(reply: Reply) -> Vote:
        likely = chance(reply.first, template.marks)
        if likely is None:
            return Vote("invalid")
        return Vote("first" if likely > 0.5 else "second" if likely < 0.5 else "tie", likely)

    return vote


def rating(template: Template) -> Callable[[Reply], int | None]:
    """Reads the number in an answer's text."""
    scale = template.scale
    assert scale is not None  # of a template that rates
    return lambda reply: strict_rating(reply.text, reply.cut, scale)


class TextJudge:
    """Language models that are shown two answers, and say which one is better.

    Several votes decide by their majority, and no more are asked for once it is certain: one of each judge in turn, then once
    more of each. Two orders decide as `score_of_orders` says. Equal answers are a tie, of which nobody is asked.

    Args:
        askers: the judges. votes: of each judge. decoding: of an answer.
        read: an answer -> what it says of the answers as they are shown.
    """

    def __init__(
        self,
        template: Template,
        askers: Sequence[Asker],
        decoding: Decoding,
        read: Callable[[Reply], Vote],
        orders: Orders = "both",
        votes: int = 1,
    ):
        self.template, self.askers, self.decoding, self.read = template, askers, decoding, read
        self.orders, self.votes = orders, votes

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """A judgement of each comparison, in their order. On several ranks all are given the same.

        Raises:
            UserError: as of `Asker.ask`; nothing is asked where more is missing than the limit allows.
        """
        most = self.votes * len(self.askers)
        ballots = [
            Ballot(number, is_turned, most)
            for number, each in enumerate(comparisons)
            if each.first != each.second
            for is_turned in self._orders(each)
        ]
        self._poll(ballots, comparisons, lambda asker, requests: asker.recall(requests, self.read))
        self._plan([ballot for ballot in ballots if ballot.wanted()], comparisons)
        self._poll(ballots, comparisons, lambda asker, requests: asker.ask(requests, self.read, about(self.template)))
        found: dict[int, dict[bool, list[Vote]]] = {}
        for ballot in ballots:
            found.setdefault(ballot.number, {})[ballot.is_turned] = ballot.votes
        return [judgement(found.get(number, {})) for number in range(len(comparisons))]

    def describe(self) -> dict[str, Any]:
        """How the judgements came about, and what they cost."""
        return {**describe(self.template, self.askers, self.decoding, self.votes), "orders": self.orders}

    def _orders(self, comparison: Comparison) -> list[bool]:
        return [False, True] if self.orders == "both" else [self.orders == "one" and is_turned(comparison)]

    def _plan(self, ballots: Sequence[Ballot], comparisons: Sequence[Comparison]) -> None:
        """Say what all votes that are out may cost."""

        def fetch(asker: Asker, requests: Sequence[Request]) -> list[Vote | None]:
            asker.plan(requests)
            return [None] * len(requests)

        out = [(ballot, number) for ballot in ballots for number in range(len(ballot.votes), ballot.most)]
        self._each_judge(out, comparisons, fetch)

    def _poll(self, ballots: Sequence[Ballot], comparisons: Sequence[Comparison], fetch: "Fetch") -> None:
        """Add votes to the ballots until their majorities are certain, or `fetch` does not have the next one."""
        waiting = list(ballots)
        while waiting:
            due = {ballot: len(ballot.votes) + ballot.wanted() for ballot in waiting}
            places = [(ballot, number) for ballot, count in due.items() for number in range(len(ballot.votes), count)]
            for (ballot, number), vote in zip(places, self._each_judge(places, comparisons, fetch), strict=True):
                if vote is not None and number == len(ballot.votes):
                    ballot.add(vote)
            waiting = [ballot for ballot, count in due.items() if len(ballot.votes) == count and ballot.wanted()]

    def _each_judge(
        self, places: Sequence[tuple[Ballot, int]], comparisons: Sequence[Comparison], fetch: "Fetch"
    ) -> list[Vote | None]:
        """What is fetched for each place, a ballot and the number of a vote, from the judge whose turn it is."""
        found: list[Vote | None] = [None] * len(places)
        for judge, asker in enumerate(self.askers):
            own = [number for number, (_, vote) in enumerate(places) if vote % len(self.askers) == judge]
            requests = Lazy([places[number] for number in own], lambda place: self._request(comparisons, *place))
            for number, vote in zip(own, fetch(asker, requests) if own else [], strict=True):
                found[number] = vote
        return found

    def _request(self, comparisons: Sequence[Comparison], ballot: Ballot, vote: int) -> Request:
        prompt, *answers = comparisons[ballot.number]
        messages = self.template.messages(prompt, answers[::-1] if ballot.is_turned else answers)
        return Request(messages, self.decoding, vote // len(self.askers))


Fetch = Callable[[Asker, Sequence[Request]], Sequence[Vote | None]]


class Rater:
    """Language models that are shown one answer, and say how good it is: a number on the scale of the template.

    Args:
        read: an answer -> the number, or None where there is none. The others: as of `TextJudge`.
    """

    def __init__(
        self,
        template: Template,
        askers: Sequence[Asker],
        decoding: Decoding,
        read: Callable[[Reply], float | None],
        votes: int = 1,
    ):
        self.template, self.askers, self.decoding, self.read, self.votes = template, askers, decoding, read, votes

    def rate(self, answers: Sequence[tuple[Messages, str]]) -> list[float | None]:
        """The mean of the valid ratings of each answer to a prompt, in their order; None where there is none.

        Raises:
            UserError: as of `TextJudge.compare`.
        """
        places = [(number, sample) for number in range(len(answers)) for sample in range(self.votes)]

        def request(place: tuple[int, int]) -> Request:
            prompt, text = answers[place[0]]
            return Request(self.template.messages(prompt, [text]), self.decoding, place[1])

        requests = Lazy(places, request)
        for asker in self.askers:
            asker.plan(requests)
        told = [asker.ask(requests, self.read, about(self.template)) for asker in self.askers]
        votes = zip(*(zip(*[iter(own)] * self.votes, strict=True) for own in told), strict=True)
        return [_mean([vote for own in each for vote in own if vote is not None]) for each in votes]

    def describe(self) -> dict[str, Any]:
        """How the ratings came about, and what they cost."""
        return describe(self.template, self.askers, self.decoding, self.votes)


def judgement(by_order: dict[bool, list[Vote]]) -> Judgement:
    """What votes say of a comparison: those in the order that is given, and those in the other. None at all: a tie."""
    if not by_order:
        return Judgement(0.5)
    orders = [by_order.get(is_turned, []) for is_turned in (False, True)]
    are_chances = any(vote.chance is not None for votes in orders for vote in votes)
    score = score_of_orders([score_of_votes(votes) for votes in orders], are_chances)
    return Judgement(score, tuple(tuple(vote.verdict for vote in votes) for votes in orders))


def is_turned(comparison: Comparison) -> bool:
    """Whether the second answer is shown first: a coin that the question throws, whichever answer is called the first."""
    prompt, first, second = (json.dumps(said, sort_keys=True) for said in comparison)
    drawn = hashlib.sha256("\n".join([prompt, *sorted((first, second))]).encode()).digest()[0] % 2
    return (first < second) == bool(drawn)


def about(template: Template) -> dict[str, str]:
    """What lines of a store say of a template."""
    return {"template": template.name, "template_hash": template.hash}


def describe(template: Template, askers: Sequence[Asker], decoding: Decoding, votes: int) -> dict[str, Any]:
    """How answers of judges came about, for a file of results."""
    return {
        "judges": [asker.describe() for asker in askers],
        **about(template),
        "decoding": decoding._asdict(),
        "votes": votes,
    }


class Lazy(Sequence[Item]):
    """Items that are made of others when they are looked at."""

    def __init__(self, sources: Sequence[Any], make: Callable[[Any], Item]):
        self.sources, self.make = sources, make

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, place: int) -> Item: ...

    @overload
    def __getitem__(self, place: slice) -> "Lazy[Item]": ...

    def __getitem__(self, place: int | slice) -> "Item | Lazy[Item]":
        return Lazy(self.sources[place], self.make) if isinstance(place, slice) else self.make(self.sources[place])


def _mean(numbers: Sequence[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None
