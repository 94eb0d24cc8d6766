"""Reward models, and models that read two answers in one text, as judges: numbers in the place of verdicts in words."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy.special import expit

from denserl.data.bad_rows import BadRow
from denserl.data.messages import response_of
from denserl.data.responses import Messages
from denserl.errors import UserError
from denserl.judging.contract import Comparison, Judge, Judgement, Said
from denserl.rewards.config import ScorerConfig
from denserl.rewards.ranking import chances
from denserl.rewards.sources.build import load_members
from denserl.rewards.sources.pair_model import PairModel, pair_model_of
from denserl.rewards.step_scorer import compares_answers, load_scorer

Encoded = TypeVar("Encoded")


class Scorer(Protocol):
    """See `rewards.scorer.RewardScorer`."""

    def encode(self, prompt: Messages, response: Any) -> Any: ...

    def score(self, encoded: Sequence) -> np.ndarray: ...

    def describe(self) -> dict: ...


class ScoreJudge:
    """What scores single answers, as a judge: the first one is better with probability sigmoid(r_first - r_second).

    On several ranks all are given the same comparisons, and share the work.

    hard: only which score is higher counts; equal ones are a tie.
    """

    def __init__(self, scorer: Scorer, hard: bool = False):
        self.scorer, self.hard = scorer, hard

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """A judgement of each comparison, in their order.

        Raises:
            UserError: the model's chat template refuses a prompt or an answer, or a score is not finite.
        """
        if not comparisons:
            return []
        encoded = _each(comparisons, lambda each: [self.scorer.encode(*_asked(each.prompt, said)) for said in each[1:]])
        scores = self.scorer.score([answer for both in encoded for answer in both]).reshape(-1, 2)
        return _judgements(expit(scores[:, 0] - scores[:, 1]), self.hard)

    def describe(self) -> dict[str, Any]:
        """How the judgements came about, for a file of results."""
        return {**self.scorer.describe(), "hard": self.hard}


class PairJudge:
    """A model that compares two answers, as a judge, in both orders: the mean probability that the first one is better.

    path: what the model is called. hard: as of `ScoreJudge`.
    """

    def __init__(self, model: PairModel, path: str, hard: bool = False):
        self.model, self.path, self.hard = model, path, hard
        self.cut = 0  # of the comparisons that were made last, those in which something was cut

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """See `ScoreJudge.compare`."""
        encoded = _each(comparisons, lambda each: self.model.encode(each.prompt, _alone(each.first), _alone(each.second)))
        self.cut = sum(pair.is_cut for pair in encoded)
        return _judgements(chances(self.model.score(encoded)), self.hard)

    def describe(self) -> dict[str, Any]:
        """How the judgements came about, for a file of results."""
        how = {"pair_layout": self.model.layout, "max_length": self.model.max_length, "cut": self.cut}
        return {"scorer": self.path, **how, "hard": self.hard}


def load_model_judge(
    paths: Sequence[str], config: ScorerConfig, device: torch.device, dtype: str, hard: bool = False, **how: Any
) -> Judge:
    """The reward models at the paths, of whatever kind, as one judge.

    Args:
        how: what is to be read otherwise than is stored with them (`step_scorer.load_scorer`).

    Raises:
        UserError: one cannot be loaded, does not go with the others, or has no use for an option that is given.
    """
    if not compares_answers(paths, config, **how):
        return ScoreJudge(load_scorer(paths, config, device, dtype, **how), hard)
    length: dict[str, Any] = {"max_length": config.max_length, "score_tokens": config.score_tokens}
    members = load_members(paths, dtype, config, template=how.get("template"))
    members.models[0].to(device)
    return PairJudge(pair_model_of(members, device=device, **length), paths[0], hard)


def _each(comparisons: Sequence[Comparison], encode: Callable[[Comparison], Encoded]) -> list[Encoded]:
    found = []
    for number, comparison in enumerate(comparisons, 1):
        try:
            found.append(encode(comparison))
        except BadRow as error:
            raise UserError(f"comparison {number}: {error}", error.fix or "leave it out") from error
    return found


def _asked(prompt: Messages, said: Said) -> tuple[Messages, str | dict]:
    """All messages before an answer's last one, and that."""
    return (prompt, said) if isinstance(said, str) else ([*prompt, *said[:-1]], response_of(said[-1]))


def _alone(said: Said) -> str | dict:
    """An answer that is one turn. BadRow for one of several."""
    before, last = _asked([], said)
    if before:
        raise BadRow("its answers are to different prompts, and cannot be compared", "give a model that scores single answers")
    return last


def _judgements(chances: np.ndarray, hard: bool) -> list[Judgement]:
    scores = (np.sign(chances - 0.5) + 1) / 2 if hard else chances
    return [Judgement(float(score)) for score in scores]
