"""Assignment of segment rewards to tokens against the loop, and what each strategy promises."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.assignment import AT_LAST, CHANGE, KINDS, assign_rewards, canonical_kind, last_token, score_changes
from denserl.rewards.aggregation import AGGREGATIONS, aggregate

# The reference's names, as section 5 lists them.
NAMES = {
    "segment_normalization": "even",
    "same_segment_last": "repeat",
    "every_segment_last": "end",
    "segment_last_avg": "mean_last",
    "segment_last_logsumexp": "logsumexp_last",
}
# fp32 sums, exponentials and logarithms of at most 12 numbers of size 4.
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


def rewards_for(batch, threshold):
    """A segmentation by the loop, as rows and tensors, and a random reward for each segment, junk past the counts."""
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    segments = loops.to_segments(rows, batch.mask.shape[1])
    rewards = torch.randn(segments.lengths.shape, generator=batch.generator)
    return rows, segments, loops.spoil_past(rewards, segments.counts)


@given(
    loops.batches(),
    st.sampled_from(loops.THRESHOLDS),
    st.sampled_from(KINDS),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from(AGGREGATIONS),
    st.booleans(),
)
def test_equals_the_loop(batch, threshold, kind, tau, agg_func, with_mask):
    rows, segments, rewards = rewards_for(batch, threshold)
    lasts = [tokens[-1] if tokens else -1 for tokens in loops.places(batch.mask)]
    if not with_mask:
        lasts = [row[-1][-1] if row else -1 for row in rows]
    width = batch.mask.shape[1]
    expected = torch.tensor(loops.assign(rewards.tolist(), rows, lasts, width, kind, tau, agg_func))
    expected = expected.reshape(batch.mask.shape)
    found = assign_rewards(rewards, segments, kind, batch.mask if with_mask else None, tau, agg_func)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, **CLOSE)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_an_even_split_sums_to_the_segments_reward(batch, threshold):
    rows, segments, rewards = rewards_for(batch, threshold)
    found = assign_rewards(rewards, segments, "even")
    for b, row in enumerate(rows):
        for k, tokens in enumerate(row):
            assert found[b, tokens].sum().item() == pytest.approx(rewards[b, k].item(), abs=2e-6)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS), st.sampled_from(CHANGE), st.sampled_from(AGGREGATIONS))
def test_the_differences_sum_to_the_score(batch, threshold, kind, agg_func):
    """Up to any segment, to the score of what has been said until then: the potential."""
    rows, segments, rewards = rewards_for(batch, threshold)
    found = assign_rewards(rewards, segments, kind, agg_func=agg_func)
    torch.testing.assert_close(found.sum(1), aggregate(rewards, segments.counts, agg_func), **CLOSE)
    for b, row in enumerate(rows):
        for k, tokens in enumerate(row):
            score = loops.aggregate(rewards[b, : k + 1].tolist(), agg_func)
            assert found[b, : tokens[-1] + 1].sum().item() == pytest.approx(score, abs=4e-6)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS), st.sampled_from(CHANGE), st.sampled_from(AGGREGATIONS), st.data())
def test_what_comes_later_changes_nothing_that_was_paid(batch, threshold, kind, agg_func, data):
    """To the bit: another reward of a later segment, or no later segments at all."""
    rows, segments, rewards = rewards_for(batch, threshold)
    before = assign_rewards(rewards, segments, kind, agg_func=agg_func)
    kept = data.draw(st.integers(0, segments.lengths.shape[1]))
    other = torch.cat([rewards[:, :kept], -9.0 - rewards[:, kept:]], dim=1)
    cut = loops.to_segments([row[:kept] for row in rows], batch.mask.shape[1])
    changed = assign_rewards(other, segments, kind, agg_func=agg_func)
    alone = assign_rewards(rewards[:, : cut.lengths.shape[1]], cut, kind, agg_func=agg_func)
    of_first = (segments.ids >= 0) & (segments.ids < kept)
    assert torch.equal(changed[of_first], before[of_first]) and torch.equal(alone[of_first], before[of_first])


@given(loops.batches(), st.sampled_from(AGGREGATIONS))
def test_at_one_segment_the_differences_are_the_bandit_reward(batch, agg_func):
    """Level 1000 is one segment, whose end is the response's last token, where the bandit reward is paid."""
    _, segments, rewards = rewards_for(batch, 1000.0)
    bandit = assign_rewards(rewards, segments, "mean_last", batch.mask)
    assert torch.equal(assign_rewards(rewards, segments, "score_last", batch.mask, agg_func=agg_func), bandit)
    assert torch.equal(assign_rewards(rewards, segments, "difference_end", agg_func=agg_func), bandit)
    spread = assign_rewards(rewards, segments, "difference", agg_func=agg_func)
    torch.testing.assert_close(spread.sum(1), bandit.sum(1), **CLOSE)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS))
