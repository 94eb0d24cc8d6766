"""What a judge's verdicts say of the judge: how often it holds to them, what places do, what could not be read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from denserl.judging.contract import Judgement, Verdict

VALID: tuple[Verdict, ...] = ("first", "second", "tie")
SHOWN_FIRST = ("first", "second")  # the answer that stands first, in either order


def tally(judgements: Sequence[Judgement]) -> dict:
    """Counts and shares of the verdicts of comparisons; a share of nothing is None.

    Returns:
        comparisons, undecided: how many, and of them without a valid verdict.
        verdicts, invalid, cut, ties: texts that were read, and what they are.
        position_consistency: of comparisons with valid verdicts in both orders, the share in which both prefer the same
            answer, or none.
        first_share: of comparisons with a verdict, the share that is decided for the answer shown first; a half where both
            orders decide. 0.5 is what a judge has that does not look at the place, or that is asked in both orders.
        first_share_of_verdicts: of verdicts that prefer an answer, the share that prefers the one shown first.
        agreement: of pairs of the first two valid votes in one order, the share that says the same. Of later votes, which are
            asked where these differ, nothing could be told without bias.
    """
    votes = [verdict for judgement in judgements for order in judgement.verdicts for verdict in order]
    found = Counter(votes)
    both = [majorities for majorities in map(_majorities, judgements) if len(majorities) == 2 and None not in majorities]
    placed = [verdict == first for first, verdict in _placed(judgements) if verdict in SHOWN_FIRST]
    first_two = [valid[:2] for valid in _valid_orders(judgements) if len(valid) > 1]
    return {
        "comparisons": len(judgements),
        "undecided": sum(judgement.score is None for judgement in judgements),
        "verdicts": len(votes),
        "invalid": found["invalid"],
        "cut": found["cut"],
        "ties": found["tie"],
        "position_consistency": _mean([first == second for first, second in both]),
        "first_share": _mean([share for share in map(_place, judgements) if share is not None]),
        "first_share_of_verdicts": _mean(placed),
        "agreement": _mean([one == other for one, other in first_two]),
    }


def majority(votes: Sequence[Verdict]) -> Verdict | None:
    """The commonest valid vote; a tie where several are, None where there is none."""
    found = Counter(vote for vote in votes if vote in VALID).most_common(2)
    if not found:
        return None
    return "tie" if len(found) > 1 and found[0][1] == found[1][1] else found[0][0]


def _majorities(judgement: Judgement) -> list[Verdict | None]:
    """Of each order in which it was asked."""
    return [majority(order) for order in judgement.verdicts if order]


def _placed(judgements: Iterable[Judgement]) -> Iterator[tuple[str, Verdict]]:
    """Each verdict after the answer that stood first where it was given."""
    for judgement in judgements:
        for first, order in zip(SHOWN_FIRST, judgement.verdicts):
            yield from ((first, verdict) for verdict in order)


def _valid_orders(judgements: Iterable[Judgement]) -> Iterator[list[Verdict]]:
    """The valid votes of each order of each comparison."""
    for judgement in judgements:
        for order in judgement.verdicts:
            yield [verdict for verdict in order if verdict in VALID]


def _place(judgement: Judgement) -> float | None:
    """How much of the judgement is for what stood first; None without a valid verdict."""
    valid = [(first, found) for first, order in zip(SHOWN_FIRST, judgement.verdicts) if (found := majority(order))]
    if len(valid) != 1:
        return 0.5 if valid else None
    [(first, found)] = valid
    return 0.5 if found == "tie" else float(found == first)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
