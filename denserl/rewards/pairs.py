"""Pairs as reward models read them: token ids, with what the frozen language model says of the responses, and their rewards."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from denserl import distributed
from denserl.config import ModelSourceConfig
from denserl.data.batching import ResponseBatch, in_rank_batches, length_batches, pad_rows
from denserl.data.config import ScoredPairsConfig
from denserl.data.distinct import distinct_responses, take
from denserl.data.features import longest_row
from denserl.data.fingerprints import reading_fingerprint
from denserl.data.preferences import tokenize_preferences
from denserl.data.reference_cache import add_entropies
from denserl.data.responses import of_ids
from denserl.data.schemas import SIDES
from denserl.files import make_folder
from denserl.levels import BANDIT_THRESHOLD
from denserl.models.loading import load_policy, local_folder, match_embeddings
from denserl.models.positions import check_positions
from denserl.models.scoring import response_logprobs_entropies
from denserl.rewards.aggregation import aggregate
from denserl.rewards.sources.base import RewardSource, per_token, read_segments
from denserl.segmentation import Segmenter, mean_segment_length, threshold_of_length

SHOWN_PAIRS = 512  # of which segment lengths are said
SHOWN_LENGTHS = (5, 10, 20, 40)


def prepare_pairs(
    pairs: Dataset,
    config: ScoredPairsConfig,
    source: ModelSourceConfig,
    sft_model: str | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
    on_bad_row: str,
    read_by: Sequence[str] = (),
    in_shares: Callable[[PreTrainedModel], Callable[[ResponseBatch], Tensor]] | None = None,
) -> Dataset:
    """Tokenise preferences and add what the frozen SFT model, if one is given, says of them (`with_entropies`).

    read_by: those that will read the pairs beside the SFT model. Other args as of `with_entropies`.
    """
    lengths = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    rows = tokenize_preferences(pairs, tokenizer, **lengths, on_bad_row=on_bad_row, cache_dir=config.cache_dir)
    longest = max(longest_row(rows, "prompt_ids", f"{side}_ids") for side in SIDES)
    fix = "give a `max_length` of at most {}, with a `max_prompt_length` below it"
    readers = [*([] if sft_model is None else [sft_model]), *read_by]
    check_positions(longest, readers, source, "the longest pair's response with its prompt", fix)
    if sft_model is None:
        return rows
    return with_entropies(rows, config, source, sft_model, tokenizer, device, dtype, in_shares)


def with_entropies(
    rows: Dataset,
    config: ScoredPairsConfig,
    source: ModelSourceConfig,
    sft_model: str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: str,
    in_shares: Callable[[PreTrainedModel], Callable[[ResponseBatch], Tensor]] | None = None,
    sides: Sequence[str] = SIDES,
) -> Dataset:
    """Tokenised rows with what the frozen SFT model says of their responses (`add_entropies`).

    source: how models are loaded. in_shares: spreads the model over the ranks, and gives what `response_logprobs_entropies`
    gives of a batch; without it each rank has the whole of it.
    """

    def reference_function():
        model = load_policy(sft_model, dtype, **source.model_source()).eval()
        match_embeddings(model, tokenizer)
        if in_shares is not None:
            return in_shares(model)
        model.to(device)
        return lambda batch: response_logprobs_entropies(model, batch)

    cache_dir = Path(config.cache_dir).expanduser()
    make_folder("cache_dir", str(cache_dir))
    read = (local_folder(sft_model), dtype, source.attention, source.trust_remote_code)
    return add_entropies(
        rows,
        reference_function,
        # Each rank would read all weights.
        distributed.by_rank_0(lambda: reading_fingerprint(*read)),
        pad_id=tokenizer.pad_token_id,
        cache_dir=cache_dir,
        max_tokens=config.score_tokens,
        device=device,
        together=in_shares is not None,
        sides=sides,
    )


def segment_lengths(pairs: Dataset, threshold: float) -> str:
    """How long segments are at a threshold, and at which ones they would have other lengths, in words.

    pairs: as `prepare_pairs` gives them, of which the first SHOWN_PAIRS are looked at.
    """
    first = pairs.select(range(min(len(pairs), SHOWN_PAIRS)))
    entropies = [row for side in SIDES for row in first[f"{side}_entropy"]]
    whole = mean_segment_length(entropies, BANDIT_THRESHOLD)
    others = [f"{tokens} at {threshold_of_length(entropies, tokens):.2f}" for tokens in SHOWN_LENGTHS if tokens < whole]
    at = f"segments of {mean_segment_length(entropies, threshold):.1f} tokens at entropy threshold {threshold:g}"
    return f"{at}; of about {', '.join(others)} (`entropy_threshold`)" if others else at


def segment_rewards(
    source: RewardSource,
    pairs: Dataset,
    segmenter: Segmenter,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    device: torch.device,
) -> list[np.ndarray]:
    """The raw segment rewards of every chosen and rejected response, as one fp32 array a response.

    pairs: as `prepare_pairs` gives them.
    """
    found = distinct_responses(pairs, SIDES)
    lengths = found.lengths[found.place]
    batches = length_batches(lengths, max_tokens, found.prompts[found.place])
    columns = ("ids", "entropy") if segmenter.reads_entropy else ("ids",)

    def read(numbers: list[int]) -> dict[int, np.ndarray]:
        prompts, responses, *entropies = take(pairs, SIDES, numbers, *columns)
        # Tokenised pairs hold no messages any more.
        record = of_ids(prompts, responses, [True] * len(numbers))
        record = record._replace(texts=tokenizer.batch_decode(record.response_ids, skip_special_tokens=True))
        batch = record.padded(tokenizer.pad_token_id, device)
        scores = per_token(source(record, batch), batch.response_mask)
        segments = scores.segments
        if segments is None:
            entropy = pad_rows(entropies[0], 0.0, torch.float32).to(device) if entropies else torch.zeros_like(scores.values)
            segments = segmenter(entropy, batch.response_mask, batch.response_ids)
        values, counts = read_segments(scores.values, segments, scores.read).values.cpu().numpy(), segments.counts.tolist()
        return {number: values[slot, : counts[slot]].copy() for slot, number in enumerate(numbers)}

    mine: dict[int, np.ndarray] = {}
    tokens = [int(lengths[batch].sum()) for batch in batches]
    for part in in_rank_batches(read, batches, tokens, "segment rewards"):
        mine |= part
    merged = {number: values for share in distributed.gather_objects(mine) for number, values in share.items()}
    return [merged[number] for number in range(len(lengths))]


def score_moments(rewards: list[np.ndarray], agg_func: str, rows: int = 1024) -> tuple[float, float]:
    """Mean and (biased) standard deviation of the scores of responses, given the segment rewards of each; so many at a time."""
    parts = [rewards[first : first + rows] for first in range(0, len(rewards), rows)]
    scores = [aggregate(pad_rows(p, 0.0, torch.float32), torch.tensor([len(r) for r in p]), agg_func) for p in parts]
    joined = torch.cat(scores).double()
    return joined.mean().item(), joined.std(correction=0).item()
