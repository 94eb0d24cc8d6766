"""Texts through all sources that options name: the numbers of PPO, segment by segment."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from denserl.data.bad_rows import BadRow
from denserl.data.batching import ResponseBatch, in_length_batches, pad_rows
from denserl.data.conversations import Conversation
from denserl.data.responses import Encoded, Responses
from denserl.errors import UserError, require
from denserl.ppo_utils.dense_reward import DenseRewards
from denserl.rewards.sources.base import Scores
from denserl.scored.config import ScoreConfig
from denserl.scored.results import ScoredResponse, Segment, SourceInfo, SourceScore
from denserl.scored.shown import Scored
from denserl.scored.sources import load_sources
from denserl.scored.tokens import Tokens
from denserl.segmentation import Segments
from denserl.trainer.ppo_rewards import Rewards, join_scores

# Of one response: what sources that read batches say, by name, and the entropies of its tokens (T,).
Told = tuple[dict[str, Scores], Tensor]


@dataclass
class DenseScorer:
    """Scores responses by all sources that options name, and says what train-ppo would pay for them.

    rewards, tokens: the sources, and how texts become what they read. infos: about each source.
    entropies: batch -> (B, T) nats of the frozen language model; None where nothing is cut by them.
    reward_clip: as of train-ppo. score_tokens: padded tokens per batch. calls: how often it was asked.
    """

    rewards: Rewards
    tokens: Tokens
    infos: Sequence[SourceInfo]
    entropies: Callable[[ResponseBatch], Tensor] | None = None
    reward_clip: float = 10.0
    score_tokens: int = 16384
    device: torch.device | str = "cpu"
    calls: int = 0

    @classmethod
    def from_config(cls, config: ScoreConfig) -> "DenseScorer":
        """The sources that the config names, loaded. UserError for what cannot be had, or does not go together."""
        return cls(**load_sources(config)._asdict(), reward_clip=config.reward_clip, score_tokens=config.score_tokens)

    def __call__(self, conversations: Sequence[Conversation]) -> list[Scored]:
        """What each response of some conversations scores.

        Raises:
            UserError: a prompt or a response that the chat template refuses, a source that fails or says what is not finite, or
                one that compares two responses where there are not two.
        """
        comparing = ", ".join(info.model for info in self.infos if info.kind == "pair")
        for number, conversation in enumerate(conversations, 1):
            alone = f"prompt {number} has one response, and {comparing} compares two"
            fix = "give two with `response`, or rows of `data` with several"
            require(not comparing or len(conversation.responses) > 1, alone, fix)
        if not conversations:
            return []
        encoded = [self._encoded(each, number) for each in conversations for number in range(len(each.responses))]
        responses = self._responses(conversations, encoded)
        tokens, sources = self._paid(responses)
        ends = [self._ends(responses, row) for row in range(len(encoded))]
        of_sources = [_scores(info, source, responses.texts, ends) for info, source in zip(self.infos, sources, strict=True)]
        rows = zip(encoded, responses.texts, tokens.sum(1).tolist(), zip(*of_sources, strict=True), strict=True)
        return [
            Scored(each.prompt, tuple(_response(name, *row) for name, row in zip(each.names, rows))) for each in conversations
        ]

    def _encoded(self, conversation: Conversation, number: int) -> Encoded:
        try:
            prompt, response = conversation.prompt, conversation.responses[number]
            return self.tokens.encode(prompt, response, conversation.ended[number])
        except BadRow as error:
            fix = error.fix or "correct it" if conversation.prompt else "give what was said before it with `prompt`"
            raise UserError(f"{conversation.names[number]} cannot be scored: {error}", fix) from error

    def _responses(self, conversations: Sequence[Conversation], encoded: Sequence[Encoded]) -> Responses:
        """The record of all responses, one after the other."""
        of_each = [number for number, conversation in enumerate(conversations) for _ in conversation.responses]
        texts = [self.tokens.decode(row.response_ids) for row in encoded]
        labels = [conversations[number].label for number in of_each]
        known = [label for label in labels if label is not None]
        require(len(known) in (0, len(labels)), "some prompts have a right answer, and some have none", "give it for all")
        reads = any(info.kind == "text" for info in self.infos)
        found, fix = "a right answer has no effect: no function or server reads it", "leave `label` or `label_column` out"
        require(reads or not known, found, fix)
        ids = [row.prompt_ids for row in encoded], [row.response_ids for row in encoded], [row.ended for row in encoded]
        return Responses([conversations[number].prompt for number in of_each], texts, *ids, known, of_each)

    def _paid(self, responses: Responses) -> tuple[Tensor, list[DenseRewards]]:
        """(B, T) what is paid for tokens, and what each source alone comes to, as in PPO."""
        self.rewards.begin(f"score-{self.calls:06d}")
        self.calls += 1
        with torch.no_grad():
            batch = responses.padded(self.tokens.pad_id, self.device)
            whole = self.rewards.score(responses, batch, of_rollouts=True)
        lengths = [len(prompt) + len(ids) for prompt, ids in zip(responses.prompt_ids, responses.response_ids, strict=True)]
        parts = in_length_batches(lambda rows: self._told(responses.rows(rows)), lengths, self.score_tokens)
        joined = {name: join_scores([scores[name] for scores, _ in parts]) for name in parts[0][0]} | whole
        entropy = pad_rows([values.tolist() for _, values in parts], 0.0, torch.float32).to(self.device)
        ended = torch.tensor(responses.ended, device=self.device)
        mask, ids = batch.response_mask, batch.response_ids
        tokens, sources = self.rewards.pay(joined, entropy, mask, ids, ended)
        return tokens.clamp(-self.reward_clip, self.reward_clip), sources

    def _told(self, responses: Responses) -> list[Told]:
        """What is said of some responses in one batch, of each alone."""
        batch = responses.padded(self.tokens.pad_id, self.device)
        scores = self.rewards.score(responses, batch)
        width = batch.response_mask.shape[1]
        entropy = self.entropies(batch) if self.entropies else torch.zeros(len(responses.texts), width)
        return [
            ({name: _row(of_source, row) for name, of_source in scores.items()}, entropy[row, : len(ids)])
            for row, ids in enumerate(responses.response_ids)
        ]

    def _ends(self, responses: Responses, row: int) -> list[int]:
        """How many characters of a response's text are whole after each of its tokens."""
        ids, text = list(responses.response_ids[row]), responses.texts[row]
        content = ids[:-1] if responses.ended[row] else ids
        return self.tokens.ends(content, text) + [len(text)] * (len(ids) - len(content))


