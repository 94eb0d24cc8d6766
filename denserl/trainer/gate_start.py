"""Where the training of a gate begins: what its attributes are freed of, and the scale of its scores, by the training pairs."""

import gc
import logging
from typing import NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from denserl import distributed
from denserl.data.batching import ResponseBatch, map_rows_in_batches, response_slots, to_device
from denserl.errors import UserError
from denserl.models.gated import GatedHead, scale_of
from denserl.models.heads import Head
from denserl.models.loading import match_embeddings
from denserl.models.reward_models import new_gated_model
from denserl.models.scoring import read_rewards
from denserl.rewards.aggregation import aggregate_outputs
from denserl.rewards.attributes import debias, spearman
from denserl.segmentation import Segmenter
from denserl.trainer.engine import deepspeed_config, frozen_engine
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_pairs import GroupCollator

log = logging.getLogger(__name__)


class Rated(NamedTuple):
    """What a gated model says of n pairs."""

    ratings: Tensor  # (n, 2, K) fp32, attributes of the chosen and of the rejected response
    coefficients: Tensor  # (n, K), what they weigh in the scores


class GateStart(NamedTuple):
    """How a gated head begins."""

    transform: Tensor  # (K, K) fp64
    scale: float

    def apply(self, head: GatedHead) -> None:
        """Let a head begin so."""
        with torch.no_grad():
            head.transform.copy_(self.transform)
            head.gate.scale.fill_(self.scale)


def gate_start(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
    head: Head,
    pairs: Dataset,
    segmenter: Segmenter,
) -> GateStart:
    """Reads all training pairs once with the gate as it is drawn. Collective.

    transform: frees the attributes of `debias` over all responses. scale: `scale_of` the margins under it.

    Raises:
        UserError: the attributes tell no two responses of a pair apart.
    """
    model = new_gated_model(config.model, dtype, head, config.seed, **config.model_source())
    match_embeddings(model, tokenizer)
    reader: nn.Module = model.to(device)
    if config.zero_stage == 3:
        reader = frozen_engine(model, {**deepspeed_config(config, dtype, 1, 1), "zero_optimization": {"stage": 3}}, device)
    rated = rate_pairs(reader, pairs, segmenter, config.agg_func, tokenizer.pad_token_id, config.score_tokens, device)
    del model, reader
    # An engine refers to itself; what it holds is needed for training.
    gc.collect()
    ratings, transform = rated.ratings.flatten(0, 1), torch.eye(len(head.names), dtype=torch.float64)
    if config.debias:
        biased = head.names.index(config.debias)
        transform = debias(ratings, biased, config.debias_rho)
        log.info("%s", freed_in_words(ratings, transform, head.names, biased))
    differences = (rated.ratings[:, 0] - rated.ratings[:, 1]).double() @ transform
    try:
        scale = scale_of((differences * rated.coefficients).sum(-1))
    except ValueError as error:
        raise UserError(
            f"the attributes of {config.model} tell no two responses of a training pair apart ({error})",
            "train them on other ratings, or give other pairs",
        ) from error
    log.info("the gate's scale begins at %.4g, 1 / std of the margins of %d pairs", scale, len(pairs))
    return GateStart(transform, scale)


def rate_pairs(
    model: nn.Module,
    pairs: Dataset,
    segmenter: Segmenter,
    agg_func: str,
    pad_id: int,
    max_tokens: int,
    device: torch.device,
) -> Rated:
    """Attributes and coefficients by a gated model, which may be an engine, made of segments as scores are. Collective."""
    collate = GroupCollator(pad_id)
    both = [[*chosen, *rejected] for chosen, rejected in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]

    def of_rows(rows: list[int]) -> Tensor:
        batch = to_device(collate([pairs[row] for row in rows]), device)
        responses = ResponseBatch.of(batch)
        found = read_rewards(model, *responses[:3], logprob_rows=0, shared=responses.shared)
        segments = segmenter(batch["entropy"], responses.response_mask, responses.response_ids)
        tokens = response_slots(found.outputs[..., 1:], responses.response_start, responses.response_mask.shape[1])
        chosen, rejected = aggregate_outputs(tokens, segments, agg_func).chunk(2)
        return torch.cat([chosen, rejected, found.coefficients[: len(rows)]], 1)[:, None]

    together = distributed.world_size() > 1 and hasattr(next(model.parameters()), "ds_id")
    mine = map_rows_in_batches(pairs["prompt_ids"], both, of_rows, max_tokens, "attributes", together)
    merged = {row: values for share in distributed.gather_objects(mine) for row, values in share.items()}
    rows = torch.stack([torch.from_numpy(merged[row][0]) for row in range(len(pairs))])
    chosen, rejected, coefficients = rows.chunk(3, 1)
    return Rated(torch.stack([chosen, rejected], 1), coefficients)


def freed_in_words(ratings: Tensor, transform: Tensor, names: tuple[str, ...], biased: int) -> str:
    """How far the attributes of N responses, (N, K), go with one of them before and after the transform."""
    after, bias = ratings.double() @ transform, ratings[:, biased]
    others = [k for k in range(len(names)) if k != biased]
    before, freed = (
        max(((spearman(values[:, k], bias), names[k]) for k in others), default=(0.0, "none")) for values in (ratings, after)
    )
    taken = ", ".join(f"{names[k]} {-transform[biased, k]:g}" for k in others if transform[biased, k] != 0)
    return (
        f"over {len(ratings)} responses {names[biased]} goes most with {before[1]} (rank correlation {before[0]:.3f}), after "
        f"debiasing with {freed[1]} ({freed[0]:.3f}); taken off: {taken or 'nothing'}"
    )
