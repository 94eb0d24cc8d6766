"""GAE against the backward loop and closed forms; whitening against its definition."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.advantages import gae, masked_moments, whiten

FACTORS = st.sampled_from([0.0, 0.5, 0.95, 1.0])
# Sums of at most 12 numbers of size 4 in fp32, against float64.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@given(loops.batches(), FACTORS, FACTORS)
def test_gae_equals_the_loop(batch, gamma, lam):
    rewards, values = batch.normal(), batch.normal()
    advantages, returns = gae(rewards, values, batch.mask, gamma, lam)
    assert advantages.dtype == returns.dtype == torch.float32
    for found, expected in zip((advantages, returns), loops.gae(rewards, values, batch.mask, gamma, lam)):
        torch.testing.assert_close(found, torch.tensor(expected).reshape(found.shape), **CLOSE)
        assert (found[~batch.mask.bool()] == 0).all()


def test_gae_equals_the_loop_at_full_length():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 1024, generator=generator)
    mask = torch.arange(1024) < torch.tensor([1024, 1000, 1])[:, None]
    for found, expected in zip(gae(rewards, values, mask), loops.gae(rewards, values, mask, 1.0, 0.95)):
        # With 1 / (1 - 0.95) = 20 terms that count, the sums are of size 10 whatever the length.
        torch.testing.assert_close(found, torch.tensor(expected), **CLOSE)


def test_undiscounted_returns_are_the_rewards_to_go():
    """gamma = lam = 1. Whole numbers far below 2^24 add up without rounding, so equality is exact."""
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randint(-50, 50, (2, 4, 777), generator=generator).float()
    mask = torch.arange(777) < torch.tensor([777, 512, 513, 0])[:, None]
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.equal(returns, to_go)
    assert torch.equal(advantages, (to_go - values) * mask)


def test_lam_zero_is_the_temporal_difference():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[10.0, 20.0, 30.0, 9.0]])
    advantages, returns = gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[1.0, -3.0, -27.0, 0.0]]
    assert returns.tolist() == [[11.0, 17.0, 3.0, 0.0]]


def test_constant_reward_sums_a_geometric_series():
    n, decay = 300, 0.9 * 0.95
    advantages, _ = gae(torch.ones(1, n), torch.zeros(1, n), torch.ones(1, n), gamma=0.9, lam=0.95)
    expected = [(1 - decay ** (n - t)) / (1 - decay) for t in range(n)]
    torch.testing.assert_close(advantages[0], torch.tensor(expected), atol=0, rtol=2e-6)


def test_one_reward_at_the_end_decays_backwards():
    rewards = torch.zeros(1, 100)
    rewards[0, 79] = 1.0
    advantages, returns = gae(rewards, torch.zeros(1, 100), torch.arange(100)[None] < 80)
    expected = [0.95 ** (79 - t) if t < 80 else 0.0 for t in range(100)]
    torch.testing.assert_close(advantages[0], torch.tensor(expected), atol=0, rtol=1e-5)
    assert torch.equal(advantages, returns)


def test_gae_passes_gradients_to_rewards():
    """dA_0 / dr_t = (gamma lam)^t inside the mask."""
    rewards = torch.zeros(1, 4, requires_grad=True)
    advantages, _ = gae(rewards, torch.zeros(1, 4), torch.tensor([[1, 1, 1, 0]]), gamma=1.0, lam=0.5)
    advantages[0, 0].backward()
    assert rewards.grad.tolist() == [[1.0, 0.5, 0.25, 0.0]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_nothing_on_the_mask(shape):
    junk = torch.full(shape, math.nan)
    for found in (*gae(junk, junk, torch.zeros(shape)), whiten(junk, torch.zeros(shape))):
        assert found.shape == shape and (found == 0).all()


@given(loops.batches())
def test_whiten_equals_the_loop(batch):
    x = batch.normal() * 3 + 1
    expected = torch.tensor(loops.whiten(x, batch.mask)).reshape(x.shape)
    # Few numbers may lie close together: an fp32 rounding of x (5e-7) counts in units of the standard deviation.
    own = x[batch.mask.bool()].double()
    spread = own.std(correction=0).item() if len(own) else 1.0
    found = whiten(x, batch.mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 / (spread + 1e-4))


def test_whitened_mean_and_variance():
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(2)) * 7 + 100
    mask = torch.arange(256) < torch.arange(16)[:, None] * 16
    own = whiten(x, mask)[mask].double()
    # x is known to 4e-6 (an fp32 rounding at 100), its spread is 7.
    assert abs(own.mean().item()) < 1e-6
    assert own.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1000.1, -7e4])
@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_a_constant_whitens_to_zero(value, tokens):
    found = whiten(torch.full((1, 1024), value), torch.arange(1024)[None] < tokens)
    # Nothing tells equal numbers apart: whatever rounding leaves of their mean must not be blown up to order one.
    assert found.abs().max().item() < 1e-2


def test_moments_by_hand():
    x, mask = torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    mean, variance = masked_moments(x, mask)
    assert mean.item() == 3.0 and variance.item() == pytest.approx(14 / 3, rel=1e-6)
    mean, variance = masked_moments(x, torch.zeros(2, 3))
    assert mean.item() == variance.item() == 0.0
