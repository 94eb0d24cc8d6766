"""Makes text from models, data, settings and file names safe to show on a terminal, in a log or on a page.

Control characters are replaced by their code points. Escaping for HTML is the template's work.
"""

import logging
import re
import sys
import traceback
import unicodedata
from types import TracebackType
from typing import TextIO

# Controls (ANSI escapes, carriage return), formats (bidi marks), lone surrogates, private use, line and paragraph separators.
_ACTING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_COLOURS = re.compile("(\x1b\\[[0-9;]*m)")  # each is a part of its own where a text is split
_JOINERS = "\u200c\u200d"  # they belong to Persian, Indic scripts and emoji


def visible(text: str, kept: str = "\n") -> str:
    """The text with control and formatting characters, except those in `kept`, written as ‹U+001B›."""
    # All that acts is not printable, and nearly every text is.
    if text.replace("\n", "").isprintable() and ("\n" in kept or "\n" not in text):
        return text
    return "".join(c if c in kept or c in _JOINERS or not _acts(c) else f"‹U+{ord(c):04X}›" for c in text)


def say(text: str, file: TextIO | None = None, coloured: bool = False) -> None:
    """Print text that may come from models, data or files; on stdout by default.

    coloured: escapes that set colours and weights stay, and no others; whoever puts them in has made foreign text visible.
    """
    parts = _COLOURS.split(text) if coloured else [text]
    shown = "".join(part if number % 2 else visible(part) for number, part in enumerate(parts))
    print(shown, file=file or sys.stdout, flush=True)


def make_output_inert() -> None:
    """Remove control characters from the logs, warnings and tracebacks of every library in this process."""
    logging.setLogRecordFactory(InertRecord)
    logging.captureWarnings(True)
    sys.excepthook = _show_fault


class InertRecord(logging.LogRecord):
    """A log record without control characters, whichever library logs it and whichever handler writes it."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and datasets; ours remain."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, trace)), sys.stderr)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING
