"""Reward models as a source of scores: one as it is, or an ensemble, each member standardised before they are combined.

Segments and normalisers come after it, and are the same for one model and for several.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from denserl.data.batching import ResponseBatch, pad_responses, response_slots
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.models.folders import wrong_setting
from denserl.models.reward_settings import StoredSettings
from denserl.models.scoring import read_rewards
from denserl.rewards.aggregation import AGGREGATIONS, SHIFTED_WHOLE
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.rewards.sources.base import Parts, Scores, increments

ENSEMBLES = ("mean", "min", "mean_std")


class Moments(NamedTuple):
    """Mean and standard deviation of a reward model's scores of whole responses."""

    mean: float
    std: float


def combine(scores: Tensor, how: str = "mean", weight: float = 1.0) -> Tensor:
    """The scores of M members, (M, ...), as one, (...) fp32 (Coste et al., arXiv 2310.02743, section 4).

    Args:
        how: mean; min, the least of the members; mean_std, mean - weight * std over the members (biased), which distrusts
            what they do not agree on.

    Raises:
        ValueError: unknown `how`.
    """
    if how not in ENSEMBLES:
        raise ValueError(f"unknown ensemble {how!r}; known: {', '.join(ENSEMBLES)}")
    scores = scores.float()
    if how == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if how == "mean" else mean - weight * scores.std(0, correction=0)


