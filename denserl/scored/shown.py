"""Scored texts that show themselves: in a notebook, and where they are printed."""

from denserl.scored.page import fragment
from denserl.scored.results import ScoredPrompt
from denserl.scored.terminal import in_words


class Scored(ScoredPrompt):
    """A prompt, with its responses and what they score; coloured in a notebook, in columns where it is printed."""

    def __str__(self) -> str:
        return in_words([self])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return fragment([self])
