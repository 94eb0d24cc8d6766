"""How long and how marked up a text is, as Arena-Hard's style control counts it (github.com/lmarena/arena-hard-auto).

Where these counts stand in a file is in arenahard.py.
"""

import re
from typing import NamedTuple

_CODE = re.compile(r"```.*?```", re.DOTALL)
_HEADER = re.compile(r"^(#{1,6})\s", re.MULTILINE)
_ORDERED = re.compile(r"^[ \t]*\d+\.\s", re.MULTILINE)
_UNORDERED = re.compile(r"^[ \t]*[-*+]\s", re.MULTILINE)
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


class Counts(NamedTuple):
    """Tokens and marks of a text, by their kinds."""

    tokens: int | None  # None where nobody counted them
    headers: dict[str, int]  # h1 to h6
    lists: dict[str, int]  # items: ordered, unordered
    bold: dict[str, int]  # "**", "__"


def count_marks(text: str, tokens: int | None = None) -> Counts:
    """The marks of a text, but of its code: what stands between triple backticks.

    tokens: how many it has, by a tokenizer that the caller names.
    """
    prose = _CODE.sub("", text)
    levels = [len(header) for header in _HEADER.findall(prose)]
    return Counts(
        tokens,
        {f"h{level}": levels.count(level) for level in range(1, 7)},
        {"ordered": len(_ORDERED.findall(prose)), "unordered": len(_UNORDERED.findall(prose))},
        {mark: len(pattern.findall(prose)) for mark, pattern in _BOLD.items()},
    )
