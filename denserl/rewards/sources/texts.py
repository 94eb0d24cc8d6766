"""Sources that read texts: a number for each response, or numbers for parts of it, checked and put on its tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.rewards.sources.base import Scores
from denserl.segmentation import Segments, segments_from_starts
from denserl.steps import tokens_up_to

SHOWN = 80  # characters of a response, or of what is said of it, that a message quotes
LARGEST = torch.finfo(torch.float32).max

# What is said of a response: a number, or (end, number) of each of its parts.
Value = float | list[tuple[int, float]]


class TextSource(ABC):
    """A source that says of each response a number or a list of pairs, without running a model of ours.

    A pair is (end, number): the part of the text from the end of the part before up to the character `end`, exclusive, earns
    the number. Parts become segments of tokens: a part ends with the token that holds its last character. Text after the last
    part lies in no segment.

    Args:
        decode: token ids -> text, as the texts of the responses were made.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode

    @abstractmethod
    def values(self, responses: Responses) -> list[Value]:
        """What is said of each response, checked (`checked_values`)."""

    def totals(self, responses: Responses) -> list[float]:
        """One number a response, or the sum over its parts."""
        return [value if isinstance(value, float) else sum(number for _, number in value) for value in self.values(responses)]

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """UserError as of `values`."""
        found, device = self.values(responses), batch.response_mask.device
        if all(isinstance(value, float) for value in found):
            return Scores(torch.tensor(found, device=device))
        width = batch.response_mask.shape[1]
        values, ids = torch.zeros(len(found), width), torch.full((len(found), width), -1)
        for row, parts in enumerate(found):
            if isinstance(parts, float):
                # All tokens, the end of turn too, as where every response has a number.
                length = len(responses.response_ids[row])
                ids[row, :length], values[row, length - 1] = 0, parts
                continue
            first, number = 0, 0
            ends = tokens_up_to(responses.response_ids[row], responses.texts[row], [end for end, _ in parts], self.decode)
            for last, (_, value) in zip(ends, parts, strict=True):
                # A part that ends within the token that closed the part before adds its number there.
                number += last > first
                ids[row, first:last] = number - 1
                values[row, last - 1] += value
                first = last
        previous = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=-1)
        segments = segments_from_starts((ids >= 0) & (ids != previous), ids >= 0)
        return Scores(values.to(device), Segments(*(part.to(device) for part in segments)), "sum")


def checked_values(found: Sequence, texts: Sequence[str], error: Callable[[str, str], UserError]) -> list[Value]:
    """What was said of each text, as numbers and pairs.

    Args:
        error: (what was found, how to mend it) -> what is raised; it names who said it.

    Raises:
        UserError: another number of values than of texts, or a value that is neither a finite number nor a list of parts;
            it quotes the response.
    """
    if len(found) != len(texts):
        without = f"; {quoted(texts[len(found)])} has none" if len(found) < len(texts) else ""
        found_count = f"returned {len(found)} values for {len(texts)} responses{without}"
        raise error(found_count, "let it return one for each response")
    return [_checked(value, text, error) for value, text in zip(found, texts, strict=True)]


def quoted(text: str) -> str:
    """A response as messages show it."""
    return f"the response {text[:SHOWN]!r}" + ("..." if len(text) > SHOWN else "")


def _checked(value: Any, text: str, error: Callable[[str, str], UserError]) -> Value:
    try:
        checked = [(_whole(end), _number(number)) for end, number in value] if _is_list(value) else _number(value)
    except (TypeError, ValueError, OverflowError):
        raise error(f"returned {_shown(value)} for {quoted(text)}", "let it return a number, or (end, number) pairs") from None
    numbers = [number for _, number in checked] if isinstance(checked, list) else [checked]
    if not sum(map(abs, numbers)) <= LARGEST:
        raise error(f"returned {_shown(value)} for {quoted(text)}", "let it return finite numbers, as fp32 can hold them")
    ends = [0, *(end for end, _ in checked)] if isinstance(checked, list) else [0]
    if ends[1:] != sorted(ends[1:]) or not 0 <= min(ends) <= max(ends) <= len(text):
        raise error(
            f"returned parts that end at {_shown(ends[1:])} for {quoted(text)} of {len(text)} characters",
            "let each part end after the one before, within the response",
        )
    return checked


def _shown(value: Any) -> str:
    text = repr(value)
    return text[:SHOWN] + ("..." if len(text) > SHOWN else "")


def _number(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError("a text is no number")
    return float(value)


def _whole(value: Any) -> int:
    if int(value) != _number(value):
        raise ValueError("an end lies between characters")
    return int(value)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (hasattr(value, "ndim") and value.ndim > 0)
