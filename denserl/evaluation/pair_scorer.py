"""Scores of answers by a model that compares them two by two: of each among the others to the same question."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from denserl.data.chat import as_text
from denserl.data.responses import Messages, Responses
from denserl.data.templates import template_settings
from denserl.evaluation.items import ListScorer, ListScores
from denserl.rewards.config import ReadConfig, ScorerConfig
from denserl.rewards.ranking import chances, knockouts, list_scores
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import load_members
from denserl.rewards.sources.pair_model import PairModel, PairOrders, pair_model_of
from denserl.rewards.step_scorer import StepModelScorer, compares_answers, load_scorer
from denserl.streams import Purpose, stream

log = logging.getLogger(__name__)

DEFAULT_RANK = "win_rate"


class Comparisons(NamedTuple):
    """The comparisons of the answers to a question with one another, as they are read."""

    answers: int
    pairs: dict[tuple[int, int], PairOrders]  # i < j


class PairScorer(ListScorer):
    """Scores of answers by a model that compares two of them, in both orders.

    Of two answers each has the probability that it is better. Several are ranked by a rule of denserl/rewards/ranking.py: all
    are compared with one another, n (n - 1) texts, but for the rule knockout, in which the best so far meets the next in a
    seeded order, 2 (n - 1) texts.

    Args:
        path: of the model, for results. rank: the rule. seed: of the order of a knockout.
    """

    def __init__(self, model: PairModel, path: str, rank: str = DEFAULT_RANK, seed: int = 0):
        self.model, self.path, self.rank, self.seed = model, path, rank, seed
        self.one_winner = rank == "knockout"
        self.shortened: dict[str, int] = {}  # of what was compared last

    def encode_list(self, prompt: Messages, texts: Sequence[str], ended: Sequence[bool] | None = None) -> Comparisons:
        """Answers as they are compared. BadRow where the chat template or the layout refuses them, or two do not fit.

        ended: whether each came to its end; default: all did.
        """
        whole = ended or [True] * len(texts)
        pairs = itertools.combinations(range(len(texts)), 2)
        return Comparisons(
            len(texts),
            {(i, j): self.model.encode(prompt, texts[i], texts[j], (whole[i], whole[j])) for i, j in pairs},
        )

    def score_lists(self, encoded: Sequence[Comparisons]) -> list[ListScores]:
        """Scores of lists of answers. UserError where the model gives no finite numbers."""
        if self.one_winner:
            return self._by_knockout(encoded)
        return [ListScores(self._scores(log_odds), log_odds) for log_odds in self.compare(encoded)]

    def compare(self, encoded: Sequence[Comparisons]) -> list[np.ndarray]:
        """(n, n) log-odds of each list, at [i, j] that answer i, standing first, is better than j; NaN on the diagonal."""
        found = [np.full((each.answers, each.answers), np.nan) for each in encoded]
        self._ask([(number, *pair) for number, each in enumerate(encoded) for pair in each.pairs], encoded, found)
        return found

    def of_samples(self, responses: Responses, count: int) -> np.ndarray:
        """(P, N, N) probabilities that one of the `count` responses to a prompt, which stand together, is better than another.

        Raises:
            BadRow, UserError: as of `encode_list` and `score_lists`.
        """
        places = [range(first, first + count) for first in range(0, len(responses.texts), count)]
        lists = [
            self.encode_list(responses.prompts[rows[0]], [responses.texts[i] for i in rows], [responses.ended[i] for i in rows])
            for rows in places
        ]
        return np.stack([probabilities(log_odds) for log_odds in self.compare(lists)])

    def text(self, prompt: Messages, response: str) -> str:
        """An answer by itself as the chat template renders it."""
        return as_text(self.model.tokenizer, [*prompt, {"role": "assistant", "content": response}])

    def describe(self) -> dict[str, Any]:
        """How the scores came about, for a file of results."""
        return {
            "scorer": self.path,
            "rank": self.rank,
            "pair_layout": self.model.layout,
            "max_length": self.model.max_length,
            "shortened": self.shortened,
            **{name: value for name, value in template_settings(self.model.tokenizer).items() if value is not None},
        }

    def _scores(self, log_odds: np.ndarray) -> np.ndarray:
        found = probabilities(log_odds)
        return np.array([found[0, 1], found[1, 0]]) if len(found) == 2 else list_scores(found, self.rank)

    def _by_knockout(self, encoded: Sequence[Comparisons]) -> list[ListScores]:
        found = [np.full((each.answers, each.answers), np.nan) for each in encoded]
        orders = [
            np.random.default_rng(stream(self.seed, Purpose.KNOCKOUT, number)).permutation(each.answers).tolist()
            for number, each in enumerate(encoded)
        ]

        def judge(meetings: Sequence[tuple[int, int, int]]) -> np.ndarray:
            self._ask([(number, min(i, j), max(i, j)) for number, i, j in meetings], encoded, found)
            return chances([(found[number][i, j], found[number][j, i]) for number, i, j in meetings])

        winners = knockouts(orders, judge)
        return [
            ListScores(self._scores(log_odds) if len(log_odds) == 2 else np.eye(len(log_odds))[winner], log_odds)
            for winner, log_odds in zip(winners, found, strict=True)
        ]

    def _ask(
        self, meetings: Sequence[tuple[int, int, int]], encoded: Sequence[Comparisons], found: Sequence[np.ndarray]
    ) -> None:
        """Put the log-odds of answers i < j of some lists into their places."""
        pairs = [encoded[number].pairs[i, j] for number, i, j in meetings]
        for (number, i, j), both in zip(meetings, self.model.score(pairs), strict=True):
            found[number][i, j], found[number][j, i] = both
        cut = sum(pair.is_cut for pair in pairs)
        asked = self.shortened
        self.shortened = {"pairs": asked.get("pairs", 0) + len(pairs), "cut": asked.get("cut", 0) + cut}
        if cut:
            most = self.model.max_length
            log.warning("%s: %d of %d pairs are cut to max_length %d", self.path, cut, len(pairs), most)


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """(n, n) log-odds of both orders -> the probabilities that one answer is better than another; NaN where there are none."""
    return chances(np.stack([log_odds, log_odds.T], -1))


def load_answer_scorer(
    paths: Sequence[str],
    config: ScorerConfig,
    device: torch.device,
    dtype: str,
    *,
    rank: str | None = None,
    seed: int = 0,
    template: dict[str, Any] | None = None,
    read: ReadConfig | None = None,
    **how: Any,
) -> RewardScorer | StepModelScorer | PairScorer:
    """The scorer of the reward models at the paths, of whatever kind.

    Args:
        rank, seed: as of `PairScorer`. template, read, how: as of `load_scorer`.

    Raises:
        UserError: a model cannot be loaded, does not go with the others, or has no use for an option that is given.
    """
    if not compares_answers(paths, config, rank=rank, read=read, **how):
        return load_scorer(paths, config, device, dtype, template=template, read=read, **how)
    members = load_members(paths, dtype, config, template=template)
    members.models[0].to(device)
    length: dict[str, Any] = {"max_length": config.max_length, "score_tokens": config.score_tokens}
    return PairScorer(pair_model_of(members, device=device, **length), paths[0], rank or DEFAULT_RANK, seed)