def test_the_differences_of_a_sum_are_the_rewards_themselves(batch, threshold):
    _, segments, rewards = rewards_for(batch, threshold)
    for difference, whole in (("difference", "even"), ("difference_end", "end")):
        found = assign_rewards(rewards, segments, difference, agg_func="sum")
        torch.testing.assert_close(found, assign_rewards(rewards, segments, whole), **CLOSE)


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS), st.sampled_from(KINDS))
def test_nothing_outside_the_segments_and_the_last_token(batch, threshold, kind):
    _, segments, rewards = rewards_for(batch, threshold)
    found = assign_rewards(rewards, segments, kind, batch.mask)
    per_segment = kind not in AT_LAST
    allowed = segments.ids >= 0 if per_segment else batch.mask.bool()
    assert (found[~allowed] == 0).all()
    if not per_segment:
        assert (found != 0).sum(1).le(1).all()


@given(loops.batches(), st.sampled_from(loops.THRESHOLDS), st.sampled_from(sorted(NAMES)))
def test_aliases_mean_the_same(batch, threshold, name):
    _, segments, rewards = rewards_for(batch, threshold)
    found = assign_rewards(rewards, segments, name, batch.mask)
    assert canonical_kind(name) == canonical_kind(NAMES[name]) == NAMES[name]
    assert torch.equal(found, assign_rewards(rewards, segments, NAMES[name], batch.mask))


# The project's own vector: rewards 1.2, -.3, .9 of segments of 3, 2 and 4 tokens (docs/credit.md).
VECTOR = loops.to_segments([[[0, 1, 2], [3, 4], [5, 6, 7, 8]]], width=10)
LSE = [1.2, math.log(math.exp(1.2) + math.exp(-0.3)), math.log(math.exp(1.2) + math.exp(-0.3) + math.exp(0.9))]


@pytest.mark.parametrize(
    "agg_func, changes",
    [
        ("avg", [1.2, -0.75, 0.15]),
        ("sum", [1.2, -0.3, 0.9]),
        ("min", [1.2, -1.5, 0.0]),
        ("last", [1.2, -1.5, 1.2]),
        ("logsumexp", [1.2, LSE[1] - LSE[0], LSE[2] - LSE[1]]),
    ],
)
def test_the_vector(agg_func, changes):
    rewards = torch.tensor([[1.2, -0.3, 0.9]])
    found = assign_rewards(rewards, VECTOR, "difference", agg_func=agg_func)[0].tolist()
    first, second, third = changes
    assert found == pytest.approx([first / 3] * 3 + [second / 2] * 2 + [third / 4] * 4 + [0.0], abs=1e-6)
    found = assign_rewards(rewards, VECTOR, "difference_end", agg_func=agg_func)[0].tolist()
    assert found == pytest.approx([0, 0, first, 0, second, 0, 0, 0, third, 0], abs=1e-6)
    found = assign_rewards(rewards, VECTOR, "score_last", torch.ones(1, 10), agg_func=agg_func)[0].tolist()
    assert found == pytest.approx([0.0] * 9 + [sum(changes)], abs=1e-6)


def test_changes_are_steps_of_the_running_score():
    rewards, counts = torch.tensor([[2, 5, 4], [3, 9, 9]]), torch.tensor([3, 1])
    assert score_changes(rewards, counts, "last").tolist() == [[2.0, 3.0, -1.0], [3.0, 0.0, 0.0]]
    assert score_changes(rewards, counts).tolist() == [[2.0, 1.5, pytest.approx(11 / 3 - 3.5)], [3.0, 0.0, 0.0]]


