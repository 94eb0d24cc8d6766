"""Reward models, served."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from denserl.data.characters import ends_of_tokens
from denserl.data.rendered import encode_rendered, is_own
from denserl.data.responses import Encoded
from denserl.ppo_utils.assignment import score_changes
from denserl.rewards.scorer import Reading, RewardScorer
from denserl.rewards.sources.reading import response_text
from denserl.serving.rows import Rendered, Row, Scored, Token


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
        self._decode = response_text(scorer.tokenizer)
        self._piece = functools.cache(lambda i: self._decode([i]))

    def encode(self, row: Row | Rendered) -> EncodedRow:
        """A conversation that another chat template wrote is read from its messages and response, where they are there.

        BadRow where they are not, or the chat template refuses them.
        """
        if isinstance(row, Rendered):
            plain = None if is_own(self.tokenizer, row.prompt, row.messages) else row.plain()
            if plain is None:
                ids = encode_rendered(self.tokenizer, row.prompt, row.query)
                return EncodedRow(self.scorer.fit(*ids), row.response, row.detailed)
            row = plain
        return EncodedRow(self.scorer.encode(row.prompt, row.response, row.ended), row.response, row.detailed)

    def score(self, encoded: Sequence[EncodedRow]) -> list[Scored]:
        """Each by the models alone, in batches of like length."""
        found = self.scorer.read([row.encoded for row in encoded])
        return [self._scored(row, reading) for row, reading in zip(encoded, found, strict=True)]

    def describe(self) -> dict[str, Any]:
        return {name: value for name, value in self.scorer.describe().items() if name != "shortened"}

    def _scored(self, row: EncodedRow, reading: Reading) -> Scored:
        cuts: dict[str, Any] = {"prompt_cut": row.encoded.prompt_cut, "response_cut": row.encoded.response_cut}
        if not row.detailed:
            return Scored(reading.score, None, None, row.given or "", len(reading.segments), **cuts)
        text, ends = self._ends(row)
        segments = changes = None
        if not self.scorer.segmenter.cuts_nothing:
            segments = [(ends[token], score) for token, score in reading.segments]
            scores = torch.tensor([[score for _, score in segments]])
            changes = score_changes(scores, torch.tensor([len(segments)]), self.scorer.agg_func)[0].tolist()
        tokens = None
        if reading.tokens is not None:
            texts = self.tokenizer.batch_decode([[i] for i in row.encoded.response_ids])
            tokens = [Token(*token) for token in zip(texts, ends, reading.tokens, strict=True)]
        return Scored(reading.score, segments, tokens, text, len(reading.segments), **cuts, changes=changes)

    def _ends(self, row: EncodedRow) -> tuple[str, list[int]]:
        """The response's text, and where its tokens end in it: the text that came, where its tokens are found in that."""
        ids = row.encoded.response_ids
        content = ids[:-1] if row.encoded.ended else ids
        decoded = self._decode(content)
        shift = -1 if row.given is None else row.given.find(decoded)
        ends = ends_of_tokens(content, decoded, [self._piece(i) for i in content], self._decode)
        ends += [len(decoded)] * (len(ids) - len(content))
        return (decoded, ends) if shift < 0 else (row.given, [shift + end for end in ends])
