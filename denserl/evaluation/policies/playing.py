"""The games of answers are played: judges are asked, or reward models score, and outcomes are made of what they say."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from denserl.evaluation.policies.credits import credits_of
from denserl.evaluation.policies.games import Mode, Orders, Suite, games_of, said_by, shown
from denserl.evaluation.policies.outcomes import Game, Match, Outcome, Played, State
from denserl.evaluation.policies.reading import Read, Rule, goes_on, is_certain, read, together
from denserl.judging.asking import Asker
from denserl.judging.comparing import about
from denserl.judging.contract import Comparison, Decoding, Judge, Reply, Request
from denserl.judging.templates import Template

SAME = 1e-9  # differences of probabilities below are of rounding


class Play(NamedTuple):
    """How games are played."""

    suite: Suite
    mode: Mode
    orders: Orders
    template: Template
    decoding: Decoding
    votes: int = 1
    rule: Rule = "original"  # by which it is told whether further votes are needed

    def is_equal(self, match: Match) -> bool:
        """Whether two answers are one text, in a suite that then asks nobody."""
        same = match.baseline is not None and match.policy.turns == match.baseline.turns
        return same and self.suite in ("alpacaeval", "prompts")

    def games(self, match: Match) -> tuple[Game, ...]:
        """What is asked about a match."""
        return games_of(self.suite, self.mode, self.orders, match.question)

    @property
    def voted(self) -> bool:
        """Whether what is read are verdicts, of which a majority is made."""
        return self.mode == "pair" and not self.template.one_token


class Heard(NamedTuple):
    """A game and what was said in it: of each vote the reply, or two where the judge was asked to go on."""

    match: int
    game: Game
    request: Request
    votes: list[tuple[Reply, ...]]


# Of a judge: requests -> a reply to each, or None in the place of those that are not to be had.
Fetch = Callable[[Asker, Sequence[Request]], Sequence[Reply | None]]


def ask_games(matches: Sequence[Match], play: Play, askers: Sequence[Asker]) -> list[Heard]:
    """Play all games but those of equal answers; a vote that can no longer change a verdict is not asked for.

    Raises:
        UserError: of `Asker.plan`, before anything is asked, and of `Asker.ask`.
    """
    games = [
        Heard(number, game, Request(shown(play.template, match, game), play.decoding), [])
        for number, match in enumerate(matches)
        if not play.is_equal(match)
        for game in play.games(match)
    ]
    _poll(games, play, askers, lambda asker, requests: asker.recall(requests, _whole))
    for judge, asker in enumerate(askers):
        asker.plan([game.request._replace(sample=vote) for game in games for vote in _open_votes(game, play, askers, judge)])
    _poll(games, play, askers, lambda asker, requests: asker.ask(requests, about=about(play.template)))
    return games


def outcomes_of(matches: Sequence[Match], play: Play, heard: Sequence[Heard], rule: Rule) -> list[Outcome]:
    """What the games come to, read by a rule."""
    games: list[list[Played]] = [[] for _ in matches]
    for entry in heard:
        games[entry.match].append(_played(entry, play, rule, matches[entry.match].baseline is not None))
    for number, match in enumerate(matches):
        if play.is_equal(match):
            games[number] = [Played(play.games(match)[0], [], "", "", 0.5, "equal")]
    strict = rule == "strict"
    return [
        Outcome(match, tuple(played), credits_of(play.suite, play.mode, played, strict))
        for match, played in zip(matches, games, strict=True)
    ]


def outcomes_of_scores(matches: Sequence[Match], judge: Judge) -> list[Outcome]:
    """What a reward model says: of each turn one comparison, the policy's answer first. It has no place to prefer."""
    turns = [(number, turn) for number, match in enumerate(matches) for turn in range(1, len(match.question.turns) + 1)]
    judgements = judge.compare([_comparison(matches[number], turn) for number, turn in turns])
    games: list[list[Played]] = [[] for _ in matches]
    for (number, turn), judgement in zip(turns, judgements, strict=True):
        state: State = "invalid" if judgement.score is None else "valid"
        games[number].append(Played(Game(turn, True), [], "", "reward model", judgement.score, state))
    return [
        Outcome(match, tuple(played), tuple(game.worth for game in played if game.worth is not None))
        for match, played in zip(matches, games, strict=True)
    ]


