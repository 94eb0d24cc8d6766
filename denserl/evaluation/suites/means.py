"""Means of the scores of subsets, for headline numbers; scores may be arrays of one length."""

from collections.abc import Iterable, Mapping
from typing import Any


def pooled(subsets: Iterable[str], scores: Mapping[str, Any], counts: Mapping[str, int]) -> Any:
    """The mean over all items of those of the subsets that are there; None where none is."""
    there = [name for name in subsets if name in scores]
    total = sum(counts[name] for name in there)
    return sum(scores[name] * counts[name] for name in there) / total if there else None


def mean(values: Iterable[Any]) -> Any:
    """The plain mean; None where one of the values is None."""
    found = list(values)
    return None if any(value is None for value in found) else sum(found) / len(found)