def _response(name: str, encoded: Encoded, text: str, paid: float, scores: tuple[SourceScore, ...]) -> ScoredResponse:
    return ScoredResponse(name, text, encoded.ended, encoded.prompt_cut, encoded.response_cut, paid, scores)


def _scores(info: SourceInfo, source: DenseRewards, texts: Sequence[str], ends: Sequence[list[int]]) -> list[SourceScore]:
    """What one source says of each response. ends: characters of its text that are whole after each of its tokens.

    UserError where a number is not finite.
    """
    columns, found = torch.stack([*source.of_segments().values()], -1).tolist(), []
    totals = zip(source.score.tolist(), source.changes.sum(1).tolist(), strict=True)
    for row, (text, total) in enumerate(zip(texts, totals, strict=True)):
        lengths = source.segments.lengths[row, : int(source.segments.counts[row])].tolist()
        stops = [0, *(ends[row][token - 1] for token in itertools.accumulate(lengths))]
        places = itertools.pairwise(stops)
        segments = tuple(Segment(a, b, text[a:b], *numbers) for (a, b), numbers in zip(places, columns[row]))
        numbers = [*total, *(number for segment in segments for number in (segment.raw, segment.normalised, segment.paid))]
        fix = "try `dtype` fp32, or another source"
        require(all(map(math.isfinite, numbers)), f"{info.model}: not all scores are finite", fix)
        found.append(SourceScore(info, *total, segments))
    return found


def _row(scores: Scores, row: int) -> Scores:
    """What is said of one response of a batch."""
    segments = scores.segments and Segments(*(part[row : row + 1] for part in scores.segments))
    return scores._replace(values=scores.values[row : row + 1], segments=segments)
