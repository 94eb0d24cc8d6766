"""What the games of a match are worth together, as each suite counts them. Pure functions."""

from collections.abc import Sequence

from denserl.evaluation.policies.games import Mode, Suite
from denserl.evaluation.policies.outcomes import Played
from denserl.judging.comparing import SCORES, score_of_orders


def credits_of(suite: Suite, mode: Mode, games: Sequence[Played], strict: bool = False) -> tuple[float, ...]:
    """The numbers that count as one each; see `outcomes.Outcome`.

    A rating is one of its turn. Battles are counted game by game, three for an answer that is better by far. Other games of a
    turn are settled together: probabilities by their mean, verdicts by `settled`.

    strict: of two games of MT-Bench one without a verdict leaves the other; the original drops both.
    """
    if mode == "single":
        return tuple(played.worth for played in games if played.worth is not None)
    if suite == "arenahard":
        return tuple(credit for played in games if played.worth is not None for credit in [played.worth] * played.battles)
    turns = {played.game.turn: [other for other in games if other.game.turn == played.game.turn] for played in games}
    both = suite == "mtbench" and not strict
    found = (settled([played.worth for played in of_turn], both) for of_turn in turns.values())
    return tuple(worth for worth in found if worth is not None)


def arena_marks(games: Sequence[Played]) -> list[str | None]:
    """Arena-Hard's marks of both games, the baseline's answer being A in the first of them; None: no verdict."""
    return [_arena_mark(played) for played in sorted(games, key=lambda played: played.game.policy_first)]


def settled(worths: Sequence[float | None], both: bool = False) -> float | None:
    """What games with the places exchanged are worth: an answer is better that is preferred in each, else they are even.

    Probabilities have their mean. both: a game without a verdict spoils the other one, which else decides alone.
    """
    if both and None in worths:
        return None
    return score_of_orders(worths, are_chances=not {*worths} <= {None, *SCORES.values()})


def _arena_mark(played: Played) -> str | None:
    if played.worth is None or played.worth == 0.5:
        return None if played.worth is None else "A=B"
    by = ">>" if played.battles > 1 else ">"
    return f"A{by}B" if (played.worth > 0.5) == played.game.policy_first else f"B{by}A"
