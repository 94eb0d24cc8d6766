"""The switches of PPO's losses against loops over tokens, and the numbers that its papers' formulas give for small examples."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.advantages import Advantages
from denserl.ppo_utils.kl import approx_kl, penalised_rewards
from denserl.ppo_utils.losses import policy_loss, value_loss

ONES = torch.ones(1, 3)
# Rewards -.01, .02, 1 and values .5, .4, .6: what is left at each token, and its sums with lambda .95, by hand.
REWARDS, VALUES = torch.tensor([[-0.01, 0.02, 1.0]]), torch.tensor([[0.5, 0.4, 0.6]])
ADVANTAGES = torch.tensor([[0.46, 0.6, 0.4]])


def close(values) -> object:
    return pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("lam", "advantages", "returns"),
    [(0.95, [0.46, 0.6, 0.4], [0.96, 1.0, 1.0]), (0.9, [0.412, 0.58, 0.4], [0.912, 0.98, 1.0])],
)
def test_the_published_lambdas(lam, advantages, returns):
    found = Advantages(1.0, lam)(REWARDS, VALUES, ONES)
    assert [x[0].tolist() for x in found] == [close(advantages), close(returns)]


def test_advantages_are_whitened_then_clipped_and_each_alone():
    # The published code adds 1e-6 to the variance where this one adds 1e-8: the same of values that are ten times larger.
    whitened = [-0.31820026, 1.35235110, -1.03415084]

    def scaled(advantages, *settings) -> list[float]:
        return Advantages(1.0, 0.95, *settings).scaled(advantages, ONES)[0].tolist()

    assert scaled(ADVANTAGES / 10) == close(whitened)
    assert scaled(ADVANTAGES / 10, True, 0.5) == close([-0.31820026, 0.5, -0.5])
    assert scaled(ADVANTAGES, False) == close([0.46, 0.6, 0.4])
    assert scaled(ADVANTAGES - 0.5, False, 0.05) == close([-0.04, 0.05, -0.05])


def test_the_reward_of_a_response_and_the_kl_terms_of_its_tokens():
    logprobs, reference = torch.tensor([[0.2, -0.1, 0.3]]), torch.zeros(1, 3)
    paid = penalised_rewards(torch.tensor([[0.0, 0.0, 0.7]]), approx_kl(logprobs, reference), ONES, 0.05)
    assert paid[0].tolist() == close([-0.01, 0.005, 0.685])


def test_the_losses_of_three_tokens():
    log_ratios, advantages = torch.tensor([[0.3, -0.5, 0.1]]), torch.tensor([[1.0, -2.0, 0.5]])
    loss, share = policy_loss(log_ratios, torch.zeros(1, 3), advantages, ONES, 0.2, "token_mean")
    assert loss.item() == close(-0.05086182) and share.item() == close(2 / 3)
    assert approx_kl(torch.zeros(1, 3), log_ratios, "k3").mean().item() == close(0.05385346)
    values, old, returns = torch.tensor([[0.9, 0.1, 0.65]]), torch.tensor([[0.5, 0.4, 0.6]]), torch.tensor([[1.0, 0.0, 0.7]])
    assert value_loss(values, old, returns, ONES, 0.2, "token_mean")[0].item() == close(0.02208333)


def test_the_dual_clip_by_hand():
    """Ratio 4 with A = -2 costs 8, and at most 6 with c = 3; nothing else is touched."""
    log_ratios, advantages = torch.tensor([[4.0, 4.0, 2.9]]).log(), torch.tensor([[-2.0, 1.0, -1.0]])
    plain, _ = policy_loss(log_ratios, torch.zeros(1, 3), advantages, ONES, 0.2, "token_mean")
    bounded, share = policy_loss(log_ratios, torch.zeros(1, 3), advantages, ONES, 0.2, "token_mean", dual_clip=3.0)
    assert plain.item() == close((8 - 1.2 + 2.9) / 3) and bounded.item() == close((6 - 1.2 + 2.9) / 3)
    assert share.item() == close(2 / 3)


@given(batch=loops.batches(), dual=st.sampled_from([1.05, 1.5, 3.0]), average=st.sampled_from(["sequence", "token_mean"]))
def test_the_dual_clip_and_its_gradient_equal_the_loop(batch, dual, average):
    old, advantages = batch.normal(), batch.normal()
    logprobs = (old + batch.normal()).requires_grad_()
    rows = loops.policy_terms(logprobs.detach(), old, advantages, batch.mask, 0.2, dual)
    loss, share = policy_loss(logprobs, old, advantages, batch.mask, 0.2, average, dual_clip=dual)
    want_loss, want_share = (loops.average([[term[i] for term in row] for row in rows], average) for i in (0, 1))
    assert loss.item() == pytest.approx(want_loss, rel=1e-5, abs=1e-5)
    assert share.item() == pytest.approx(want_share, abs=1e-6)
    loss.backward()
    tokens, filled = sum(map(len, rows)), sum(map(bool, rows))
    for b, row in enumerate(rows):
        for t, (_, _, derivative) in enumerate(row):
            count = tokens if average == "token_mean" else len(row) * filled
            assert logprobs.grad[b, t].item() == pytest.approx(derivative / count, rel=1e-5, abs=1e-6)


def test_what_is_not_finite_stays_so_under_the_clips():
    """For its optimiser step to be skipped."""
    spoiled = torch.tensor([[math.nan, -1.0, 1.0]])
    assert Advantages(norm=False, clip=0.5).scaled(spoiled, ONES)[0, 0].isnan()
    assert policy_loss(ONES, ONES, spoiled, ONES, dual_clip=2.0)[0].isnan()