class RewardModelSource:
    """Scores by one or several frozen reward models.

    One model's scores are taken as they are. Those of several are standardised, (score - mean) / std with the moments of the
    member's scores of whole responses, and combined token by token; since a response's score is the mean of its segments'
    (or the least, or the last), this puts segments and scores on one scale.

    Args:
        models: sequence classifiers in evaluation mode that share a tokenizer; may be wrapped (DeepSpeed, also ZeRO-3).
        moments: of each model; not needed for a single one.
        how, weight: see `combine`.
        closing: token ids that the chat template writes after the end of turn, where a response's one score is read at the
            last of them (`read_at` in models/reward_settings.py); None where scores are read at the response's own tokens.
        pad_id: needed with `closing`.

    Raises:
        ValueError: several models without the moments of each.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        moments: Sequence[Moments] | None = None,
        how: str = "mean",
        weight: float = 1.0,
        closing: Sequence[int] | None = None,
        pad_id: int = 0,
    ):
        if len(models) > 1 and len(moments or []) != len(models):
            raise ValueError(f"{len(models)} models with {len(moments or [])} moments: each member is standardised by its own")
        self.models, self.moments, self.how, self.weight = list(models), moments, how, weight
        self.closing, self.pad_id = closing, pad_id

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        """(B, T) scores; with `closing` one number a response, a cut-off one being read at its last token."""
        return self.told(responses, batch)[0]

    def told(self, responses: Responses, batch: ResponseBatch) -> tuple[Scores, Parts | None]:
        """The scores, and of a single member that rates attributes what they are made of."""
        if self.closing is None:
            return self._told(batch)
        batch = pad_responses(responses.prompt_ids, self.closed(responses), self.pad_id).to(batch.response_mask.device)
        (scores, parts), last = self._told(batch), batch.response_mask.sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        return Scores(scores.values[rows, last]), parts and parts._replace(ratings=parts.ratings[rows, last])

    def _told(self, batch: ResponseBatch) -> tuple[Scores, Parts | None]:
        """The same of every response token."""
        if len(self.models) > 1:
            return Scores(self.combined(batch)), None
        found = read_rewards(self.models[0], *batch[:3], logprob_rows=0, shared=batch.shared)
        width = batch.response_mask.shape[1]
        values = response_slots(found.scores, batch.response_start, width)
        if found.coefficients is None:
            return Scores(values), None
        ratings = response_slots(found.outputs[..., 1:], batch.response_start, width)
        return Scores(values), Parts(ratings, found.coefficients)

    def closed(self, responses: Responses) -> list[list[int]]:
        """The ids of each response up to the place where its one score is read."""
        return [
            [*ids, *(self.closing or () if ended else ())]
            for ids, ended in zip(responses.response_ids, responses.ended, strict=True)
        ]

    def combined(self, batch: ResponseBatch, before: int = 0) -> Tensor:
        """(B, before + T) scores of the members together, at the last `before` prompt tokens and at each response token."""
        scores = [response_token_rewards(model, batch, before) for model in self.models]
        if len(scores) == 1:
            return scores[0]
        standardised = [(score - mean) / std for score, (mean, std) in zip(scores, self.moments, strict=True)]
        return combine(torch.stack(standardised), self.how, self.weight)


class PrefixDifferences:
    """R(y_<=t) - R(y_<t) of a reward model of whole responses, at every token: what the token changes in the score so far.

    Potential-based shaping (Ng, Harada and Russell 1999) with the score of what has been said as potential: a response's sum
    is R(y) - R(prompt). A causal model tells all prefixes in one forward. R(prompt) is read at the prompt's last token, R(y)
    where the source reads it, and the end of turn is paid with the token before it.

    chances: the source's scores are logits, which judge what is before the end of turn: R is the chance of success, and R(y)
    is read at the last token before it.
    """

    def __init__(self, source: RewardModelSource, chances: bool = False):
        self.source, self.chances = source, chances

    @property
    def closing(self) -> Sequence[int] | None:
        """What is read behind the end of turn."""
        return self.source.closing

    def __call__(self, responses: Responses, batch: ResponseBatch) -> Scores:
        mask, closed = batch.response_mask, self.source.closed(responses)
        longer = pad_responses(responses.prompt_ids, closed, self.source.pad_id).to(mask.device)
        scores = self.source.combined(longer, before=1)
        last = longer.response_mask.sum(1, keepdim=True)
        if self.chances:
            scores = scores.sigmoid()
            last = mask.sum(1, keepdim=True) - torch.tensor(responses.ended, device=mask.device).long()[:, None]
        scores = scores.scatter(1, mask.sum(1, keepdim=True), scores.gather(1, last))
        width = mask.shape[1]
        return increments(scores[:, 1 : width + 1] - scores[:, :width], mask, responses.ended)


def stored_moments(each: Sequence[StoredSettings], paths: Sequence[str]) -> list[Moments] | None:
    """The moments that train-rm stored with several models; None for a single one, which needs none.

    Raises:
        UserError: a config has none, or a standard deviation that is not above 0; it names the folder.
    """
    if len(each) == 1:
        return None
    found = []
    for stored, path in zip(each, paths, strict=True):
        if stored.mean is None or stored.std is None or stored.std <= 0:
            raise UserError(
                f"{path}: a member of an ensemble needs a mean and a std > 0; its config has mean {stored.mean}, "
                f"std {stored.std}",
                "train it with denserl train-rm, which stores them, or leave it out",
            )
        found.append(Moments(stored.mean, stored.std))
    return found


def common_settings(each: Sequence[StoredSettings], paths: Sequence[str]) -> StoredSettings:
    """The stored settings of a source: a single model's own; of several what they agree on, None where they do not.

    The mean and std of an ensemble are taken to be 0 and 1, which its standardised members have each.

    Raises:
        UserError: an aggregation that is not known; or one, in several models, that they do not share or that does not carry
            what standardises a response's score over to its segments.
    """
    for stored, path in zip(each, paths, strict=True):
        if stored.agg_func not in AGGREGATIONS:
            raise wrong_setting(path, "agg_func", stored.agg_func, f"one of {', '.join(AGGREGATIONS)}")
    if len(each) == 1:
        return each[0]
    if len({stored.input for stored in each}) > 1:
        raise UserError(f"{', '.join(paths)}: some compare two responses, and some score one", "give models of one kind")
    if len({stored.scores for stored in each}) > 1:
        raise UserError(
            f"{', '.join(paths)}: some judge steps, whose scores are logits, and some give rewards",
            "give models of one kind",
        )
    if each[0].scores == "logit":
        return _agreed(each)
    found = {stored.agg_func for stored in each}
    if len(found) > 1 or not found <= {*SHIFTED_WHOLE}:
        raise UserError(
            f"{', '.join(paths)}: trained with the aggregation {', '.join(sorted(found))}; the members of an ensemble are "
            f"standardised token by token, which needs one of {', '.join(SHIFTED_WHOLE)}, the same in all",
            "give one reward model, or train the members with one such aggregation (denserl train-rm)",
        )
    return _agreed(each)._replace(mean=0.0, std=1.0)


def _agreed(each: Sequence[StoredSettings]) -> StoredSettings:
    """What all say alike; None for the rest."""
    return StoredSettings(*(values[0] if len(set(values)) == 1 else None for values in zip(*each, strict=True)))
