"""A Python function as a source of rewards."""

from collections.abc import Callable, Sequence

from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.plugins import load_named
from denserl.rewards.sources.texts import TextSource, Value, checked_values, quoted

# (prompts as messages, response texts) -> for each response a number, or (end character, number) of each of its parts. Right
# answers are a third argument where the prompts' rows say them.
RewardFunction = Callable[..., Sequence]


class FunctionSource(TextSource):
    """A function of prompts and responses as a source (see `TextSource`).

    Args:
        name: of the function, for messages. option: the option that named it.
        decode: see `TextSource`.
    """

    def __init__(self, function: RewardFunction, name: str, option: str, decode: Callable[[list[int]], str]):
        super().__init__(decode)
        self.function, self.name, self.option = function, name, option

    @classmethod
    def named(cls, name: str, option: str, decode: Callable[[list[int]], str]) -> "FunctionSource":
        """The function that module:function names. UserError where it cannot be imported."""
        return cls(load_named(name, option), name, option, decode)

    def values(self, responses: Responses) -> list[Value]:
        """
        Raises:
            UserError: the function raises, returns another number of values than there are responses, or a value that is
                neither a finite number nor a list of parts; it names the response.
        """
        texts = list(responses.texts)
        given: list[list] = [list(responses.prompts), texts, *([list(responses.labels)] if responses.labels else [])]
        try:
            found = list(self.function(*given))
        except Exception as error:  # a user's function may raise anything
            raise self._failed(given, texts, error) from error
        return checked_values(found, texts, self._error)

    def _failed(self, given: list[list], texts: list[str], error: Exception) -> UserError:
        """The error, with the first response for which the function fails alone."""
        for row, text in enumerate(texts):
            try:
                self.function(*([column[row]] for column in given))
            except Exception as again:
                return self._error(f"raised {type(again).__name__}: {again} for {quoted(text)}", "mend the function")
        return self._error(f"raised {type(error).__name__}: {error} for {len(texts)} responses together", "mend the function")

    def _error(self, found: str, fix: str) -> UserError:
        # Other ranks' responses may have got theirs.
        return UserError(f"`{self.option}` {self.name} {found}", fix, one_rank=True)
