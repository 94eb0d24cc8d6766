"""Segment rewards of tokenised pairs by any source, and the moments of responses' scores, against loops."""

import numpy as np
import pytest
import reference_loops as loops
import tiny_models
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from denserl import distributed
from denserl.rewards.aggregation import AGGREGATIONS
from denserl.rewards.pairs import score_moments, segment_rewards
from denserl.rewards.sources.function import FunctionSource
from denserl.rewards.sources.reward_model import RewardModelSource
from denserl.segmentation import Segmenter

TOKENIZER = tiny_models.tiny_tokenizer()
PROMPTS = tiny_models.random_rows([4, 2, 6], seed=1)
CHOSEN = tiny_models.random_rows([5, 1, 3], seed=2)
REJECTED = tiny_models.random_rows([2, 7, 4], seed=3)


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    generator = np.random.default_rng(0)
    columns = {"prompt_ids": PROMPTS, "chosen_ids": CHOSEN, "rejected_ids": REJECTED}
    for side, rows in (("chosen", CHOSEN), ("rejected", REJECTED)):
        columns[f"{side}_entropy"] = [(generator.random(len(row)) * 2).astype(np.float32).tolist() for row in rows]
    return Dataset.from_dict(columns)


def rewards_by_loop(model, pairs: Dataset, threshold: float) -> list[list[float]]:
    """The stock head at the ends of each response's segments, one unpadded row at a time; all responses have ended."""
    found = []
    for side in ("chosen", "rejected"):
        for row in pairs:
            ids = row[f"{side}_ids"]
            with torch.no_grad():
                hidden = model.model(torch.tensor([row["prompt_ids"] + ids])).last_hidden_state[0, len(row["prompt_ids"]) :]
            scores = (hidden @ model.score.weight[0]).tolist()
            entropy = torch.tensor([row[f"{side}_entropy"]])
            (segments,) = loops.segment(entropy, torch.ones(1, len(ids)), threshold)
            found.append([scores[tokens[-1]] for tokens in segments])
    return found


@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1000.0])
def test_segment_rewards_are_those_of_each_row_alone_the_chosen_ones_first(threshold, max_tokens, pairs):
    model = tiny_models.classifier("llama")
    found = segment_rewards(RewardModelSource([model]), pairs, Segmenter(threshold), TOKENIZER, max_tokens, "cpu")
    expected = rewards_by_loop(model, pairs, threshold)
    assert [len(row) for row in found] == [len(row) for row in expected] and all(row.dtype == np.float32 for row in found)
    for got, want in zip(found, expected, strict=True):
        assert got.tolist() == pytest.approx(want, abs=1e-4)


def test_segment_rewards_of_ranks_are_joined(pairs, monkeypatch):
    model, shares = tiny_models.classifier("llama"), []

    def run():
        return segment_rewards(RewardModelSource([model]), pairs, Segmenter(1.0), TOKENIZER, 15, "cpu")

    whole = run()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_objects", lambda share: shares.append(share) or [dict.fromkeys(range(6)), *shares])
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        joined = run()
    for got, want in zip(joined, whole, strict=True):
        assert got.tolist() == pytest.approx(want.tolist(), abs=1e-5)


def test_segment_rewards_of_a_function_are_those_of_its_parts(pairs):
    """Halves of the text, of which a function says their lengths."""
    seen = {}

    def halves(prompts, texts):
        seen.update(dict.fromkeys(texts))
        return [[(len(text) // 2, 1.0), (len(text), float(len(text)))] for text in texts]

    def decode(ids):
        return TOKENIZER.decode(ids, skip_special_tokens=True)

    found = segment_rewards(FunctionSource(halves, "f", "o", decode), pairs, Segmenter(1.0), TOKENIZER, 1000, "cpu")
    texts = [decode(row) for row in (*CHOSEN, *REJECTED)]
    assert set(seen) == set(texts)
    for text, rewards in zip(texts, found, strict=True):
        # Both halves within one token are one segment.
        assert rewards.sum() == pytest.approx(1.0 + len(text)) and len(rewards) in (1, 2)


@given(
    st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=4), min_size=1, max_size=9),
    st.sampled_from(AGGREGATIONS),
    st.integers(1, 4),
)
def test_moments_are_those_of_the_scores_however_many_are_made_at_a_time(rewards, agg_func, rows):
    scores = [loops.aggregate(row, agg_func) for row in rewards]
    arrays = [np.array(row, dtype=np.float32) for row in rewards]
    mean, std = score_moments(arrays, agg_func, rows)
    assert mean == pytest.approx(np.mean(scores), abs=1e-5) and std == pytest.approx(np.std(scores), abs=1e-4)
