"""Advantages without a critic: returns against those of a group, by loops and by hand; groups that are degenerate."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.advantages import Advantages, against_group

# Sums of at most 12 numbers of size 4 in fp32, against float64; a group's deviation may be small beside its returns.
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
KINDS = ["rloo", "grpo", "reinforce"]


@given(loops.batches(max_rows=7), st.sampled_from(KINDS), st.booleans(), st.sampled_from([1.0, 0.9, 0.0]), st.data())
def test_they_are_what_the_loops_make(batch, kind, group_std, gamma, data):
    rewards, mask = batch.normal(), batch.mask
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(mask), max_size=len(mask)))
    found, returns = Advantages(gamma, kind=kind, group_std=group_std)(rewards, None, mask, groups)
    to_go = loops.returns(rewards, mask, gamma)
    assert found.dtype == returns.dtype == torch.float32
    for b, row in enumerate(loops.against_group(to_go, groups, kind, group_std)):
        torch.testing.assert_close(found[b, : len(row)], torch.tensor(row), **CLOSE)
        torch.testing.assert_close(returns[b, : len(row)], torch.tensor(to_go[b]), **CLOSE)
        assert not found[b, len(row) :].any() and not returns[b, len(row) :].any()


def paid_at_the_end(scores: list[float], lengths: list[int]):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(scores)), torch.tensor(lengths) - 1] = torch.tensor(scores)
    return rewards, mask


def test_of_one_reward_a_response_they_are_the_published_ones():
    """Scores 3, 1, 2 have mean 2 and standard deviation 1; 3 less (1 + 2) / 2 is 1.5. The other prompt's are 4 and 0."""
    rewards, mask = paid_at_the_end([3.0, 4.0, 1.0, 2.0, 0.0], [2, 1, 4, 3, 2])
    expected = {
        ("rloo", True): [1.5, 4.0, -1.5, 0.0, -4.0],
        ("grpo", True): [1.0, 2 / math.sqrt(8), -1.0, 0.0, -2 / math.sqrt(8)],
        ("grpo", False): [1.0, 2.0, -1.0, 0.0, -2.0],
        ("reinforce", True): [3.0, 4.0, 1.0, 2.0, 0.0],
    }
    for (kind, group_std), numbers in expected.items():
        found, _ = Advantages(kind=kind, group_std=group_std)(rewards, None, mask, [0, 1, 0, 0, 1])
        torch.testing.assert_close(found, torch.tensor(numbers)[:, None] * mask, atol=3e-6, rtol=0)


def test_of_rewards_on_the_way_each_token_is_compared_where_it_stands():
    """Returns (3, 2, 2), (1, 1), (5): one that has ended counts with its last return. All numbers by hand."""
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 9.0], [5.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    found, _ = Advantages(kind="rloo")(rewards, None, mask, [0, 0, 0])
    assert found.tolist() == [[0.0, -1.0, -1.0], [-3.0, -2.5, 0.0], [3.0, 0.0, 0.0]]
    # Deviations from the means 3, 8/3, 8/3: squares' means 8/27, (4 + 25/9) / 2 and 4, their sum over 2.
    found, _ = Advantages(kind="grpo")(rewards, None, mask, [0, 0, 0])
    std = math.sqrt((8 / 27 + 61 / 18 + 4) / 2)
    torch.testing.assert_close(found, torch.tensor([[0.0, -2 / 3, -2 / 3], [-2.0, -5 / 3, 0.0], [2.0, 0.0, 0.0]]) / std)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
@pytest.mark.parametrize("score", [0.1, 1e-30, -7e8, 1 / 3])
def test_a_group_of_equal_returns_has_no_advantage(kind, score):
    rewards, mask = paid_at_the_end([score] * 7, [3, 1, 4, 1, 5, 9, 2])
    assert not Advantages(kind=kind)(rewards, None, mask, [0, 0, 0, 1, 0, 0, 2])[0].any()


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_in_no_group(kind, bad):
    generator = torch.Generator().manual_seed(5)
    returns, mask = torch.randn(5, 6, generator=generator), torch.arange(6) < torch.tensor([6, 2, 4, 5, 3])[:, None]
    way = (kind == "rloo", kind == "grpo")
    spoiled = returns.clone()
    spoiled[1, 0] = bad
    found = against_group(spoiled, mask, [0, 0, 0, 1, 1], *way)
    kept = [0, 2, 3, 4]
    assert torch.equal(found[kept], against_group(returns[kept], mask[kept], [0, 0, 1, 1], *way))
    assert not found[1, 0].isfinite()
    # The only other sample is not finite: nothing is left to compare with.
    assert not against_group(spoiled[:2], mask[:2], [0, 0], *way)[0].any()


def test_what_is_taken_off_by_rloo_does_not_depend_on_the_response():
    """So that its expectation under the policy is 0: d A / d G = 1 at the response's own return, whatever the token."""
    returns = torch.randn(4, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64).requires_grad_()
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]
    for b, t in mask.nonzero().tolist():
        (slope,) = torch.autograd.grad(against_group(returns, mask, [0, 0, 0, 0], True)[b, t], returns)
        assert slope[b].tolist() == pytest.approx([float(s == t) for s in range(5)], abs=1e-6)
        assert slope.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="known: gae, rloo, grpo, reinforce"):
        Advantages(kind="remax")
