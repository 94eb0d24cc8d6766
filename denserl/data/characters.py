"""Where the tokens of a response end in its text, in characters."""

import itertools
from collections.abc import Callable, Sequence


def ends_of_tokens(ids: Sequence[int], text: str, pieces: Sequence[str], decode: Callable[[list[int]], str]) -> list[int]:
    """How many characters of the text are whole after each token.

    Args:
        text: of all of them, as `decode` gives it. pieces: the text of each by itself. decode: ids -> text.
    """
    if "".join(pieces) == text:
        return list(itertools.accumulate(map(len, pieces)))
    # Tokens that are parts of characters, or are written otherwise beside others: each is decoded behind the ones before it,
    # back to the last but one that ended a character.
    ends, whole, anchor, start, opening = [], 0, 0, 0, ""
    for place in range(len(ids)):
        piece = decode(list(ids[anchor : place + 1]))[len(opening) :]
        ends.append(whole + len(piece.rstrip(_PART)))
        if not piece.endswith(_PART):
            whole, anchor, start = ends[-1], start, place + 1
            opening = decode(list(ids[anchor:start]))
    return [min(end, len(text)) for end in ends]


_PART = "\ufffd"  # what a decoder writes for bytes that are no whole character
