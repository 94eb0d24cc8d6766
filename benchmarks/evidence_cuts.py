"""Cuts to set beside those at entropy peaks: as many of them in each response, evenly or at random. Segmenters of train-rm."""

import random
import zlib

from denserl.world.make import THRESHOLD as PEAKS


def evenly(tokens: list[str], entropies: list[float]) -> list[int]:
    """As many segments as the peaks make, as equal in length as can be."""
    segments = _peaks(entropies) + 1
    return [round(k * len(tokens) / segments) for k in range(1, segments)]


def at_random(tokens: list[str], entropies: list[float]) -> list[int]:
    """As many segments as the peaks make, cut anywhere, the same in a text whenever it is read."""
    rng = random.Random(zlib.crc32("".join(tokens).encode()))
    return sorted(rng.sample(range(1, len(tokens)), _peaks(entropies)))


def _peaks(entropies: list[float]) -> int:
    # The first token opens a segment, whatever its entropy.
    return sum(entropy > PEAKS for entropy in entropies[1:])
