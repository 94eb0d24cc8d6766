"""How a judge's answer is read: by one strict rule for all templates, and as the published suites' own programs read theirs.

The suites: AlpacaEval 2 (github.com/tatsu-lab/alpaca_eval), Arena-Hard (github.com/lmarena/arena-hard-auto), whose two
pipelines read differently, and MT-Bench (github.com/lm-sys/FastChat). The strict rule is ours. What verdicts come to is counted
elsewhere.
"""

import functools
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from scipy.special import expit, logsumexp

from denserl.judging.contract import Verdict
from denserl.judging.templates import Mark

FirstTokens = Sequence[tuple[str, float]]  # the most likely first tokens and their log-probabilities

# Arena-Hard's marks, of the answer shown first, A; then what its newer pipeline takes for them.
ARENAHARD: dict[str, Mark] = {
    "A>>B": "first by far",
    "A>B": "first",
    "A=B": "tie",
    "B>A": "second",
    "B>>A": "second by far",
}
ARENAHARD_NEWER = ARENAHARD | {
    "B<<A": ARENAHARD["A>>B"],
    "B<A": ARENAHARD["A>B"],
    "B=A": ARENAHARD["A=B"],
    "A<B": ARENAHARD["B>A"],
    "A<<B": ARENAHARD["B>>A"],
}
_ARENAHARD = re.compile(r"\[\[([AB<>=]+)\]\]")
_ARENAHARD_SINGLE = re.compile(r"\[([AB<>=]+)\]")
_MTBENCH = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_MTBENCH_SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
# What may stand behind the number that ends a text; that number, no end of a range and no part of another one; and what it may
# be out of.
_END = r"(?P<end>[\s.!)\]}*_`\"'”’]*)\Z"
_LAST_NUMBER = re.compile(rf"(?<![\w.,/–-])(?<![–-] )(?<!\bto )(?P<number>\d{{1,9}}){_END}", re.IGNORECASE)
_OUT_OF = re.compile(rf"(?:/|\bout of)\s*(?P<most>\d{{1,9}}){_END}", re.IGNORECASE)


class Weighted(NamedTuple):
    """AlpacaEval's verdict.

    preference: from 1, the output shown first is better, to 2, the other one is. None where neither token was among the likely.
    one_sided: one of the tokens was not among them, and counts as of probability 0.
    """

    preference: float | None
    one_sided: bool


def strict(text: str, cut: bool, marks: Mapping[str, Mark]) -> Verdict:
    """The last mark in the text, thoughts left out, is the verdict. A text without one is invalid, or cut.

    marks: the template's; ties are read only where it has a mark for them.
    """
    mark = last_mark(text, marks)
    if mark is None:
        return "cut" if cut else "invalid"
    return cast(Verdict, mark.split()[0])


def last_mark(text: str, marks: Mapping[str, Mark]) -> Mark | None:
    """What the last mark in the text says, thoughts left out; None where there is none.

    A mark that is a bare letter or word, as those of one token are, must be all that the text says.
    """
    said = without_thoughts(text)
    alone = said.strip(" \t\r\n.\"'`*")
    if alone in marks:
        return marks[alone]
    found = [match[0] for match in _finder(tuple(marks)).finditer(said)]
    return marks[found[-1]] if found else None


def strict_rating(text: str, cut: bool, scale: tuple[int, int]) -> int | None:
    """The whole number that ends the text, also as 8/10 or 8 out of 10, thoughts left out.

    None where none does, or where it is not on the scale, from lowest to highest. In a text that is cut it may be half of a
    number or of a sentence, and counts only in brackets.
    """
    said = without_thoughts(text)
    if out_of := _OUT_OF.search(said):
        if int(out_of["most"]) != scale[1]:
            return None
        said = said[: out_of.start()] + out_of["end"]
    found = _LAST_NUMBER.search(said)
    if found is None or (cut and "]" not in found["end"]):
        return None
    return number if scale[0] <= (number := int(found["number"])) <= scale[1] else None


def without_thoughts(text: str) -> str:
    """The text without what stands between <think> and </think>.

    Thoughts that the chat template has opened have no <think>, and those that were cut no end.
    """
    *closed, said = text.split("</think>")
    kept: list[str] = []
    for part in closed:
        before, opened, _ = part.partition("<think>")
        kept.append(before) if opened else kept.clear()
    said = "".join(kept) + said
    return "" if said.lstrip().startswith("<think>") else said


def chance(first: FirstTokens, marks: Mapping[str, Mark]) -> float | None:
    """Probability that the first answer is better, of it or the other one: by the tokens that are a mark but for blanks.

    None where one of the two is not among the tokens: what it lacks is not known to be nothing.
    """
    tokens = [(token.strip(), logprob) for token, logprob in first]
    one, other = _of("first", tokens, marks), _of("second", tokens, marks)
    return None if one is None or other is None else float(expit(one - other))


def weighted(first: FirstTokens, marks: Mapping[str, Mark]) -> Weighted:
    """AlpacaEval's verdict: preference 2 - p, p the probability of the token of the output shown first, of both tokens.

    The tokens are the marks exactly, without blanks.
    """
    one, other = _of("first", first, marks), _of("second", first, marks)
    if one is None or other is None:
        return Weighted(None if one == other else 1.0 if other is None else 2.0, one != other)
    return Weighted(2 - float(expit(one - other)), False)


def alpacaeval_switched(instruction: str) -> bool:
    """Whether AlpacaEval shows the policy's output first, and the baseline's second; preference is then 3 - that of the judge.

    A fair coin that the instruction draws, with the version 2 of Python's seeding by texts.
    """
    return random.Random(f"is_switched_outputs{instruction}0").random() >= 0.5


def arenahard_v01(text: str) -> tuple[str | None, bool]:
    """Arena-Hard's mark by the pipeline of 2024, and whether the judge is to be asked to go on, which is done once.

    It is the only mark in the text, though it may stand there often. None with two distinct ones, or one that says nothing.

    text: of both answers, joined by a line break, where the judge has gone on.
    """
    found = set(_ARENAHARD.findall(text))
    mark = next(iter(found)) if len(found) == 1 else None
    return mark if mark in ARENAHARD else None, not found


def arenahard_newer(text: str) -> str | None:
    """Arena-Hard's mark by the pipeline of 2025: the last one in double brackets, else the last in single ones, in capitals.

    None where there is none, or where it is none of ARENAHARD_NEWER, which ends the original.
    """
    found = _ARENAHARD.findall(text.upper()) or _ARENAHARD_SINGLE.findall(text.upper())
    return found[-1] if found and found[-1] in ARENAHARD_NEWER else None


def mtbench_rating(text: str) -> float | None:
    """MT-Bench's rating: the first number in double brackets, else the first in single ones; None where there is none."""
    found = _MTBENCH.search(text) or _MTBENCH_SINGLE.search(text)
    return float(found[1]) if found else None


def mtbench_verdict(text: str) -> Verdict:
    """MT-Bench's comparison: A where its mark stands anywhere, else B, else a tie where C's does."""
    marks: dict[str, Verdict] = {"[[A]]": "first", "[[B]]": "second", "[[C]]": "tie"}
    return next((verdict for mark, verdict in marks.items() if mark in text), "invalid")


@functools.lru_cache(maxsize=64)
def _finder(marks: tuple[str, ...]) -> re.Pattern:
    """Finds marks that are no bare words, the longest at each place; one that is part of a longer word is none."""
    known = sorted((mark for mark in marks if not mark.isalnum()), key=len, reverse=True)
    return re.compile("|".join(map(_whole_mark, known)) or r"(?!)")


def _whole_mark(mark: str) -> str:
    """Finds a mark, where it begins or ends with a letter no part of a longer word."""
    before, behind = (
        edge if re.match(r"\w", letter) else "" for letter, edge in ((mark[0], r"(?<!\w)"), (mark[-1], r"(?!\w)"))
    )
    return before + re.escape(mark) + behind


def _of(side: str, first: FirstTokens, marks: Mapping[str, Mark]) -> float | None:
    """Log-probability of the tokens that say first, or second; None where none of them is there."""
    found = [logprob for token, logprob in first if marks.get(token) == side and logprob > -math.inf]
    return float(logsumexp(found)) if found else None
