"""Models that judge steps, served: they read texts, or the ids of a conversation that their own chat template wrote."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from denserl.data.bad_rows import BadRow
from denserl.data.batching import in_length_batches
from denserl.data.rendered import encode_rendered, is_own
from denserl.data.step_encoding import StepIds
from denserl.rewards.aggregation import aggregate_steps
from denserl.rewards.sources.reading import response_text
from denserl.rewards.step_scorer import StepModelScorer
from denserl.serving.rows import Rendered, Row, Scored
from denserl.steps import scored_ends, step_spans


class EncodedSteps(NamedTuple):
    """A response as its steps are read."""

    ids: StepIds
    ends: list[int]  # of the steps in the text, in characters
    text: str
    prompt_cut: int


class StepModelService:
    """Models that judge steps; the score of a segment is the logit of a step, that of a response of their chances."""

    logits = True

    def __init__(self, scorer: StepModelScorer):
        self.scorer, self.model = scorer, scorer.model
        self._decode = response_text(scorer.model.tokenizer)

    def encode(self, row: Row | Rendered) -> EncodedSteps:
        """BadRow for what the model cannot read (see `ModelService.encode`), and for a response that is too long."""
        if isinstance(row, Row):
            return self._of_texts(row)
        own = self.model.layout.context_signs == "none" and is_own(self.model.tokenizer, row.prompt, row.messages)
        plain = None if own else row.plain()
        if plain is not None:
            return self._of_texts(plain)
        if self.model.layout.context_signs != "none":
            raise BadRow("this model reads steps as turns, which 'query' does not tell: send 'messages' and 'responses' too")
        return self._of_ids(row)

    def score(self, encoded: Sequence[EncodedSteps]) -> list[Scored]:
        """Each in one forward, in batches of like length."""
        rows = [row.ids for row in encoded]
        lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rows]

        def of_rows(numbers: list[int]) -> list[list[float]]:
            values = self.model.per_token([rows[i] for i in numbers]).cpu()
            return [value[rows[i].read_at].tolist() for i, value in zip(numbers, values, strict=True)]

        logits = in_length_batches(of_rows, lengths, self.model.score_tokens)
        return [self._scored(row, found) for row, found in zip(encoded, logits, strict=True)]

    def describe(self) -> dict[str, Any]:
        return self.scorer.describe()

    def _scored(self, row: EncodedSteps, logits: list[float]) -> Scored:
        score = aggregate_steps(torch.tensor([logits]), torch.tensor([len(logits)]), self.scorer.aggregate).item()
        segments = list(zip(row.ends, logits, strict=True))
        return Scored(score, segments, None, row.text, len(logits), row.prompt_cut, changes=self._changes(logits))

    def _changes(self, logits: list[float]) -> list[float]:
        """What each step changes in the score of the steps so far."""
        counts = torch.arange(1, len(logits) + 1)
        so_far = aggregate_steps(torch.tensor(logits).expand(len(logits), -1), counts, self.scorer.aggregate)
        return so_far.diff(prepend=so_far.new_zeros(1)).tolist()

    def _of_texts(self, row: Row) -> EncodedSteps:
        ends = scored_ends(row.response, self.model.rule, row.ended)
        pieces = [row.response[start:end] for start, end in zip([0, *ends], ends)]
        whole = self.model.encode_whole(row.prompt, pieces, row.ended)
        return self._fitting(whole, ends, row.response)

    def _of_ids(self, row: Rendered) -> EncodedSteps:
        ids = encode_rendered(self.model.tokenizer, row.prompt, row.query)
        content = ids.response_ids[:-1] if ids.ended else ids.response_ids
        ends, tokens = step_spans(content, self._decode, self.model.rule, ids.ended)
        whole = StepIds(ids.prompt_ids, ids.response_ids, [end - 1 for end in tokens])
        return self._fitting(whole, ends, self._decode(content))

    def _fitting(self, whole: StepIds, ends: list[int], text: str) -> EncodedSteps:
        ids = self.model.fit(whole)
        return EncodedSteps(ids, ends, text, len(whole.prompt_ids) - len(ids.prompt_ids))
