"""Where a response is cut into steps: in its text, never in token ids; and which tokens hold the characters of a text.

Pure functions. `segmentation.Segmenter` makes segments of steps, data/step_encoding.py the places where their labels stand.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from denserl.errors import UserError

SEPARATOR = "\n\n"
MOST = 64


class StepRule(NamedTuple):
    """How a text is cut into steps.

    separators: a step ends with the last character of one of them. pattern: a regular expression in their place, whose matches
    separate. most: where there are more steps, all from this one on are one. score_cut: whether the last step of a response
    that was cut off has a score.
    """

    separators: tuple[str, ...] = (SEPARATOR,)
    pattern: str | None = None
    most: int = MOST
    score_cut: bool = True

    @property
    def separates(self) -> re.Pattern:
        """What ends a step."""
        return re.compile(self.pattern or "|".join(map(re.escape, self.separators)))


def as_typed(separator: str) -> str:
    r"""A separator as a shell hands it on, in which \n is a line break and \t a tab."""
    return separator.replace(r"\n", "\n").replace(r"\t", "\t")


def step_rule(separators: Sequence[str] | None, pattern: str | None, most: int, score_cut: bool) -> StepRule:
    """The rule that options describe. UserError for an empty separator, or a pattern that is none or that matches nothing."""
    if separators is not None and not all(separators):
        raise UserError("`step_separator` has an empty text", r"give what stands between steps, such as '\n\n'")
    try:
        matches_nothing = pattern is not None and re.compile(pattern).match("") is not None
    except re.error as error:
        raise UserError(f"`step_pattern` {pattern!r} is no regular expression: {error}", "correct it") from error
    if matches_nothing:
        raise UserError(f"`step_pattern` {pattern!r} matches an empty text", "let it match what stands between steps")
    return StepRule(tuple(separators or (SEPARATOR,)), pattern, most, score_cut)


def step_ends(text: str, rule: StepRule) -> list[int]:
    """The end of each step in characters, exclusive; the last one is the end of the text, and none where nothing is said.

    A step ends behind its separator. What stands between two separators and is blank belongs to the step before it (at the
    beginning to the step after it), and so does what is blank behind the last separator.
    """
    ends: list[int] = []
    last = 0
    for start, end in [*(found.span() for found in rule.separates.finditer(text)), (len(text), len(text))]:
        if text[last:start].strip():
            ends.append(end)
        elif ends:
            ends[-1] = end
        last = end
    return ends if len(ends) <= rule.most else [*ends[: rule.most - 1], len(text)]


def step_texts(text: str, rule: StepRule) -> list[str]:
    """The steps with their separators; one behind the other they are the text."""
    ends = step_ends(text, rule)
    return [text[start:end] for start, end in zip([0, *ends], ends)]


def with_separators(steps: Sequence[str], separator: str) -> list[str]:
    """Steps as pieces that are the solution one behind the other: each but the last has the separator behind it."""
    return [*(step + separator for step in steps[:-1]), *steps[-1:]]


def tokens_up_to(ids: Sequence[int], text: str, ends: Sequence[int], decode: Callable[[list[int]], str]) -> list[int]:
    """How many tokens, at least one, it takes until the first `end` characters of a text are whole, for each end.

    Args:
        ids: of the tokens that make the text. ends: ascending. decode: token ids -> text, as the text was made.
    """
    ids = list(ids)
    pieces = [decode([i]) for i in ids]
    if "".join(pieces) == text:
        lengths = list(itertools.accumulate(map(len, pieces)))
        return [bisect.bisect_left(lengths, end) + 1 for end in ends]
    # Tokens that are parts of characters, or are written otherwise beside others: prefixes are decoded as wholes.
    found, low = [], 1
    for end in ends:
        low = _first_whole(ids, text[:end], low, decode)
        found.append(low)
    return found


def step_spans(
    ids: Sequence[int], decode: Callable[[list[int]], str], rule: StepRule, ended: bool = True
) -> tuple[list[int], list[int]]:
    """Where the steps of a response end: in characters of its text, and in tokens, both exclusive.

    A step ends with the token that holds its last character. Steps that end within one token are one.

    Args:
        ids: of the response, without the token that ends the turn. decode: see `tokens_up_to`.
        ended: False where it was cut off; a step that it was cut off in is left out where such are not scored.
    """
    text = decode(list(ids))
    ends = scored_ends(text, rule, ended)
    last = dict(zip(tokens_up_to(ids, text, ends, decode), ends))  # of ends within one token the last
    return list(last.values()), list(last)


def scored_ends(text: str, rule: StepRule, ended: bool) -> list[int]:
    """`step_ends` without that of a step in which a response was cut off, where such are not scored."""
    ends = step_ends(text, rule)
    if ended or rule.score_cut or not ends or _ends_with_separator(text, rule):
        return ends
    return ends[:-1]


def _ends_with_separator(text: str, rule: StepRule) -> bool:
    return any(found.end() == len(text) for found in rule.separates.finditer(text))


def _first_whole(ids: list[int], beginning: str, low: int, decode: Callable[[list[int]], str]) -> int:
    """The least number of tokens, from `low` on, whose text begins so, found by halving."""
    high = len(ids)
    while low < high:
        middle = (low + high) // 2
        # A character of several tokens is another one until its last.
        if decode(ids[:middle])[: len(beginning)] == beginning:
            high = middle
        else:
            low = middle + 1
    return low
