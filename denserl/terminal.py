"""Text of models, data, settings and file names made inert where it is shown: on a terminal, in a log, on a page.

Characters that act on a display instead of showing on it are named. Escaping for HTML is the template's work.
"""

import logging
import sys
import traceback
import unicodedata
from typing import TextIO

# Controls (ANSI escapes, carriage return), formats (bidi marks), lone surrogates, private use, line and paragraph separators.
_ACTING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # they belong to Persian, Indic scripts and emoji


def visible(text: str, kept: str = "\n") -> str:
    """The text with each character that acts instead of showing, but those of `kept`, named as in ‹U+001B›."""
    return "".join(c if c in kept or c in _JOINERS or not _acts(c) else f"‹U+{ord(c):04X}›" for c in text)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a text of several lines that may hold foreign text; default on stdout."""
    print(visible(text), file=file or sys.stdout, flush=True)


def make_output_inert() -> None:
    """Let this process's logs, warnings and tracebacks, of whichever library, act on no terminal."""
    logging.setLogRecordFactory(InertRecord)
    logging.captureWarnings(True)
    sys.excepthook = _show_fault


class InertRecord(logging.LogRecord):
    """A log record whose message is visible text, whichever library logs it and whichever handler writes it."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


def _show_fault(kind, error, trace) -> None:
    say("".join(traceback.format_exception(kind, error, trace)), sys.stderr)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _ACTING
