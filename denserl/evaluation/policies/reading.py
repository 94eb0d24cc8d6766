"""What a judge's words in a game say, by a suite's own rule or by the strict one. Pure functions of replies."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from denserl.evaluation.policies.games import Mode, Suite
from denserl.evaluation.policies.outcomes import State
from denserl.judging import verdicts
from denserl.judging.comparing import SCORES
from denserl.judging.contract import Reply, Verdict
from denserl.judging.templates import Template

# newer: as Arena-Hard's program of 2025 does, where `original` is that of 2024.
Rule = Literal["original", "newer", "strict"]
BY_FAR = 3  # equal battles of Arena-Hard that an answer is which is better by far


class Read(NamedTuple):
    """What was read in a game.

    says: of two answers the chance that the one shown first is better, of one its rating; None: nothing.
    """

    says: float | None
    mark: str
    state: State
    battles: int = 1
    one_sided: bool = False


def read(suite: Suite, mode: Mode, rule: Rule, template: Template, said: Sequence[Reply]) -> Read:
    """What the replies of a judge say, the second of which goes on where the first one ended without a verdict.

    Suites without a rule of their own, and a template's marks in the place of a suite's log-probabilities, are read strictly.
    The newer program asks nobody to go on.
    """
    said = said[:1] if rule == "newer" else said
    text, cut = "\n".join(reply.text for reply in said), said[-1].cut
    if template.one_token:
        return _of_tokens(rule if suite == "alpacaeval" else "strict", template, said[0])
    if mode == "single":
        rating = verdicts.mtbench_rating(text) if rule == "original" else verdicts.strict_rating(text, cut, _scale(template))
        return _nothing(cut) if rating is None else Read(float(rating), f"{rating:g}", "valid")
    if suite == "arenahard":
        return _arenahard(rule, template, text, cut)
    own = suite == "mtbench" and rule == "original"
    verdict = verdicts.mtbench_verdict(text) if own else verdicts.strict(text, cut, template.marks)
    return Read(SCORES[verdict], verdict, "valid") if verdict in SCORES else _nothing(cut)


def goes_on(suite: Suite, template: Template, text: str) -> bool:
    """Whether a judge is asked a second time, to end with a verdict: Arena-Hard asks where there is no mark at all."""
    return suite == "arenahard" and template.again is not None and verdicts.arenahard_v01(text)[1]


def together(found: Sequence[Read], voted: bool) -> Read:
    """What several votes say: of verdicts the majority, of probabilities and ratings the mean.

    voted: they are verdicts. It is by far better where more than half of the votes for it say so.
    """
    valid = [vote for vote in found if vote.says is not None]
    if len(found) == 1 or not valid:
        return found[0]
    says = [vote.says for vote in valid if vote.says is not None]
    mark, one_sided = " / ".join(vote.mark or vote.state for vote in found), any(vote.one_sided for vote in valid)
    if not voted:
        return Read(sum(says) / len(says), mark, "valid", one_sided=one_sided)
    lead = sum((value > 0.5) - (value < 0.5) for value in says)
    winner = 0.5 + 0.5 * ((lead > 0) - (lead < 0))
    far = [vote.battles == BY_FAR for vote in valid if vote.says == winner]
    return Read(winner, mark, "valid", BY_FAR if lead and 2 * sum(far) > len(far) else 1)


def is_certain(found: Sequence[Read], left: int) -> bool:
    """Whether `left` further votes cannot change which verdict has the majority."""
    lead = sum((vote.says > 0.5) - (vote.says < 0.5) for vote in found if vote.says is not None)
    return abs(lead) > left


def _of_tokens(rule: Rule, template: Template, reply: Reply) -> Read:
    """Of the log-probabilities of the first token."""
    if rule == "strict":
        chance = verdicts.chance(reply.first, template.marks)
        return Read(chance, f"{chance:.3f} first", "valid") if chance is not None else Read(None, "", "invalid")
    preference, one_sided = verdicts.weighted(reply.first, template.marks)
    if preference is None:
        return Read(None, "", "invalid")
    return Read(2 - preference, f"{2 - preference:.3f} first", "valid", one_sided=one_sided)


def _arenahard(rule: Rule, template: Template, text: str, cut: bool) -> Read:
    if rule == "original":
        mark = verdicts.arenahard_v01(text)[0]
        meant = verdicts.ARENAHARD[mark] if mark else None
    elif rule == "newer":
        mark = verdicts.arenahard_newer(text)
        meant = verdicts.ARENAHARD_NEWER[mark] if mark else None
    else:
        meant = verdicts.last_mark(text, template.marks)
        mark = next((mark.strip("[]") for mark, means in template.marks.items() if means == meant), None)
    if mark is None or meant is None:
        return _nothing(cut)
    side: Verdict = "first" if meant.startswith("first") else "second" if meant.startswith("second") else "tie"
    return Read(SCORES[side], mark, "valid", BY_FAR if meant.endswith("by far") else 1)


def _nothing(cut: bool) -> Read:
    return Read(None, "", "cut" if cut else "invalid")


def _scale(template: Template) -> tuple[int, int]:
    assert template.scale is not None  # of a template that rates
    return template.scale
