"""Aggregation of segment scores: the mean over a row's own segments."""

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.rewards.aggregation import aggregate, valid_scores

COUNTS = st.lists(st.integers(0, 6), max_size=5)


def scores_for(counts, seed):
    scores = torch.randn(len(counts), max(counts, default=0) + seed % 3, generator=torch.Generator().manual_seed(seed))
    return loops.spoil_past(scores, torch.tensor(counts, dtype=torch.long))


@given(COUNTS, st.integers(0, 999))
def test_avg_is_the_mean_of_a_rows_own_scores(counts, seed):
    scores = scores_for(counts, seed)
    expected = [sum(scores[b, :n].tolist()) / n if n else 0.0 for b, n in enumerate(counts)]
    found = aggregate(scores, torch.tensor(counts, dtype=torch.long), "avg")
    # At most six fp32 terms of size 3: their sum is right to a few 1e-7.
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@given(COUNTS, st.integers(0, 999))
def test_valid_scores_are_zero_past_the_count(counts, seed):
    scores = scores_for(counts, seed)
    found = valid_scores(scores, torch.tensor(counts, dtype=torch.long)).tolist()
    for b, n in enumerate(counts):
        assert found[b] == scores[b, :n].tolist() + [0.0] * (scores.shape[1] - n)


def test_by_hand():
    scores = torch.tensor([[1.0, 2.0, 6.0], [5.0, 100.0, 100.0], [7.0, 7.0, 7.0]], dtype=torch.bfloat16)
    found = aggregate(scores, torch.tensor([3, 1, 0]))
    assert found.dtype == torch.float32 and found.tolist() == [3.0, 5.0, 0.0]


def test_gradient_is_one_over_the_count():
    scores = torch.zeros(2, 4, requires_grad=True)
    aggregate(scores, torch.tensor([4, 2])).sum().backward()
    assert scores.grad.tolist() == [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]


def test_unknown_aggregation():
    with pytest.raises(ValueError, match="'median'.*avg"):
        aggregate(torch.zeros(1, 1), torch.tensor([1]), "median")
