"""Cuts to set beside those at entropy peaks, about as many: segmenters of train-rm. None looks at what comes later."""

import zlib

EVERY = 5  # tokens, those of a sentence


def every_five(tokens: list[str], entropies: list[float]) -> list[int]:
    """A segment is five tokens, which a sentence nearly always is."""
    return list(range(EVERY, len(tokens), EVERY))


def two_later(tokens: list[str], entropies: list[float]) -> list[int]:
    """The first segment is two tokens longer, so that cuts fall inside sentences."""
    return list(range(EVERY + 2, len(tokens), EVERY))


def at_random(tokens: list[str], entropies: list[float]) -> list[int]:
    """A token opens a segment with probability one fifth, the same in a text whenever it is read."""
    said, found = 0, []
    for place, token in enumerate(tokens):
        if place and said % EVERY == 0:
            found.append(place)
        said = zlib.crc32(token.encode(), said)
    return found
