"""What is served: reward models, and functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.data.messages import as_messages
from denserl.data.rendered import encode_rendered
from denserl.data.responses import Encoded, Responses
from denserl.evaluation.scorers import Reading, RewardScorer
from denserl.rewards.sources.function import FunctionSource
from denserl.serving.characters import ends_of_tokens
from denserl.serving.rows import Rendered, Row, Scored, Token


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


class EncodedRow(NamedTuple):
    """A response as a reward model reads it."""

    encoded: Encoded
    given: str | None  # its text, as it came
    detailed: bool


class ModelService:
    """Reward models, read as they were trained."""

    logits = False

    def __init__(self, scorer: RewardScorer):
        self.scorer, self.tokenizer = scorer, scorer.tokenizer
        self._pieces: dict[int, str] = {}

    def encode(self, row: Row | Rendered) -> EncodedRow:
        """BadRow where the chat template refuses the messages, or a rendered conversation is none of its own."""
        if isinstance(row, Row):
            return EncodedRow(self.scorer.encode(row.prompt, row.response, row.ended), row.response, row.detailed)
        ids = encode_rendered(self.tokenizer, row.prompt, row.query)
        return EncodedRow(self.scorer.fit(*ids), row.response, row.detailed)

    def score(self, encoded: Sequence[EncodedRow]) -> list[Scored]:
        """Each by the models alone, in batches of like length."""
        found = self.scorer.read([row.encoded for row in encoded])
        return [self._scored(row, reading) for row, reading in zip(encoded, found, strict=True)]

    def describe(self) -> dict[str, Any]:
        return {name: value for name, value in self.scorer.describe().items() if name != "shortened"}

    def _scored(self, row: EncodedRow, reading: Reading) -> Scored:
        cuts = {"prompt_cut": row.encoded.prompt_cut, "response_cut": row.encoded.response_cut}
        if not row.detailed:
            return Scored(reading.score, None, None, row.given or "", len(reading.segments), **cuts)
        text, ends = self._ends(row)
        segments = None
        if self.scorer.segmenter.reads_entropy:
            segments = [(ends[token], score) for token, score in reading.segments]
        tokens = None
        if reading.tokens is not None:
            texts = self.tokenizer.batch_decode([[i] for i in row.encoded.response_ids])
            tokens = [Token(*token) for token in zip(texts, ends, reading.tokens, strict=True)]
        return Scored(reading.score, segments, tokens, text, len(reading.segments), **cuts)

    def _ends(self, row: EncodedRow) -> tuple[str, list[int]]:
        """The response's text, and where its tokens end in it: the text that came, where its tokens are found in that."""
        ids = row.encoded.response_ids
        content = ids[:-1] if row.encoded.ended else ids
        decoded = self._decode(content)
        shift = -1 if row.given is None else row.given.find(decoded)
        ends = ends_of_tokens(content, decoded, [self._piece(i) for i in content], self._decode)
        ends += [len(decoded)] * (len(ids) - len(content))
        return (decoded, ends) if shift < 0 else (row.given, [shift + end for end in ends])

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _piece(self, i: int) -> str:
        if i not in self._pieces:
            self._pieces[i] = self._decode([i])
        return self._pieces[i]
