"""A Python function, served."""

from collections.abc import Sequence
from typing import Any

from denserl.data.bad_rows import BadRow
from denserl.data.responses import Responses
from denserl.rewards.sources.function import FunctionSource
from denserl.serving.rows import Rendered, Row, Scored


class FunctionService:
    """A Python function, which is given texts as they are."""

    logits = False

    def __init__(self, name: str):
        self.source = FunctionSource.named(name, "reward_function", decode=str)

    def encode(self, row: Row | Rendered) -> Row:
        """BadRow for a rendered conversation whose parts are not given as texts: a function has no template to read it by."""
        plain = row if isinstance(row, Row) else row.plain()
        if plain is None:
            raise BadRow("a function is given texts, which 'query' does not tell: send 'messages' and 'responses' too")
        return plain

    def score(self, encoded: Sequence[Row]) -> list[Scored]:
        """A function's numbers are what they are called with, so that each answer stands alone."""
        prompts, texts, ended = zip(*[(row.prompt, row.response, row.ended) for row in encoded], strict=True)
        found = self.source.values(Responses(prompts, texts, [], [], ended))
        return [
            Scored(value, None, None, text, 1)
            if isinstance(value, float)
            else Scored(sum(number for _, number in value), value, None, text, len(value))
            for value, text in zip(found, texts, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        return {"reward_function": self.source.name}
