"""Segmentation against the loop over rows and tokens, small cases written out by hand, and cuts by a user's function."""

import math
import time

import numpy as np
import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.errors import UserError
from denserl.levels import LEVELS, level_of
from denserl.segmentation import (
    Segmenter,
    Segments,
    join_segments,
    mean_segment_length,
    segment_by_entropy,
    segment_scores,
    segment_sums,
    segments_from_starts,
    threshold_of_length,
)


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


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_sums_are_over_the_tokens_of_each_segment(batch, threshold):
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    scores = batch.normal()
    found = segment_sums(scores, loops.to_segments(rows, batch.mask.shape[1]))
    assert found.dtype == torch.float32 and found.shape == (len(rows), max(map(len, rows), default=0))
    for b, row in enumerate(rows):
        expected = [math.fsum(scores[b, t].item() for t in tokens) for tokens in row]
        assert found[b].tolist() == pytest.approx(expected + [0.0] * (found.shape[1] - len(row)), abs=1e-5)


def test_sums_by_hand_and_their_gradient():
    """Segments of 1, 2 and 1 tokens; the end of turn is in none."""
    scores = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]], requires_grad=True)
    sums = segment_sums(scores, segment_by_entropy(torch.tensor([ENTROPY]), torch.ones(1, 5), 1.0))
    assert sums.tolist() == [[1.0, 6.0, 8.0]]
    (sums * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert scores.grad.tolist() == [[1.0, 2.0, 2.0, 3.0, 0.0]]
    assert segment_sums(
        torch.ones(1, 2).bfloat16(), segment_by_entropy(torch.zeros(1, 2), torch.ones(1, 2), 1000)
    ).tolist() == [[2.0]]


@given(st.lists(loops.batches(), min_size=1, max_size=4), st.sampled_from(loops.THRESHOLDS))
def test_segments_of_several_batches_are_those_of_their_rows_together(parts, threshold):
    rows = [loops.segment(part.entropy, part.mask, threshold, part.has_end_of_turn) for part in parts]
    separate = [loops.to_segments(of_part, part.mask.shape[1]) for of_part, part in zip(rows, parts, strict=True)]
    together = loops.to_segments([row for of_part in rows for row in of_part], max(part.mask.shape[1] for part in parts))
    assert_equal(join_segments(separate), together)


@given(loops.batches(), st.data())
def test_segments_open_where_they_are_told_to(batch, data):
    """Whatever opens a segment: the first token of the content in any case, and no token outside it."""
    content = batch.mask.bool()
    starts = torch.rand(content.shape, generator=batch.generator) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    rows = loops.segment_at([[t for t, on in enumerate(row) if on] for row in starts.tolist()], loops.places(content))
    assert_equal(segments_from_starts(starts & content, content), loops.to_segments(rows, content.shape[1]))


def test_levels_of_thresholds():
    assert {name: level_of(threshold) for name, threshold in LEVELS.items()} == {name: name for name in LEVELS}
    assert (level_of(1e-9), level_of(999.9), level_of(1000), level_of(math.inf)) == ("segment", "segment", "bandit", "bandit")


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_a_segmenter_without_a_function_cuts_by_entropy(batch, threshold):
    segmenter = Segmenter(threshold)
    found = segmenter(batch.entropy, batch.mask, torch.zeros(batch.mask.shape, dtype=torch.long), batch.has_end_of_turn)
    assert_equal(found, segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn))
    assert segmenter.name == "peak" and segmenter.reads_entropy == (threshold < 1000)
    assert segmenter.level == ("token" if threshold == 0 else "bandit" if threshold >= 1000 else "segment")


def spelled(ids: list[int]) -> list[str]:
    """Texts of tokens: their ids as words."""
    return [f"<{i}>" for i in ids]


@given(loops.batches(), st.sampled_from([0.0, 1.75, 999.5]), st.data())
def test_a_segmenter_cuts_where_its_function_says_whatever_the_threshold(batch, threshold, data):
    ids = torch.randint(0, 99, batch.mask.shape, generator=batch.generator)
    contents, openings, given = [], [], []
    for b, tokens in enumerate(loops.places(batch.mask)):
        ended = batch.has_end_of_turn is None or batch.has_end_of_turn[b].item()
        contents.append(tokens[:-1] if ended and len(tokens) > 1 else tokens)
        own = st.lists(st.sampled_from(contents[b])) if contents[b] else st.just([])
        openings.append(data.draw(own))

    def function(tokens: list[str], entropies: list[float]) -> list[int]:
        given.append((tokens, entropies))
        return openings[len(given) - 1]

    segmenter = Segmenter(threshold, "own", function, spelled)
    found = segmenter(batch.entropy, batch.mask, ids, batch.has_end_of_turn)
    assert_equal(found, loops.to_segments(loops.segment_at(openings, contents), batch.mask.shape[1]))
    # Of each response the content alone: no end of turn, no padding.
    assert given == [
        (spelled([ids[b, t].item() for t in tokens]), [batch.entropy[b, t].item() for t in tokens])
        for b, tokens in enumerate(contents)
    ]


