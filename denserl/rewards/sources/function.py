"""A Python function as a source of rewards: one number a response, or numbers for parts of its text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from denserl.data.batching import ResponseBatch
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.plugins import load_named
from denserl.rewards.sources.base import Scores
from denserl.segmentation import Segments, segments_from_starts
from denserl.steps import tokens_up_to

SHOWN = 80  # characters of a response that a message quotes

# (prompts as messages, response texts) -> for each response a number, or (end character, number) of each of its parts.
RewardFunction = Callable[[list, list[str]], Sequence]


class FunctionSource:
    """A function of prompts and responses as a source. What it returns for each response is a number, or a list of pairs.

    A pair is (end, number): the part of the text from the end of the part before up to the character `end`, exclusive, earns
    the number. Parts become segments of tokens: a part ends with the token that holds its last character. Text after the last
    part lies in no segment.

    Args:
        name: of the function, for messages. option: the option that named it.
        decode: token ids -> text, as the texts of the responses were made.
    """

    def __init__(self, function: RewardFunction, name: str, option: str, decode: Callable[[list[int]], str]):
        self.function, self.name, self.option, self.decode = function, name, option, decode

    @classmethod
    def named(cls, name: str, option: str, decode: Callable[[list[int]], str]) -> "FunctionSource":
        """The function that module:function names. UserError where it cannot be imported."""
        return cls(load_named(name, option), name, option, decode)

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """
        Raises:
            UserError: the function raises, returns another number of values than there are responses, or a value that is
                neither a finite number nor a list of parts; it names the response.
        """
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

    def values(self, responses: Responses) -> list[float | list[tuple[int, float]]]:
        """What the function returns for each response, checked."""
        prompts, texts = list(responses.prompts), list(responses.texts)
        try:
            found = list(self.function(prompts, texts))
        except Exception as error:  # a user's function may raise anything
            raise self._failed(prompts, texts, error) from error
        if len(found) != len(texts):
            without = f"; {_quoted(texts[len(found)])} has none" if len(found) < len(texts) else ""
            found_count = f"returned {len(found)} values for {len(texts)} responses{without}"
            raise self._error(found_count, "let it return one for each response")
        return [self._checked(value, text) for value, text in zip(found, texts, strict=True)]

    def totals(self, responses: Responses) -> list[float]:
        """One number a response: the function's, or the sum over its parts."""
        return [value if isinstance(value, float) else sum(number for _, number in value) for value in self.values(responses)]

    def _checked(self, value: Any, text: str) -> float | list[tuple[int, float]]:
        try:
            checked = [(int(end), float(number)) for end, number in value] if _is_list(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            raise self._error(
                f"returned {value!r} for {_quoted(text)}", "let it return a number, or (end, number) pairs"
            ) from None
        numbers = [number for _, number in checked] if isinstance(checked, list) else [checked]
        if not all(map(math.isfinite, numbers)):
            raise self._error(f"returned {value!r} for {_quoted(text)}", "let it return finite numbers")
        ends = [0, *(end for end, _ in checked)] if isinstance(checked, list) else [0]
        if ends[1:] != sorted(ends[1:]) or not 0 <= min(ends) <= max(ends) <= len(text):
            raise self._error(
                f"returned parts that end at {ends[1:]} for {_quoted(text)} of {len(text)} characters",
                "let each part end after the one before, within the response",
            )
        return checked

    def _failed(self, prompts: list, texts: list[str], error: Exception) -> UserError:
        """The error, with the first response for which the function fails alone."""
        for prompt, text in zip(prompts, texts, strict=True):
            try:
                self.function([prompt], [text])
            except Exception as again:
                return self._error(f"raised {type(again).__name__}: {again} for {_quoted(text)}", "mend the function")
        return self._error(f"raised {type(error).__name__}: {error} for {len(texts)} responses together", "mend the function")

    def _error(self, found: str, fix: str) -> UserError:
        # Other ranks' responses may have got theirs.
        return UserError(f"`{self.option}` {self.name} {found}", fix, one_rank=True)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (hasattr(value, "ndim") and value.ndim > 0)


def _quoted(text: str) -> str:
    return f"the response {text[:SHOWN]!r}" + ("..." if len(text) > SHOWN else "")
