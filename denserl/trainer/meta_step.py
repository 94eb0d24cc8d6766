"""MetaRM: each optimiser step learns where weights would be if they told the present policy's responses further apart.

theta' = theta + lr grad J(theta) on responses without labels; the loss's gradient is taken at theta', and the optimiser goes
from theta (arXiv 2401.06080, section 4). J is `separation`; how weights are moved and put back is in lookahead.py.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import in_halves, length_batches, rank_batches
from denserl.data.features import longest_row
from denserl.data.order import endless_rows
from denserl.data.policy_samples import ENDED, GROUP, SIDE, load_samples, tokenize_samples
from denserl.models.dropout import without_dropout
from denserl.models.positions import check_positions
from denserl.rewards.objectives import separation
from denserl.rewards.pairs import with_entropies
from denserl.segmentation import Segmenter
from denserl.streams import Purpose, stream
from denserl.trainer.engine import trained_parameters
from denserl.trainer.lookahead import Moved, RankGradient
from denserl.trainer.reference import in_shares
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_pairs import cutting_model

log = logging.getLogger(__name__)

# Rows of a MetaSet -> (B,) scores of the responses.
Score = Callable[[Sequence[dict]], Tensor]


class MetaSet(NamedTuple):
    """Responses of a policy, tokenised."""

    rows: Dataset  # prompt_ids, response_ids, ended, and response_entropy where entropies cut; a row a response
    prompts: list[list[int]]  # the rows of each prompt, k or more

    def of(self, numbers: Sequence[Sequence[int]]) -> list[dict]:
        """Rows, prompt by prompt."""
        return [self.rows[number] for each in numbers for number in each]


class MetaStep:
    """The step from theta to theta' and back, for each optimiser step of a training.

    Args:
        lr: of the step. many: responses to a prompt that are compared (k). prompts: of a step, all ranks together.
        at_once: prompts of a forward on one rank. seed: of which responses are drawn, which the step's number decides beside.
    """

    def __init__(self, data: MetaSet, *, lr: float, many: int, prompts: int, at_once: int, seed: int):
        self.data, self.lr, self.many, self.at_once, self.seed = data, lr, many, at_once, seed
        self.prompts = min(prompts, len(data.prompts))
        self._moved: Moved | None = None

    def drawn(self, step: int) -> list[list[int]]:
        """The rows of an optimiser step, `many` of each of its prompts."""
        total = len(self.data.prompts)
        chosen = endless_rows(step * self.prompts, self.prompts, total, self.seed, Purpose.META_PROMPTS)
        random = np.random.default_rng(stream(self.seed, Purpose.META_RESPONSES, step))
        return [random.permutation(self.data.prompts[prompt])[: self.many].tolist() for prompt in chosen]

    def move(self, model: nn.Module, score: Score, step: int, let_go: Callable[[], None]) -> dict[str, Tensor]:
        """Move the trained weights of a model to theta', until `back`. Collective.

        model: its modules, not an engine. score: by that model, with its graph. let_go: as of `Moved`.

        Returns: this rank's sum of J over prompts, at theta, and their number.
        """
        drawn, world = self.drawn(step), distributed.world_size()
        mine, rounds = drawn[distributed.rank() :: world], -(-len(drawn) // world)
        parameters = trained_parameters(model)
        gradient, total = RankGradient(parameters) if self.lr else None, torch.zeros((), device=parameters[0].device)
        with without_dropout(model), torch.set_grad_enabled(self.lr > 0):
            for first in range(0, rounds, self.at_once):
                # A rank that has no prompt left goes along: under ZeRO-3 all run the model together.
                part = mine[first : first + self.at_once]
                found = separation(score(self.data.of(part or drawn[:1])).view(-1, self.many)).sum() * bool(part)
                total += found.detach()
                if gradient is not None:
                    gradient.add(found / len(drawn))
        if gradient is not None:
            numbers = stream(self.seed, Purpose.META_ROUNDING, step).generate_state(1)
            self._moved = Moved(parameters, gradient.total(), self.lr, int(numbers[0]), let_go)
        return {"separation": total, "prompts": torch.full_like(total, len(mine))}

    def back(self) -> None:
        """Put the weights back to theta, to the bit."""
        if self._moved is not None:
            self._moved.back()
        self._moved = None


def mean_separation(data: MetaSet, score: Score, max_tokens: int, together: bool) -> float:
    """J of all responses to each prompt, equally many, the mean over prompts. Collective.

    max_tokens: padded tokens of a forward. together: see `in_halves`.
    """
    many = len(data.prompts[0])
    each = [[len(row["prompt_ids"]) + len(row[f"{SIDE}_ids"]) for row in data.of([rows])] for rows in data.prompts]
    total = torch.zeros((), dtype=torch.float64)

    def of_part(part: list[int]) -> Tensor:
        with torch.no_grad():
            return separation(score(data.of([data.prompts[i] for i in part])).view(-1, many)).sum()

    for batch, counted in rank_batches(length_batches([many * max(lengths) for lengths in each], max_tokens)):
        for found in in_halves(of_part, batch, together):
            total = total.to(found.device) + (found if counted else 0)
    return distributed.all_sum(total).item() / len(data.prompts)


def load_meta(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, MetaSet]:
    """The responses that options name, by option, without entropies. UserError for what cannot be used."""
    return {option: _load(config, option, tokenizer) for option in ("meta_data", "meta_eval") if getattr(config, option)}


def meta_of(
    config: RewardConfig,
    loaded: Mapping[str, MetaSet],
    tokenizer: PreTrainedTokenizerBase,
    segmenter: Segmenter,
    device: torch.device,
    dtype: str,
) -> tuple[dict[str, Any], dict[str, Dataset]]:
    """What the options of the meta step give a trainer, by the names of its arguments, and the rows that it learns from.

    loaded: by `load_meta`; entropies that cut are added as they are to pairs.
    """
    given: dict[str, Any] = {}
    learned: dict[str, Dataset] = {}
    many = config.meta_samples
    for option, data in loaded.items():
        if segmenter.reads_entropy:
            cut_by = (cutting_model(config, segmenter), tokenizer, device, dtype, in_shares(config, dtype, device))
            data = data._replace(rows=with_entropies(data.rows, config, config, *cut_by, sides=(SIDE,)))
        if option == "meta_eval":
            given["meta_held_out"] = data._replace(prompts=[rows[:many] for rows in data.prompts])
            continue
        lr = 10 * config.lr if config.meta_lr is None else config.meta_lr
        # As many responses as in a forward of pairs.
        at_once = max(1, 2 * config.micro_batch_size // many)
        given["meta"] = MetaStep(data, lr=lr, many=many, prompts=config.meta_prompts, at_once=at_once, seed=config.seed)
        learned[option] = data.rows.select_columns(["prompt_ids", f"{SIDE}_ids", ENDED])
    return given, learned


def _load(config: RewardConfig, option: str, tokenizer: PreTrainedTokenizerBase) -> MetaSet:
    how: dict[str, Any] = {"split": config.split, "seed": config.seed, **config.source_beside()}
    ids: dict[str, Any] = {"many": config.meta_samples, "max_length": config.max_length, "on_bad_row": config.on_bad_row}
    rows = tokenize_samples(load_samples(getattr(config, option), **how), tokenizer, **ids, cache_dir=config.cache_dir)
    longest = longest_row(rows, "prompt_ids", f"{SIDE}_ids")
    fix = "give a `max_length` of at most {}"
    check_positions(longest, [config.model], config, f"the longest response of `{option}` with its prompt", fix)
    prompts: dict[int, list[int]] = {}
    for number, group in enumerate(rows[GROUP]):
        prompts.setdefault(group, []).append(number)
    log.info("%s: %d responses to %d prompts", ", ".join(getattr(config, option)), len(rows), len(prompts))
    return MetaSet(rows.remove_columns(GROUP), list(prompts.values()))