@pytest.mark.parametrize("agg_func", AGGREGATIONS)
def test_changes_of_a_long_response_are_as_exact_as_those_of_a_short_one(agg_func):
    """Of a sum that has grown to 10 000, the next reward of 5 is still right to fp32's own rounding."""
    rewards = 5 + torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    found = score_changes(rewards, torch.tensor([2000]), agg_func)[0, -1].item()
    scores = rewards[0].tolist()
    expected = loops.aggregate(scores, agg_func) - loops.aggregate(scores[:-1], agg_func)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


HAND = loops.to_segments([[[0, 1], [2]]], width=5)
REWARDS = torch.tensor([[4.0, -1.0]])
MASK = torch.tensor([[1, 1, 1, 1, 0]])


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("even", [2.0, 2.0, -1.0, 0.0, 0.0]),
        ("repeat", [4.0, 4.0, -1.0, 0.0, 0.0]),
        ("end", [0.0, 4.0, -1.0, 0.0, 0.0]),
        ("even_mean", [1.0, 1.0, -0.5, 0.0, 0.0]),
        ("difference", [2.0, 2.0, -2.5, 0.0, 0.0]),
        ("difference_end", [0.0, 4.0, -2.5, 0.0, 0.0]),
        ("score_last", [0.0, 0.0, 0.0, 1.5, 0.0]),
        ("mean_last", [0.0, 0.0, 0.0, 1.5, 0.0]),
        ("logsumexp_last", [0.0, 0.0, 0.0, math.log(math.exp(4) + math.exp(-1)), 0.0]),
    ],
)
def test_by_hand(kind, expected):
    found = assign_rewards(REWARDS, HAND, kind, MASK)[0].tolist()
    assert found == pytest.approx(expected, rel=1e-6)


def test_logsumexp_goes_from_sum_like_to_the_largest_reward():
    found = assign_rewards(REWARDS, HAND, "logsumexp_last", MASK, tau=0.01)
    assert found[0, 3].item() == pytest.approx(4.0, rel=1e-6)
    hot = assign_rewards(torch.tensor([[1000.0, 1000.0]]), HAND, "logsumexp_last", MASK, tau=2.0)
    assert hot[0, 3].item() == pytest.approx(1000 + 2 * math.log(2), rel=1e-6)


def test_one_response_never_broadcasts_over_another():
    """With as many responses as tokens, a per-response reward could be added along the wrong axis unnoticed."""
    segments = loops.to_segments([[[0, 1, 2]]] * 3, width=3)
    found = assign_rewards(torch.tensor([[1.0], [2.0], [3.0]]), segments, "mean_last")
    assert found.tolist() == [[0, 0, 1.0], [0, 0, 2.0], [0, 0, 3.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_without_any_token(kind, shape):
    segments = loops.to_segments([[]] * shape[0], shape[1])
    found = assign_rewards(torch.zeros(shape[0], 0), segments, kind, torch.zeros(shape))
    assert found.shape == shape and found.dtype == torch.float32 and (found == 0).all()


def test_last_token():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
    assert last_token(mask).tolist() == [[False, True, False], [False] * 3, [False, False, True], [True, False, False]]
    assert last_token(torch.ones(2, 0)).shape == (2, 0)
    assert last_token(torch.ones(0, 2)).shape == (0, 2)


def test_errors():
    with pytest.raises(ValueError, match="'evenly'.*even.*segment_normalization"):
        assign_rewards(REWARDS, HAND, "evenly")
    with pytest.raises(ValueError, match="unknown"):
        canonical_kind("segment_last")
    for tau in (0.0, -1.0):
        with pytest.raises(ValueError, match="tau"):
            assign_rewards(REWARDS, HAND, "logsumexp_last", tau=tau)
    with pytest.raises(ValueError, match="unknown aggregation 'median'"):
        assign_rewards(REWARDS, HAND, "difference", agg_func="median")
