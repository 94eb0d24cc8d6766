"""Rewards of responses by a model that compares two: how likely each beats others to the same prompt."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from denserl import distributed
from denserl.data.batching import ResponseBatch
from denserl.data.responses import Messages, Responses
from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.rewards.ranking import chances, list_scores, log_odds
from denserl.rewards.sources.base import Scores
from denserl.rewards.sources.pair_model import PairModel, PairOrders
from denserl.rewards.sources.texts import SHOWN
from denserl.rollouts.base import Sampler
from denserl.streams import Purpose, stream


class Answer(NamedTuple):
    """A response as it is compared with others."""

    text: str
    ended: bool


class Turn(NamedTuple):
    """A response to a prompt, and the number of the group of samples that it is of."""

    prompt: Messages
    prompt_ids: tuple[int, ...]
    answer: Answer
    group: int | None


class ReferenceAnswers:
    """One answer of the reference model to each prompt, sampled when it is first asked for; all ranks together.

    An answer depends on the seed and the prompt alone: a resumed run, and one on other ranks, samples the same.

    Args:
        sampler: of the reference model, with the settings of the run. decode: token ids -> text.
    """

    def __init__(self, sampler: Sampler, decode: Callable[[list[int]], str], seed: int):
        self.sampler, self.decode, self.seed = sampler, decode, seed
        self._known: dict[tuple[int, ...], Answer] = {}

    def __call__(self, prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
        """Of each prompt, as token ids; every rank gives the same prompts."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        mine = new[distributed.rank() :: distributed.world_size()]
        found = self.sampler([list(prompt) for prompt in mine], [self._stream(prompt) for prompt in mine])
        answers = [Answer(self.decode(ids), ended) for ids, ended in zip(found.responses, found.ended, strict=True)]
        for share in distributed.gather_objects(dict(zip(mine, answers, strict=True))):
            self._known |= share
        return [self._known[prompt] for prompt in prompts]

    def _stream(self, prompt: tuple[int, ...]) -> np.random.SeedSequence:
        content = hashlib.sha256(" ".join(map(str, prompt)).encode()).digest()
        return stream(self.seed, Purpose.OPPONENTS, int.from_bytes(content[:8], "big"))


class PairSource:
    """The log-odds of a response being better than others to its prompt, one number a response.

    Within a group of samples of one prompt their mean against each of the others, so that the rewards of a group add up to 0;
    for a response that is of no group the log-odds against the reference model's answer. Ranks share their responses: the
    samples of a group may be on several.

    Args:
        of_groups: whether samples are compared with those of their group, where they have one, or always with the reference.
    """

    def __init__(self, model: PairModel, reference: Callable[[Sequence[tuple[int, ...]]], list[Answer]], of_groups: bool):
        self.model, self.reference, self.of_groups = model, reference, of_groups

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """UserError for a response that the model's chat template or layout refuses. All ranks together."""
        device = batch.response_mask.device
        shares = distributed.gather_objects(self._turns(responses))
        turns = [turn for share in shares for turn in share]
        before = sum(map(len, shares[: distributed.rank()]))
        scores = self._scores(turns, dataclasses.replace(self.model, device=device))
        return Scores(torch.tensor(scores[before : before + len(responses.texts)], dtype=torch.float32, device=device))

    def _turns(self, responses: Responses) -> list[Turn]:
        groups = responses.groups if self.of_groups and len(responses.groups) else [None] * len(responses.texts)
        answers = map(Answer, responses.texts, responses.ended)
        return [Turn(*row) for row in zip(responses.prompts, map(tuple, responses.prompt_ids), answers, groups, strict=True)]

    def _scores(self, turns: Sequence[Turn], model: PairModel) -> list[float]:
        groups: dict[int, list[int]] = {}
        for number, turn in enumerate(turns):
            if turn.group is not None:
                groups.setdefault(turn.group, []).append(number)
        met = [pair for members in groups.values() for pair in itertools.combinations(members, 2)]
        alone = [number for number, turn in enumerate(turns) if turn.group is None]
        others = self.reference([turns[number].prompt_ids for number in alone]) if alone else []
        pairs = [self._encoded(model, turns[i], turns[j].answer) for i, j in met]
        pairs += [self._encoded(model, turns[i], other) for i, other in zip(alone, others, strict=True)]
        found = chances(model.score(pairs, progress=""))
        scores = dict(zip(alone, log_odds(found[len(met) :]).tolist(), strict=True))
        won = dict(zip(met, found.tolist()))
        for members in groups.values():
            matrix = [[0.5 if i == j else won[i, j] if i < j else 1 - won[j, i] for j in members] for i in members]
            scores |= dict(zip(members, list_scores(matrix, "logit").tolist(), strict=True))
        return [scores[number] for number in range(len(turns))]

    def _encoded(self, model: PairModel, turn: Turn, other: Answer) -> PairOrders:
        try:
            return model.encode(turn.prompt, turn.answer.text, other.text, (turn.answer.ended, other.ended))
        except BadRow as error:
            shown = turn.answer.text[:SHOWN] + ("..." if len(turn.answer.text) > SHOWN else "")
            found = f"the response {shown!r} cannot be compared: {error}"
            raise UserError(found, error.fix or "give another reward model") from error