def test_a_segmenter_by_hand():
    """Before every token that begins with a capital letter."""
    words = ["the", " River", " runs", " Then", "<end>"]
    segmenter = Segmenter(
        1.75, "capitals", lambda tokens, entropies: [i for i, token in enumerate(tokens) if token.strip()[0].isupper()],
        lambda ids: [words[i] for i in ids],
    )  # fmt: skip
    found = segmenter(torch.zeros(1, 6), torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.tensor([[0, 1, 2, 3, 4, 0]]))
    assert found.ids.tolist() == [[0, 1, 1, 2, -1, -1]] and found.lengths.tolist() == [[1, 2, 1]]
    cut_off = segmenter(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([[0, 1, 2, 3]]), torch.tensor([False]))
    assert cut_off.ids.tolist() == [[0, 1, 1, 2]]


def test_a_function_may_give_numbers_of_any_kind_in_any_order():
    for openings in ([3, 1], (1, 3, 3, 0), torch.tensor([1, 3]), np.array([3, 1]), {1, 3}, (i for i in (1, 3))):
        segmenter = Segmenter(1.75, "own", lambda tokens, entropies, openings=openings: openings, spelled)
        found = segmenter(torch.zeros(1, 5), torch.ones(1, 5), torch.zeros(1, 5, dtype=torch.long))
        assert found.ids.tolist() == [[0, 1, 1, 2, -1]]


@pytest.mark.parametrize("openings, wrong", [([0, 4], 4), ([-1], -1), ([1, 99, -3], 99)])
def test_a_function_that_names_tokens_that_are_not_there(openings, wrong):
    """Of five tokens the last is the end of turn, so that 3 is the last number."""
    segmenter = Segmenter(1.75, "mine:cut", lambda tokens, entropies: openings, spelled)
    with pytest.raises(UserError, match=f"^`segmenter` mine:cut opens a segment at token {wrong} of a response of 4 tokens"):
        segmenter(torch.zeros(1, 5), torch.ones(1, 5), torch.zeros(1, 5, dtype=torch.long))


def test_a_function_that_raises_is_named_with_the_response():
    segmenter = Segmenter(1.75, "mine:cut", lambda tokens, entropies: [1 // 0], spelled)
    shown = "^`segmenter` mine:cut raised ZeroDivisionError: .* for the response '"
    with pytest.raises(UserError, match=shown) as error:
        segmenter(torch.zeros(1, 5), torch.ones(1, 5), torch.zeros(1, 5, dtype=torch.long))
    assert error.value.one_rank and isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("threshold", [1000.0, 1e4])
def test_at_the_bandit_level_the_function_is_not_asked(threshold):
    def function(tokens, entropies):
        raise AssertionError("asked")

    segmenter = Segmenter(threshold, "own", function, spelled)
    found = segmenter(torch.zeros(2, 3), torch.tensor([[1, 1, 1], [1, 0, 0]]), torch.zeros(2, 3, dtype=torch.long))
    assert found.ids.tolist() == [[0, 0, 0], [0, -1, -1]] and not segmenter.reads_entropy


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


@given(st.lists(st.lists(st.floats(0, 4, width=32), min_size=2, max_size=9), min_size=1, max_size=6), st.floats(1, 8))
def test_the_threshold_of_a_length_is_the_least_that_gives_it(rows, length):
    """Against the segments that are cut at it, and at every smaller entropy there is."""

    def cut(threshold: float) -> float:
        segments = [segment_by_entropy(torch.tensor([row]), torch.ones(1, len(row)), threshold) for row in rows]
        return sum(s.lengths.sum().item() for s in segments) / sum(s.counts.sum().item() for s in segments)

    found = threshold_of_length(rows, length)
    assert mean_segment_length(rows, found) == pytest.approx(cut(found))
    whole = sum(len(row) - 1 for row in rows) / len(rows)
    assert cut(found) >= min(length, whole) - 1e-9
    smaller = [value for row in rows for value in row if value < found]
    assert all(cut(value) < length for value in smaller)
