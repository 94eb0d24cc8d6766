"""Text from models, data and settings inside Markdown, where it marks nothing up and holds no HTML."""

import re

from denserl.terminal import visible


def inline(text: str) -> str:
    """The text as a code span on one line."""
    shown = visible(text.replace("\n", " "), kept="")
    ticks = "`" * (_longest_run(shown) + 1)
    # A span begins and ends with a space where its text does with a backtick, and loses one on either side.
    room = " " if not shown.strip() or "`" in shown else ""
    return f"{ticks}{room}{shown}{room}{ticks}"


def block(text: str, language: str = "") -> str:
    """The text as a fenced block of code."""
    shown = visible(text, kept="\n\t")
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
