"""What judges are asked and what they answer: of a language model (Request, Reply, Backend), and of any judge (Comparison,
Judgement, Judge).

A language model is asked in messages and answers in text; templates (templates.py) write the messages and verdicts.py reads
the text. A reward model or a pairwise model is a judge without either.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from denserl.data.responses import Messages

# Of a comparison, whichever answer was shown first; `cut` is a text without a verdict that ended at the limit of tokens.
Verdict = Literal["first", "second", "tie", "invalid", "cut"]


class Decoding(NamedTuple):
    """How an answer is sampled."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: the most likely token
    top_p: float = 1.0
    top_logprobs: int = 0  # most likely first tokens whose log-probabilities are told


class Request(NamedTuple):
    """One answer that is asked for.

    sample: its number among those that are drawn for the same messages, which have random numbers of their own.
    """

    messages: Messages
    decoding: Decoding
    sample: int = 0


class Reply(NamedTuple):
    """One answer of a language model, as it came."""

    text: str
    cut: bool  # it ended at the limit of tokens
    prompt_tokens: int
    tokens: int
    first: tuple[tuple[str, float], ...] = ()  # the most likely first tokens and their log-probabilities, where these are asked


class Backend(Protocol):
    """A language model that answers. A request that fails is never an answer: what goes wrong is a UserError."""

    @property
    def name(self) -> str:
        """The model's, as keys of the store hold it."""

    @property
    def version(self) -> str:
        """A fingerprint of its weights; empty where a server has them. Told, like the name, without loading them."""

    def replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """The number of a request and its answer, as they come, in any order.

        Raises:
            UserError: it cannot be asked, or refuses.
        """

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens of the messages: counted, or where that is not possible estimated."""


Said = str | Messages  # an answer: a text, or all turns from an assistant's on, which the last one ends


class Comparison(NamedTuple):
    """Two answers to one prompt. Where earlier turns are not the same, they are part of the answers, and not of the prompt."""

    prompt: Messages
    first: Said
    second: Said


class Judgement(NamedTuple):
    """What a judge says of a comparison.

    score: 1 where the first answer is better, 0 where the second, 0.5 where neither; a number between them where a judge says
    how sure it is. None where no verdict is valid.
    verdicts: of each order in which it was asked (the first answer first, then the second one first), of each vote. Empty for
    a judge that gives no verdicts.
    """

    score: float | None
    verdicts: tuple[tuple[Verdict, ...], ...] = ()


class Judge(Protocol):
    """Says which of two answers is better."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """A judgement of each comparison, in their order."""

    def describe(self) -> dict:
        """How judgements came about, for a file of results: model, version, template, orders, votes; calls and tokens."""
