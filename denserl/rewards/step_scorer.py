"""Scores of solutions by models that judge steps; and which scorer a reward model needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from denserl.config import options_of
from denserl.data.chat import as_text
from denserl.data.responses import Messages, Responses
from denserl.data.step_encoding import StepIds
from denserl.data.templates import template_settings
from denserl.errors import UserError, require
from denserl.rewards.aggregation import aggregate_steps
from denserl.rewards.config import ReadConfig, ScorerConfig
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import Members, check_scores, compares, judges_steps, load_members, step_model_of
from denserl.rewards.sources.reading import STEP, chosen_rule
from denserl.rewards.sources.step_model import StepModel, StepSource
from denserl.steps import scored_ends, with_separators

# Of the ways that are stored with reward models those that make sense of chances.
OF_CHANCES = {"avg": "mean", "min": "min", "last": "last"}


class StepModelScorer:
    """Scores of responses by a model of steps: the text is cut as the model was taught, and the chances of its steps are one.

    Args:
        model: see `StepModel`. paths: of its members, for messages. aggregate: one of STEP_AGGREGATIONS.
    """

    is_model = True

    def __init__(self, model: StepModel, paths: Sequence[str], aggregate: str = "min"):
        self.model, self.paths, self.aggregate = model, list(paths), aggregate

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> np.ndarray:
        """Scores in the order given: (n,) fp64. BadRow where the chat template refuses a prompt or a response."""
        return self.score([self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)])

    def of_responses(self, responses: Responses, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
        """Scores of responses that a model of `tokenizer` wrote: (n,) fp64; of the very token ids where these can be read.

        Raises:
            UserError: the chat template refuses a prompt or a response. BadRow: one is too long.
        """
        _, rows = StepSource(self.model, self.model.rule, tokenizer).encode(responses)
        return self.score([self.model.fit(row) for row in rows])

    def encode(self, prompt: Messages, response: str, ended: bool = True) -> StepIds:
        """A response as its steps are read. BadRow where the chat template refuses it, or it is too long."""
        ends = scored_ends(response, self.model.rule, ended)
        return self.model.encode(prompt, [response[a:b] for a, b in zip([0, *ends], ends)], ended)

    def encode_steps(self, prompt: Messages, steps: Sequence[str]) -> StepIds:
        """A solution of given steps, parted as rows of steps are in training. BadRow as of `encode`."""
        stripped = [step.strip() for step in steps]
        return self.model.encode(prompt, with_separators(stripped, self.model.rule.separators[0]))

    def score(self, encoded: Sequence[StepIds]) -> np.ndarray:
        """The scores of what `encode` gave: (n,) fp64. A response without steps has 0."""
        logits = [torch.from_numpy(row) for row in self.step_scores(encoded)]
        counts = torch.tensor([len(row) for row in logits])
        return aggregate_steps(pad_sequence(logits, batch_first=True), counts, self.aggregate).numpy()

    def step_scores(self, encoded: Sequence[StepIds]) -> list[np.ndarray]:
        """The logits of the steps of what `encode` or `encode_steps` gave, (K,) fp64 each.

        Raises:
            UserError: one is not finite.
        """
        # Equal ones are judged once: in two batches their numbers could differ by rounding, and would not tie.
        first: dict[tuple, int] = {}
        place = [first.setdefault(tuple(map(tuple, row)), len(first)) for row in encoded]
        logits = self.model.score([StepIds(*map(list, row)) for row in first])
        if not all(np.isfinite(row).all() for row in logits):
            names = ", ".join(self.paths)
            raise UserError(f"{names}: not all logits of steps are finite", "try `dtype` fp32, or another model")
        return [np.array(logits[row], dtype=np.float64) for row in place]

    def text(self, prompt: Messages, response: str) -> str:
        """What is scored, as the chat template renders it where steps are no turns."""
        return as_text(self.model.tokenizer, [*prompt, {"role": "assistant", "content": response}])

    def describe(self) -> dict[str, Any]:
        """How the scores came about, for a file of results."""
        model, several = self.model, len(self.paths) > 1
        rule = {"step_pattern": model.rule.pattern} if model.rule.pattern else {"step_separator": list(model.rule.separators)}
        return {
            "scorer": self.paths if several else self.paths[0],
            **({"ensemble": model.how, "ensemble_weight": model.weight} if several else {}),
            "aggregate": self.aggregate,
            **rule,
            "max_steps": model.rule.most,
            "context_signs": model.layout.context_signs,
            "max_length": model.max_length,
            **{name: value for name, value in template_settings(model.tokenizer).items() if value is not None},
        }


def load_scorer(
    paths: Sequence[str],
    config: ScorerConfig,
    device: torch.device,
    dtype: str,
    *,
    read: ReadConfig | None = None,
    sft_model: str | None = None,
    aggregate: str | None = None,
    template: dict[str, Any] | None = None,
    trusted: Sequence[str | None] = (),
) -> RewardScorer | StepModelScorer:
    """The scorer of the reward models at the paths: models that were trained on labels judge the steps of a text.

    Those that compare responses have none (`compares_answers`).

    Args:
        read, sft_model, template, trusted: as of `RewardScorer`. aggregate: how the chances of steps make the score of a
            response, if not as is stored.

    Raises:
        UserError: a model cannot be loaded, does not go with the others, or has no use for an option that is given.
    """
    names = ", ".join(paths)
    check_scores(paths, config)
    if not all(judges_steps(path, config) for path in paths):
        require(aggregate is None, f"`aggregate` {aggregate} has no effect: {names} gives rewards", "leave it out")
        how: dict[str, Any] = {"read": read, "sft_model": sft_model, "template": template, "trusted": trusted}
        return RewardScorer.from_config(paths, config, device, dtype, **how)
    read = read or ReadConfig()
    _check_idle(names, read, sft_model)
    members = load_members(paths, dtype, config, template=template)
    for model in members.models:
        model.to(device)
    rule = chosen_rule(read, members.each, members.paths)
    how = {**config.combination(), "rule": rule, "device": device}
    model = step_model_of(members, max_length=config.max_length, score_tokens=config.score_tokens, **how)
    return StepModelScorer(model, paths, aggregate or _stored_aggregate(members))


def compares_answers(
    paths: Sequence[str], config: ScorerConfig, *, rank: str | None = None, read: ReadConfig | None = None, **how: Any
) -> bool:
    """Whether the model at the paths compares answers two by two, and needs no scorer of these; no model is loaded.

    Raises:
        UserError: models that do not go together, or an option that is given and that they have no use for.
    """
    if compares(paths, config):
        _check_of_pairs(paths[0], read, how)
        return True
    found = f"`rank` {rank} has no effect: {', '.join(paths)} scores responses one by one"
    require(rank is None, found, "leave `rank` out")
    return False


def _check_of_pairs(path: str, read: ReadConfig | None, how: dict[str, Any]) -> None:
    """UserError for an option that a model which compares responses has no use for."""
    of_reading = {option.name: getattr(read, option.name) for option in options_of(ReadConfig)} if read else {}
    for option, value in {**of_reading, **{name: how.get(name) for name in ("sft_model", "aggregate")}}.items():
        fix = f"leave `{option}` out"
        require(value in (None, False), f"`{option}` {value} has no effect: {path} compares whole responses", fix)


def _check_idle(names: str, read: ReadConfig, sft_model: str | None) -> None:
    """UserError for an option that models of steps have no use for."""
    idle = {"sft_model": sft_model, "entropy_threshold": read.entropy_threshold, "read_at": read.read_at}
    idle["segmenter"] = None if read.segmenter == STEP else read.segmenter
    for option, value in idle.items():
        require(value is None, f"`{option}` {value} has no effect: {names} judges the steps of a text", "leave it out")


def _stored_aggregate(members: Members) -> str:
    stored = members.stored.agg_func
    if stored not in OF_CHANCES:
        names = ", ".join(members.paths)
        raise UserError(f"{names}: the stored aggregation is {stored}, which chances of steps have not", "give `aggregate`")
    return OF_CHANCES[stored]
