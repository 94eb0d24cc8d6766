"""A Python function, served."""

from collections.abc import Sequence
from typing import Any

from denserl.data.bad_rows import BadRow
from denserl.data.responses import Responses
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.texts import Value
from denserl.serving.rows import Rendered, Row, Scored


class FunctionService:
    """A Python function, which is given texts as they are, and labels where a request has some."""

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
        """Rows with labels, which the function is given as a third argument, are not mixed with others."""
        found: dict[int, Scored] = {}
        for labelled in (False, True):
            places = [place for place, row in enumerate(encoded) if (row.label is not None) == labelled]
            if places:
                found |= zip(places, self._called([encoded[place] for place in places], labelled), strict=True)
        return [found[place] for place in range(len(encoded))]

    def _called(self, rows: Sequence[Row], labelled: bool) -> list[Scored]:
        prompts, texts = [row.prompt for row in rows], [row.response for row in rows]
        labels = [row.label for row in rows] if labelled else ()
        found = self.source.values(Responses(prompts, texts, [], [], [row.ended for row in rows], labels))
        return [_scored(value, text) for value, text in zip(found, texts, strict=True)]

    def describe(self) -> dict[str, Any]:
        return {"reward_function": self.source.name}


def _scored(value: Value, text: str) -> Scored:
    if isinstance(value, float):
        return Scored(value, None, None, text, 1)
    numbers = [number for _, number in value]
    return Scored(sum(numbers), value, None, text, len(value), changes=numbers)