def _is_same(first: Played, second: Played) -> bool:
    """Up to the rounding of probabilities."""
    if first.worth is None or second.worth is None:
        return first.worth is second.worth
    return abs(first.worth - second.worth) < SAME and first.battles == second.battles


def _comparison(match: Match, turn: int) -> Comparison:
    question, policy, baseline = match
    assert baseline is not None
    return Comparison(question.messages, said_by(question, policy, turn), said_by(question, baseline, turn))


def differing(first: Sequence[Outcome], second: Sequence[Outcome]) -> int:
    """In how many games two readings of the same words differ."""
    pairs = (zip(a.games, b.games, strict=True) for a, b in zip(first, second, strict=True))
    return sum(not _is_same(a, b) for games in pairs for a, b in games)


def _poll(games: Sequence[Heard], play: Play, askers: Sequence[Asker], fetch: Fetch) -> None:
    """Add votes to the games, of each judge in turn, until they are certain or the next one is not to be had."""
    for number in range(play.votes * len(askers)):
        due = [game for game in games if number in _open_votes(game, play, askers)[:1]]
        asker = askers[number % len(askers)]
        for game, said in zip(due, _replies(due, play, asker, number // len(askers), fetch), strict=True):
            game.votes.extend([said] if said else [])


def _replies(games: Sequence[Heard], play: Play, asker: Asker, sample: int, fetch: Fetch) -> list[tuple[Reply, ...] | None]:
    """What a judge says in each game, with what it adds where it is to go on."""
    requests = [game.request._replace(sample=sample) for game in games]
    found: list[tuple[Reply, ...] | None] = [
        None if reply is None else (reply,) for reply in (fetch(asker, requests) if requests else [])
    ]
    unfinished = [number for number, said in enumerate(found) if said and goes_on(play.suite, play.template, said[0].text)]
    again = [_once_more(play, requests[number], said[0]) for number in unfinished if (said := found[number])]
    for number, reply in zip(unfinished, fetch(asker, again) if again else [], strict=True):
        found[number] = (*(found[number] or ()), reply) if reply else None
    return found


def _once_more(play: Play, request: Request, reply: Reply) -> Request:
    """What a judge is asked after a reply without a verdict."""
    return request._replace(messages=play.template.once_more(request.messages, reply.text))


def _open_votes(game: Heard, play: Play, askers: Sequence[Asker], judge: int | None = None) -> list[int]:
    """Numbers of the votes that are still to be had, of all judges in turn; of one judge, of its own."""
    most = play.votes * len(askers)
    left = range(len(game.votes), most)
    if play.voted and is_certain([_read(said, play, play.rule) for said in game.votes], len(left)):
        return []
    return [*left] if judge is None else [vote // len(askers) for vote in left if vote % len(askers) == judge]


def _whole(reply: Reply) -> Reply:
    return reply


def _read(said: Sequence[Reply], play: Play, rule: Rule) -> Read:
    return read(play.suite, play.mode, rule, play.template, said)


def _played(entry: Heard, play: Play, rule: Rule, compared: bool) -> Played:
    found = together([_read(said, play, rule) for said in entry.votes], play.voted)
    worth = found.says
    if compared and worth is not None and not entry.game.policy_first:
        worth = 1 - worth
    text = "\n\n".join("\n".join(reply.text for reply in said) for said in entry.votes)
    return Played(entry.game, entry.request.messages, text, found.mark, worth, found.state, found.battles, found.one_sided)
