r"""The final answer that a solution states, in one form for all ways of writing it, so that answers can be counted.

Read are, in this order, the last `\boxed{...}`, what follows the last `####` in its line, what follows the last "answer is" or
"answer:" in its sentence and line, and a text that is a number itself. Numbers are compared as numbers (1,200.0 = 1200,
\frac{1}{2} = 1/2 = 0.5), other answers without spaces, dollar signs, per cent signs and what LaTeX writes for the eye. It is no
computer algebra: x+1 and 1+x are two answers.
"""

import re
from fractions import Fraction

LONGEST_NUMBER = 100  # characters; a longer one is a text
_STATED = re.compile(r"answer(?:[ \t]+is|[ \t]*:)[ \t]*:?[ \t]*(.+?)(?:\.(?=\s)|\.?$)", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"([+-]?)(?:(\d+)/(\d+)|(\d*\.?\d+|\d+\.))")
_FRACTION = re.compile(r"\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d)(?!\d))")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FOR_THE_EYE = re.compile(r"\\left|\\right|\\[!,;: ]|\$|\s|\\(?:text|mathrm|textbf|mbox)(?=\{)")


def final_answer(text: str) -> str | None:
    """The answer in its one form; None where none is stated."""
    stated = _boxed(text) or _after(text, "####") or _last(_STATED.findall(text))
    if stated is not None:
        return normalised(stated) or None
    whole = normalised(text)
    return whole if _as_number(whole) is not None else None


def normalised(answer: str) -> str:
    """An answer in the form in which equal ones are equal."""
    compact = _FOR_THE_EYE.sub("", answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")).rstrip(".")
    compact = _without_braces(compact.replace("\\%", "%")).removesuffix("%")
    number = _as_number(compact)
    return compact if number is None else str(number)


def _as_number(text: str) -> Fraction | None:
    if len(text) > LONGEST_NUMBER:
        return None
    found = _NUMBER.fullmatch(_FRACTION.sub(lambda parts: "/".join(filter(None, parts.groups())), _GROUPED.sub("", text)))
    if found is None or (found[3] is not None and int(found[3]) == 0):
        return None
    size = Fraction(int(found[2]), int(found[3])) if found[2] is not None else Fraction(found[4])
    return -size if found[1] == "-" else size


def _boxed(text: str) -> str | None:
    """What the last box holds, braces inside it and all; None where there is none or it is not closed."""
    _, box, rest = text.rpartition("\\boxed{")
    depth = 1
    for place, character in enumerate(rest if box else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:place]
    return None


def _after(text: str, mark: str) -> str | None:
    """The rest of the line after the last mark."""
    _, found, rest = text.rpartition(mark)
    return next(iter(rest.strip().splitlines()), None) if found else None


def _last(found: list[str]) -> str | None:
    return found[-1] if found else None


def _without_braces(text: str) -> str:
    """Without one pair of braces around all of it."""
    return text[1:-1] if text.startswith("{") and text.endswith("}") and "{" not in text[1:-1] else text
