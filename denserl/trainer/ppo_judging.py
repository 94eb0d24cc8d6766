"""Held-out rollouts of PPO judged against the reference model's answers to the same prompts (docs/judging.md)."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from denserl import distributed
from denserl.config import ModelSourceConfig, options_of
from denserl.data.responses import Messages, Responses
from denserl.errors import require
from denserl.intervals import wilson
from denserl.judging.build import build_askers, build_judge
from denserl.judging.contract import Comparison, Judge, Judgement
from denserl.judging.models import load_model_judge
from denserl.judging.tallies import tally
from denserl.judging.templates import find_template
from denserl.rewards.config import ScorerConfig
from denserl.rewards.sources.pair_source import Answer
from denserl.trainer.checkpoint import read_state
from denserl.trainer.ppo_config import PPOConfig

log = logging.getLogger(__name__)

# What a judge is shown, by what is read of its answer.
TEMPLATES = {"text": "pairwise", "logprob": "pairwise-token"}


class Held(NamedTuple):
    """A response to the held-out prompt of that number."""

    number: int
    prompt: Messages
    prompt_ids: tuple[int, ...]
    text: str


class HeldOutJudge:
    """How often responses to held-out prompts are better than the reference model's.

    Args:
        reference: prompts as token ids -> an answer to each, the same whenever they are asked for (`ReferenceAnswers`).
    """

    def __init__(self, judge: Judge, reference: Callable[[Sequence[tuple[int, ...]]], list[Answer]]):
        self.judge, self.reference = judge, reference

    def __call__(self, responses: Responses, numbers: Sequence[int], count: int) -> dict[str, float]:
        """What is reported, `win_rate` of all ranks' responses; all ranks together.

        Args:
            numbers: of the prompts of this rank's responses; those from `count` on are no further prompts, and left out.

        Raises:
            UserError: the judge cannot be asked, or refuses. What it has answered is kept.
        """
        columns = (numbers, responses.prompts, map(tuple, responses.prompt_ids), responses.texts)
        mine = [held for held in map(Held, *columns) if held.number < count]
        # In the order of the prompts, so that any number of ranks asks the same.
        every = sorted((held for share in distributed.gather_objects(mine) for held in share), key=lambda held: held.number)
        others = self.reference([held.prompt_ids for held in every])
        pairs = [Comparison(held.prompt, held.text, other.text) for held, other in zip(every, others, strict=True)]
        return win_rate(self.judge.compare(pairs))


def make_judge(config: PPOConfig, device: torch.device, dtype: str) -> Judge | None:
    """The judge of held-out rollouts that options name; answers of one that is asked in words are kept in the output folder.

    Raises:
        UserError: there is none such, or it cannot be reached.
    """
    if config.judge_reward_model:
        source = {option.name: getattr(config, option.name) for option in options_of(ModelSourceConfig)}
        return load_model_judge(config.judge_reward_model, ScorerConfig(**source), device, dtype)
    if not config.judge:
        return None
    template = find_template(config.judge_template or TEMPLATES[config.judge_verdict], "compare")
    return build_judge(config, template, build_askers(config, config.output_dir, device, dtype), config.judge_orders)


def check_limit(config: PPOConfig, checkpoint: Path | None, iterations: int, prompts: int) -> None:
    """Say at the start how many answers of judges the rest of a run may ask for. UserError where that is over the limit.

    checkpoint: from which it goes on.
    """
    if not config.judge:
        return
    done, apart = read_state(checkpoint)["iteration"] if checkpoint else 0, config.eval_every * config.eval_judge
    times = sum(iteration > done for iteration in {*range(apart, iterations + 1, apart), iterations})
    orders = 2 if config.judge_orders == "both" else 1
    most = times * prompts * orders * config.judge_votes * len(config.judge)
    said = f"{times} held-out rollouts of {prompts} prompts are to be judged, by at most {most} answers"
    fix = f"give `judge_limit` {most}, judge less often with `eval_judge`, or fewer prompts with `eval_limit`"
    require(config.judge_limit is None or most <= config.judge_limit, f"{said}, and `judge_limit` is {config.judge_limit}", fix)
    log.info("%s", said)


def win_rate(judgements: Sequence[Judgement]) -> dict[str, float]:
    """The mean score of judgements of a policy's answers, which are the first ones, by what it is called in metrics.

    Returns:
        judge_win_rate: a tie is half a win. judge_win_rate_low, judge_win_rate_high: Wilson's 95 % interval of it, of
            independent prompts, which scores between 0 and 1 make wider than need be. Not there where no verdict is valid.
        judge_undecided: the share of prompts without a valid verdict, which are left out.
        judge_consistency: the share of those with valid verdicts in both orders that agree; not there where there are none.
    """
    told, scores = tally(judgements), [judgement.score for judgement in judgements if judgement.score is not None]
    found = {"judge_undecided": told["undecided"] / len(judgements)}
    if told["position_consistency"] is not None:
        found["judge_consistency"] = told["position_consistency"]
    if not scores:
        return found
    mean = sum(scores) / len(scores)
    low, high = wilson(mean, len(scores))
    return {"judge_win_rate": mean, "judge_win_rate_low": low, "judge_win_rate_high": high, **found}
