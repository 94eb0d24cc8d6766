"""Segmentation against the loop over rows and tokens, and small cases written out by hand."""

import math
import time

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.segmentation import Segments, segment_by_entropy, segment_scores


def assert_equal(found: Segments, expected: Segments):
    for name, a, b in zip(Segments._fields, found, expected):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{name}: {a} is not {b}"


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_equals_the_loop(batch, threshold):
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    found = segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    assert_equal(found, loops.to_segments(rows, batch.mask.shape[1]))


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_scores_are_read_at_segment_ends(batch, threshold):
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    scores = batch.normal()
    expected = torch.zeros(len(rows), max(map(len, rows), default=0))
    for b, row in enumerate(rows):
        for k, tokens in enumerate(row):
            expected[b, k] = scores[b, tokens[-1]]
    found = segment_scores(scores, loops.to_segments(rows, batch.mask.shape[1]))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_segments_cover_the_content_in_order(batch, threshold):
    found = segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    assert not found.ids[~batch.mask.bool()].ge(0).any() and not found.ends[~batch.mask.bool()].any()
    assert torch.equal(found.ends.sum(1), found.counts)
    assert torch.equal(found.lengths.sum(1), (found.ids >= 0).sum(1))
    assert torch.equal((found.lengths > 0).sum(1), found.counts)
    assert found.lengths.shape[1] == max(found.counts.tolist(), default=0)


# One row of five tokens; the threshold is 1.0, and 1.0 itself does not cut.
ENTROPY = [0.2, 1.5, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "tokens, threshold, ended, ids, ends",
    [
        (5, 1.0, True, [0, 1, 1, 2, -1], [0, 2, 3]),
        (5, 1.0, False, [0, 1, 1, 2, 3], [0, 2, 3, 4]),
        (4, 1.0, True, [0, 1, 1, -1, -1], [0, 2]),
        (2, 1.0, True, [0, -1, -1, -1, -1], [0]),
        (1, 1.0, True, [0, -1, -1, -1, -1], [0]),
        (1, 1.0, False, [0, -1, -1, -1, -1], [0]),
        (0, 1.0, True, [-1, -1, -1, -1, -1], []),
        (5, 0.0, True, [0, 1, 2, 3, -1], [0, 1, 2, 3]),
        (5, 999.0, True, [0, 0, 0, 0, -1], [3]),
        (5, 1000, True, [0, 0, 0, 0, 0], [4]),
        (3, 1000, False, [0, 0, 0, -1, -1], [2]),
        (1, 1000, True, [0, -1, -1, -1, -1], [0]),
        (0, 1e4, True, [-1, -1, -1, -1, -1], []),
    ],
)
def test_by_hand(tokens, threshold, ended, ids, ends):
    mask = torch.arange(5)[None] < tokens
    found = segment_by_entropy(torch.tensor([ENTROPY]), mask, threshold, torch.tensor([ended]))
    assert found.ids.tolist() == [ids]
    assert found.ends.nonzero()[:, 1].tolist() == ends
    assert found.counts.tolist() == [len(ends)]


def test_first_entropy_never_matters():
    entropy = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    found = segment_by_entropy(entropy, torch.ones(2, 2), 1.0, torch.zeros(2))
    assert found.ids.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("threshold", [1.0, 1000.0])
def test_nothing_to_cut(shape, threshold):
    found = segment_by_entropy(torch.zeros(shape), torch.ones(shape), threshold)
    assert found.ids.shape == found.ends.shape == shape
    assert found.lengths.shape == (shape[0], 0) and found.counts.tolist() == [0] * shape[0]
    assert segment_scores(torch.zeros(shape), found).shape == (shape[0], 0)


@pytest.mark.parametrize("threshold", [-1.0, -1e-9, math.nan])
def test_a_threshold_below_zero_is_an_error(threshold):
    with pytest.raises(ValueError, match="threshold"):
        segment_by_entropy(torch.zeros(1, 2), torch.ones(1, 2), threshold)


@pytest.mark.parametrize("entropy, mask", [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((1, 2, 3), (1, 2, 3))])
def test_shapes_that_do_not_fit_are_an_error(entropy, mask):
    with pytest.raises(ValueError, match="want"):
        segment_by_entropy(torch.zeros(entropy), torch.ones(mask), 1.0)


def test_gradient_reaches_the_ends_only():
    scores = torch.zeros(1, 5, requires_grad=True)
    segments = segment_by_entropy(torch.tensor([ENTROPY]), torch.ones(1, 5), 1.0)
    (segment_scores(scores, segments) * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert scores.grad.tolist() == [[1.0, 0.0, 2.0, 3.0, 0.0]]


def test_half_precision_scores_come_back_in_fp32():
    scores = torch.tensor([[0.5, 1.5]], dtype=torch.bfloat16)
    found = segment_scores(scores, segment_by_entropy(torch.zeros(1, 2), torch.ones(1, 2), 1000))
    assert found.dtype == torch.float32 and found.tolist() == [[1.5]]


def best_of(repeats: int, call) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def test_much_faster_than_a_loop_that_visits_tensors_token_by_token():
    entropy = torch.rand(16, 1024, generator=torch.Generator().manual_seed(0)) * 4
    mask = torch.ones(16, 1024, dtype=torch.bool)
    fast = best_of(50, lambda: segment_by_entropy(entropy, mask, 1.75))
    slow = best_of(3, lambda: loops.to_segments(loops.segment(entropy, mask, 1.75), 1024))
    # About 900 times is usual on one quiet core; 100 leaves room for a busy one.
    assert slow / fast >= 100, f"loop {slow * 1e3:.1f} ms, tensors {fast * 1e3:.3f} ms: {slow / fast:.0f} times"
