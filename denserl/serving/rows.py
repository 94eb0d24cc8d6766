"""One response as a request brings it, and as its answer tells it. Which request holds what is in contract.py."""

from typing import Any, NamedTuple, Protocol

from denserl.data.responses import Messages


class Row(NamedTuple):
    """A response to score, as text."""

    prompt: Messages
    response: str
    ended: bool = True  # whether it was ended, and not cut off at some longest length
    label: Any = None  # the right answer, where it is told
    detailed: bool = True  # whether segments and tokens are asked for, besides the score


class Rendered(NamedTuple):
    """A response to score, in a conversation that a chat template has already written."""

    prompt: str  # up to where the answer begins
    query: str  # prompt and answer, with the end of the turn if there is one
    response: str | None = None  # the answer's text, where it is known
    messages: Messages | None = None  # of the prompt, where they are known
    label: Any = None
    detailed: bool = True

    def plain(self) -> Row | None:
        """The same as texts, where both are known."""
        if self.response is None or self.messages is None:
            return None
        # One that was cut off has nothing behind its text.
        cut = self.query.endswith(self.response or self.prompt)
        return Row(self.messages, self.response, not cut, self.label, self.detailed)


class Token(NamedTuple):
    """A token of a response: its text, how many characters of the response are whole after it, its score."""

    text: str
    end: int
    score: float


class Scored(NamedTuple):
    """What a response scores."""

    score: float
    # For each its end in the response (characters, exclusive) and its score; None where there is the one number alone.
    segments: list[tuple[int, float]] | None
    tokens: list[Token] | None  # None where the source scores no tokens, or they are not asked for
    text: str  # the response as it was scored, in which ends count
    segment_count: int
    prompt_cut: int = 0  # tokens lost, since prompt and response were over the longest length
    response_cut: int = 0
    # What each segment changes in the score so far: they add up to the score. None where segments are None.
    changes: list[float] | None = None


class Service(Protocol):
    """What scores rows."""

    logits: bool  # whether the scores of segments are logits, of which the probabilities are told too

    def encode(self, row: Row | Rendered) -> Any:
        """The row as it is scored. BadRow where that cannot be."""

    def score(self, encoded: list) -> list[Scored]:
        """What `encode` gave, scored, each for itself: nothing depends on what else is scored beside it."""

    def describe(self) -> dict[str, Any]:
        """What scores, and how."""
