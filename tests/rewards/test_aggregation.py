"""Aggregation of segment scores, of whole responses and of their first segments, against loops over a row's own segments."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.rewards.aggregation import (
    AGGREGATIONS,
    SHIFTED_WHOLE,
    STEP_AGGREGATIONS,
    aggregate,
    aggregate_steps,
    first_error,
    running_aggregate,
    valid_scores,
)

COUNTS = st.lists(st.integers(0, 6), max_size=5)
HOWS = st.sampled_from(AGGREGATIONS)
# At most six fp32 terms of size 3, their exponentials and logarithms.
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


def scores_for(counts, seed):
    scores = torch.randn(len(counts), max(counts, default=0) + seed % 3, generator=torch.Generator().manual_seed(seed))
    return loops.spoil_past(scores, torch.tensor(counts, dtype=torch.long))


@given(COUNTS, st.integers(0, 999), HOWS)
def test_equals_the_loop_over_a_rows_own_scores(counts, seed, how):
    scores, number = scores_for(counts, seed), torch.tensor(counts, dtype=torch.long)
    expected = [loops.aggregate(scores[b, :n].tolist(), how) for b, n in enumerate(counts)]
    torch.testing.assert_close(aggregate(scores, number, how), torch.tensor(expected), **CLOSE)
    running = running_aggregate(scores, number, how)
    assert running.dtype == torch.float32 and running.shape == scores.shape
    for b, n in enumerate(counts):
        firsts = [loops.aggregate(scores[b, : k + 1].tolist(), how) for k in range(n)]
        torch.testing.assert_close(running[b], torch.tensor(firsts + [0.0] * (scores.shape[1] - n)), **CLOSE)


@given(COUNTS, st.integers(0, 999), st.sampled_from(SHIFTED_WHOLE))
def test_what_is_shifted_whole(counts, seed, how):
    """Standardising every segment's score standardises the response's, which ensembles and the scalar normaliser build on."""
    scores, number = scores_for(counts, seed), torch.tensor(counts, dtype=torch.long)
    standardised = (aggregate(scores, number, how) - 0.5) / 2
    found = aggregate((scores - 0.5) / 2, number, how)
    torch.testing.assert_close(found[number > 0], standardised[number > 0], **CLOSE)


def test_what_is_not_shifted_whole():
    scores, counts = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([3])
    for how in set(AGGREGATIONS) - set(SHIFTED_WHOLE):
        assert abs(aggregate((scores - 0.5) / 2, counts, how) - (aggregate(scores, counts, how) - 0.5) / 2) > 0.1


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (2, 0)])
def test_without_any_segment(how, shape):
    counts = torch.zeros(shape[0], dtype=torch.long)
    assert aggregate(torch.zeros(shape), counts, how).tolist() == [0.0] * shape[0]
    assert running_aggregate(torch.zeros(shape), counts, how).shape == shape


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


def test_by_hand_in_other_ways():
    scores, counts = torch.tensor([[1.2, -0.3, 0.9, 7.0]]), torch.tensor([3])
    expected = {"avg": [1.2, 0.45, 0.6], "sum": [1.2, 0.9, 1.8], "min": [1.2, -0.3, -0.3], "last": [1.2, -0.3, 0.9]}
    for how, values in expected.items():
        assert running_aggregate(scores, counts, how)[0].tolist() == pytest.approx([*values, 0.0], abs=1e-6)
    large = aggregate(torch.tensor([[1000.0, 1000.0]]), torch.tensor([2]), "logsumexp")
    assert large.item() == pytest.approx(1000 + math.log(2), rel=1e-6)
    assert aggregate(scores.double(), counts, "sum").dtype == torch.float64


@pytest.mark.parametrize(
    "how, expected",
    [
        ("sum", [1.0, 1.0, 1.0]),
        ("min", [0.0, 1.0, 0.0]),
        ("last", [0.0, 0.0, 1.0]),
        ("logsumexp", [math.exp(0.5) / (math.exp(0.5) + math.exp(-1) + 1), None, None]),
    ],
)
def test_gradients_by_closed_form(how, expected):
    scores = torch.tensor([[0.5, -1.0, 0.0, 9.0]], requires_grad=True)
    aggregate(scores, torch.tensor([3]), how).sum().backward()
    found = scores.grad[0].tolist()
    assert found[3] == 0
    assert all(value == pytest.approx(want, abs=1e-6) for value, want in zip(found, expected) if want is not None)
    assert sum(found) == pytest.approx(3.0 if how == "sum" else 1.0, abs=1e-6)


def test_gradient_is_one_over_the_count():
    scores = torch.zeros(2, 4, requires_grad=True)
    aggregate(scores, torch.tensor([4, 2])).sum().backward()
    assert scores.grad.tolist() == [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]


def test_unknown_aggregation():
    for function in (aggregate, running_aggregate):
        with pytest.raises(ValueError, match="'median'.*avg.*logsumexp"):
            function(torch.zeros(1, 1), torch.tensor([1]), "median")


def test_the_mean_is_what_is_taken_unless_told_otherwise():
    scores, counts = torch.tensor([[1.0, 3.0, 8.0]]), torch.tensor([3])
    assert running_aggregate(scores, counts).tolist() == [[1.0, 2.0, 4.0]] and aggregate(scores, counts).item() == 4


def test_steps_by_hand():
    """Two-way logits 4 .6 -1 -.9, whose chances are .98201379 .64565631 .26894142 .28905050; and a solution of one step."""
    logits = torch.tensor([[4, 0.6, -1, -0.9, math.nan], [0.6, -math.inf, 9, 9, 9], [math.nan] * 5], dtype=torch.float64)
    counts = torch.tensor([4, 1, 0])
    whole = {"min": 0.26894142, "mean": 0.54641550, "last": 0.28905050, "prod": 0.04928904, "mean_logit": 0.675}
    assert set(whole) == set(STEP_AGGREGATIONS)
    for how, value in whole.items():
        one = 0.6 if how == "mean_logit" else 0.64565631
        assert aggregate_steps(logits, counts, how).tolist() == pytest.approx([value, one, 0.0], abs=1e-8)
    assert aggregate_steps(logits, counts, "first_error").tolist() == [2, -1, -1]
    assert aggregate_steps(logits, counts).tolist() == aggregate_steps(logits, counts, "min").tolist()


@given(COUNTS, st.integers(0, 999), st.sampled_from(STEP_AGGREGATIONS), st.floats(0.05, 0.95))
def test_steps_equal_a_loop(counts, seed, how, threshold):
    logits, number = 4 * scores_for(counts, seed), torch.tensor(counts, dtype=torch.long)
    rows = [[float(value) for value in logits[b, :n]] for b, n in enumerate(counts)]
    chances = [[1 / (1 + math.exp(-value)) for value in row] for row in rows]
    loop = {
        "min": min,
        "mean": lambda p: sum(p) / len(p),
        "last": lambda p: p[-1],
        "prod": math.prod,
    }
    expected = [sum(row) / len(row) if how == "mean_logit" else loop[how](p) for row, p in zip(rows, chances) if row]
    found = aggregate_steps(logits, number, how)
    assert found[number > 0].tolist() == pytest.approx(expected, rel=1e-9) and not found[number == 0].any()
    wrong = [next((k for k, p in enumerate(row) if p < threshold), -1) for row in chances]
    assert first_error(logits, number, threshold).tolist() == wrong


def test_steps_that_are_all_but_sure_are_told_apart():
    """In fp32 both chances round to 1, and a product of hundreds of small ones to 0."""
    sure = aggregate_steps(torch.tensor([[20.0], [21.0]]), torch.tensor([1, 1]))
    assert sure[0] < sure[1] < 1
    unlikely = aggregate_steps(torch.full((1, 64), -10.0), torch.tensor([64]), "prod")
    assert unlikely.log().item() == pytest.approx(-64 * math.log1p(math.exp(10)))


def test_steps_have_no_sum():
    with pytest.raises(ValueError, match="'sum'.*min.*first_error"):
        aggregate_steps(torch.zeros(1, 1), torch.tensor([1]), "sum")
