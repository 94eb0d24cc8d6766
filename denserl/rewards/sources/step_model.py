"""Models that judge the steps of a solution: texts of steps -> the logit of each; and the same as a source of rewards.

They are given text, so that they may have a tokenizer and a layout of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import ResponseBatch, map_rows_in_batches, pad_responses
from denserl.data.chat import bos_id, renders_alike
from denserl.data.responses import Messages, Responses
from denserl.data.schemas import BadRow
from denserl.data.step_encoding import StepIds, StepLayout, encode_steps, fit_steps
from denserl.errors import UserError
from denserl.models.tokenizers import same_tokenizer
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.rewards.sources.base import Scores
from denserl.rewards.sources.reading import response_text
from denserl.rewards.sources.reward_model import combine
from denserl.segmentation import segments_up_to
from denserl.steps import StepRule, step_spans

SHOWN = 80  # characters of a response that a message quotes


@dataclass(frozen=True)
class StepModel:
    """Gives the logit of each step of a solution: positive where the step is rather right.

    models: sequence classifiers in evaluation mode that share tokenizer, rule and layout; may be wrapped (DeepSpeed).
    rule: how they were taught to cut solutions. layout: how steps are written for them.
    max_length: tokens of prompt and solution together; a longer one loses tokens of the prompt, on the left.
    how, weight: how the logits of several are one (`combine`). score_tokens: padded tokens per batch.
    """

    models: Sequence[nn.Module]
    tokenizer: PreTrainedTokenizerBase
    rule: StepRule = StepRule()
    layout: StepLayout = StepLayout()
    max_length: int | None = None
    device: torch.device | str = "cpu"
    how: str = "mean"
    weight: float = 1.0
    score_tokens: int = 16384

    def __call__(
        self, prompts: Sequence[Messages], steps: Sequence[Sequence[str]], ended: Sequence[bool] | None = None
    ) -> list[list[float]]:
        """The logits of the steps of each solution, one forward each, all ranks together.

        Args:
            steps: of each solution, with their separators: one behind the other they are its text. ended: see `encode_steps`.

        Raises:
            BadRow: a solution that the chat template refuses, or that does not fit; it does not say which.
        """
        rows = [
            self.encode(prompt, pieces, end)
            for prompt, pieces, end in zip(prompts, steps, ended or [True] * len(steps), strict=True)
        ]
        return self.score(rows)

    def encode(self, prompt: Messages, steps: Sequence[str], ended: bool = True) -> StepIds:
        """A solution as it is read. BadRow where the chat template refuses it, or its steps do not fit."""
        return self.fit(self.encode_whole(prompt, steps, ended))

    def encode_whole(self, prompt: Messages, steps: Sequence[str], ended: bool = True) -> StepIds:
        """A solution of whatever length. BadRow where the chat template refuses it."""
        if not steps:
            return StepIds([self.tokenizer.pad_token_id], [self.tokenizer.pad_token_id], [])  # a row that nothing is read of
        return encode_steps(self.tokenizer, prompt, steps, self.layout, ended=ended)

    def fit(self, row: StepIds) -> StepIds:
        """An encoded solution that is no longer than `max_length`. BadRow where its steps do not fit."""
        if self.max_length is None:
            return row
        fitting = fit_steps(row, self.max_length, 1, bos_id(self.tokenizer))
        if len(fitting.read_at) < len(row.read_at):
            tokens, most = len(row.response_ids), self.max_length
            found = f"the solution has {tokens} tokens, and a sequence at most {most}"
            raise BadRow(found, "let solutions be shorter, or `max_length` larger where the model has positions for it")
        return fitting

    def score(self, rows: Sequence[StepIds]) -> list[list[float]]:
        """The logits of encoded solutions, in their order; ranks share the work."""
        if not rows:
            return []
        prompt_ids, response_ids, read_at = zip(*rows, strict=True)
        mine = map_rows_in_batches(
            prompt_ids, response_ids, lambda some: self.per_token([rows[i] for i in some]), self.score_tokens, "steps"
        )
        found = {row: values[read_at[row]].tolist() for row, values in mine.items()}
        merged = {row: logits for share in distributed.gather_objects(found) for row, logits in share.items()}
        return [merged[row] for row in range(len(rows))]

    def per_token(self, rows: Sequence[StepIds], device: torch.device | str | None = None) -> Tensor:
        """(B, T) fp32: the logit at each token of some solutions, in one forward; those at `read_at` have a meaning."""
        prompt_ids, response_ids, _ = zip(*rows, strict=True)
        batch = pad_responses(prompt_ids, response_ids, self.tokenizer.pad_token_id).to(device or self.device)
        logits = [response_token_rewards(model, batch) for model in self.models]
        return logits[0] if len(logits) == 1 else combine(torch.stack(logits), self.how, self.weight)


class StepSource:
    """A step model as a source of rewards: the logit of each step, at the last token of the step.

    Args:
        rule: how responses are cut. tokenizer: of the responses. Where it is the model's own, and steps are read at their last
            tokens, the model reads the very ids of the responses, else their text.
    """

    closing = None  # nothing is read behind the end of turn

    def __init__(self, model: StepModel, rule: StepRule, tokenizer: PreTrainedTokenizerBase):
        self.model, self.rule, self.decode = model, rule, response_text(tokenizer)
        alike = same_tokenizer(model.tokenizer, tokenizer) and renders_alike(model.tokenizer, tokenizer)
        self.reads_ids = alike and model.layout.context_signs == "none"

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """UserError for a response that the model's chat template refuses, or that does not fit."""
        ends, rows = self.encode(responses)
        logits = self.model.per_token(rows, batch.response_mask.device)
        values = torch.zeros(batch.response_mask.shape, device=logits.device)
        number = [row for row, of_row in enumerate(ends) for _ in of_row]
        at = [place for row in rows for place in row.read_at]
        values[number, [end - 1 for of_row in ends for end in of_row]] = logits[number, at]
        return Scores(values, segments_up_to(ends, batch.response_mask.shape[1], batch.response_mask.device))

    def encode(self, responses: Responses) -> tuple[list[list[int]], list[StepIds]]:
        """Of each response how many tokens it takes to the end of each step, and what the model reads."""
        ends, rows = [], []
        for row in range(len(responses.texts)):
            characters, tokens = self._spans(responses, row)
            ends.append(tokens)
            rows.append(self._encoded(responses, row, characters, tokens))
        return ends, rows

    def _spans(self, responses: Responses, row: int) -> tuple[list[int], list[int]]:
        ids, ended = list(responses.response_ids[row]), responses.ended[row]
        return step_spans(ids[:-1] if ended else ids, self.decode, self.rule, ended)

    def _encoded(self, responses: Responses, row: int, characters: list[int], tokens: list[int]) -> StepIds:
        """What the model reads of a response whose steps end at the characters, and so at the tokens."""
        if self.reads_ids:
            return StepIds(list(responses.prompt_ids[row]), list(responses.response_ids[row]), [end - 1 for end in tokens])
        text = responses.texts[row]
        pieces = [text[start:end] for start, end in zip([0, *characters], characters)]
        try:
            return self.model.encode(responses.prompts[row], pieces, responses.ended[row])
        except BadRow as error:
            shown = text[:SHOWN] + ("..." if len(text) > SHOWN else "")
            found = f"the steps of the response {shown!r} cannot be judged: {error}"
            raise UserError(found, error.fix or "give another reward model", one_rank=True) from error
