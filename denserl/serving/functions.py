"""A Python function, served."""

from collections.abc import Sequence
from typing import Any

from denserl.data.bad_rows import BadRow
from denserl.data.messages import as_messages
from denserl.data.responses import Responses
from denserl.rewards.sources.function import FunctionSource
from denserl.serving.rows import Rendered, Row, Scored


class FunctionService:
    """A Python function, which is given texts as they are."""

    logits = False

    def __init__(self, name: str):
        self.source = FunctionSource.named(name, "reward_function", decode=str)

    def encode(self, row: Row | Rendered) -> Row:
        """BadRow for a rendered conversation whose answer is not given as text: a function has no template to read it by."""
        if isinstance(row, Row):
            return row
        if row.response is None:
            raise BadRow("a function is given texts, and where the answer ends in 'query' is not known: send 'responses' too")
        return Row(as_messages(row.prompt, "prompts"), row.response, detailed=row.detailed)

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
