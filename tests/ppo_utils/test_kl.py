"""KL estimators, the penalised reward and the adaptive coefficient, by hand."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.kl import ESTIMATORS, KLCoefficient, approx_kl, penalised_rewards

LOG2 = math.log(2)


@pytest.mark.parametrize("estimator, expected", [("k1", -LOG2), ("k2", LOG2**2 / 2), ("k3", 1 - LOG2)])
def test_by_hand(estimator, expected):
    """pi = 1/4, pi_ref = 1/2: d = -ln 2 and exp(-d) = 2."""
    found = approx_kl(torch.tensor([math.log(0.25)]), torch.tensor([math.log(0.5)]), estimator)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20))
def test_estimators_against_math(differences):
    d = torch.tensor(differences)
    reference = torch.zeros_like(d)
    assert torch.equal(approx_kl(d, reference, "k1"), d)
    expected = torch.tensor([x * x / 2 for x in differences])
    # Below 1e-38 fp32 has fewer digits, or none.
    torch.testing.assert_close(approx_kl(d, reference, "k2"), expected, atol=1e-38, rtol=1e-6)
    expected = torch.tensor([math.expm1(-x) + x for x in differences])
    # For small d, expm1(-d) and d cancel: what is left is right to an fp32 rounding of d itself.
    found = approx_kl(d, reference, "k3")
    assert ((found - expected).abs() <= 3e-7 * (d.abs() + expected) + 1e-38).all()


def test_k3_is_never_negative():
    size = torch.logspace(-30, 4, 20000)
    for d in (size, -size, torch.zeros(1)):
        assert (approx_kl(d, torch.zeros_like(d), "k3") >= 0).all()


def test_k1_and_k3_average_to_the_kl():
    """Expectation over the policy, summed over all its outcomes, is the KL divergence of the two distributions."""
    policy, reference = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    kl = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(0.5)
    for estimator in ("k1", "k3"):
        found = (policy * approx_kl(policy.log(), reference.log(), estimator)).sum().item()
        assert found == pytest.approx(kl, rel=1e-5)


def test_gradients():
    """By d: 1, d, and 1 - exp(-d)."""
    for estimator, expected in zip(("k1", "k2", "k3"), (1.0, LOG2, 0.5)):
        logprobs = torch.tensor([LOG2], requires_grad=True)
        approx_kl(logprobs, torch.zeros(1), estimator).sum().backward()
        assert logprobs.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_half_precision_shapes_and_huge_differences(estimator):
    half = torch.full((2, 3), -0.5, dtype=torch.bfloat16)
    found = approx_kl(half, torch.zeros_like(half), estimator)
    assert found.dtype == torch.float32 and found.shape == (2, 3)
    huge = torch.tensor([-1e4, 1e4])
    assert not approx_kl(huge, torch.zeros(2), estimator).isnan().any()
    assert approx_kl(torch.zeros(0, 3), torch.zeros(0, 3), estimator).shape == (0, 3)


def test_unknown_estimator():
    with pytest.raises(ValueError, match="'k4'.*k1, k2, k3"):
        approx_kl(torch.zeros(1), torch.zeros(1), "k4")


@given(loops.batches(), st.sampled_from([0.0, 0.01, 0.5]), st.sampled_from([0.5, 10.0]))
def test_penalised_rewards_equal_the_loop(batch, beta, clip):
    rewards, kl = batch.normal() * 8, batch.normal()
    expected = torch.zeros(batch.mask.shape)
    for b, tokens in enumerate(loops.places(batch.mask)):
        for t in tokens:
            expected[b, t] = min(max(rewards[b, t].item(), -clip), clip) - beta * kl[b, t].item()
    # One product and one difference of numbers up to 32.
    torch.testing.assert_close(penalised_rewards(rewards, kl, batch.mask, beta, clip), expected, atol=5e-6, rtol=0)


def test_the_reward_is_clipped_and_the_penalty_is_not():
    rewards, kl = torch.tensor([[25.0, -25.0, 3.0, 0.0]]), torch.tensor([[0.0, 5000.0, 1.0, 1.0]])
    found = penalised_rewards(rewards, kl, torch.tensor([[1, 1, 1, 0]]), beta=0.01)
    assert found[0].tolist() == pytest.approx([10.0, -60.0, 2.99, 0.0], rel=1e-6)


@pytest.mark.parametrize(
    "kl, responses, expected",
    [
        (12.0, 256, 0.0100512),  # error +1, held at +0.2: 0.01 * (1 + 0.2 * 0.0256)
        (0.0, 256, 0.0099488),  # error -1, held at -0.2
        (6.6, 256, 0.0100256),  # error +0.1
        (6.0, 256, 0.01),  # on target
        (12.0, 10000, 0.012),  # one whole horizon
    ],
)
def test_coefficient_steers_to_the_target(kl, responses, expected):
    coefficient = KLCoefficient(0.01, target=6.0, horizon=10000)
    coefficient.update(kl, responses)
    assert coefficient.beta == pytest.approx(expected, rel=1e-12)


def test_coefficient_without_a_target_stays():
    coefficient = KLCoefficient(0.01)
    coefficient.update(1e6, 1024)
    assert coefficient.beta == 0.01


def test_updates_multiply():
    coefficient = KLCoefficient(0.5, target=1.0, horizon=100)
    coefficient.update(5.0, 50)
    coefficient.update(5.0, 50)
    assert coefficient.beta == pytest.approx(0.5 * 1.1 * 1.1, rel=1e-12)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_leaves_the_coefficient(kl):
    coefficient = KLCoefficient(0.02, target=0.1, horizon=100)
    coefficient.update(kl, 64)
    assert coefficient.beta == 0.02
