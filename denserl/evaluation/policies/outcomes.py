"""What judges said of the answers of policies: the record from which numbers, files and the page are made."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from denserl.data.responses import Messages
from denserl.evaluation.policies.answers import Gaps, PolicyAnswer, Question

# equal: the two answers are the same text, and nobody is asked. cut: no verdict, and the text ended at the limit of tokens.
State = Literal["valid", "invalid", "cut", "equal"]


class Match(NamedTuple):
    """An answer of a policy, and the answer that it is held against where there is one."""

    question: Question
    policy: PolicyAnswer
    baseline: PolicyAnswer | None = None


class Game(NamedTuple):
    """One thing that is asked about a match."""

    turn: int = 1  # the turn that is judged, with those before it in sight
    policy_first: bool = False  # whose answer is shown first; of one answer alone without meaning


class Played(NamedTuple):
    """A game, and what came of it.

    worth: of two answers the chance that the policy's is the better one, 0 to 1; of one its rating. None without a verdict.
    battles: equal ones of Arena-Hard, as which the game counts.
    """

    game: Game
    messages: Messages  # as they were asked; empty where nobody was
    text: str  # what the judge said, all of it
    mark: str  # the verdict in that, or empty
    worth: float | None
    state: State
    battles: int = 1
    one_sided: bool = False  # the probability of one of the two labels was not told


class Outcome(NamedTuple):
    """A match with all its games, and what these are worth: each number counts as one, as the suite has it.

    credits: AlpacaEval and prompts: one. Arena-Hard: its battles. MT-Bench: one for each turn. None without a verdict.
    """

    match: Match
    games: tuple[Played, ...]
    credits: tuple[float, ...]

    @property
    def worth(self) -> float | None:
        """Their mean."""
        return sum(self.credits) / len(self.credits) if self.credits else None


class Judged(NamedTuple):
    """A policy, what was said of its answers, and the questions that it has none to.

    newer: the outcomes as Arena-Hard's newer program reads them, where that is another way than theirs.
    """

    name: str
    outcomes: Sequence[Outcome]
    gaps: Gaps
    newer: Sequence[Outcome] = ()

    def games(self) -> Iterator[tuple[Match, Played]]:
        """All games, each with its match."""
        for outcome in self.outcomes:
            for played in outcome.games:
                yield outcome.match, played


def called(name: str, sample: int) -> str:
    """The name under which a sample of a policy stands in the originals' files."""
    return f"{name}-s{sample}" if sample else name
