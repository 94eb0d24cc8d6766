"""Engines whose log-probabilities are a little off: how far, and the weights that make up for it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.losses import policy_loss
from denserl.ppo_utils.mismatch import CORRECTIONS, importance_weights, mismatch

CAP = 2.0


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(kind: str, own: float, engine: float) -> float:
    """By the definitions, one token."""
    ratio = math.exp(own) / math.exp(engine)
    if kind == "truncated":
        return ratio if ratio <= CAP else CAP
    if kind == "masked":
        return 0.0 if ratio > CAP or ratio < 1 / CAP else ratio
    return 1.0


@pytest.mark.parametrize("kind", CORRECTIONS)
@given(seed=st.integers(0, 1000))
def test_a_loss_with_weights_is_the_loop_over_tokens(kind, seed):
    shape = 3, 5
    old, engine, new = -numbers(seed, *shape).abs(), -numbers(seed + 1, *shape).abs(), -numbers(seed + 2, *shape).abs()
    advantages, mask = numbers(seed + 3, *shape), numbers(seed + 4, *shape) > -1
    mask[:, 0] = True
    weights = importance_weights(old, engine, mask, kind, CAP)
    found, _ = policy_loss(new, old, advantages, mask, 0.2, "sequence", None, None, weights)
    expected = 0.0
    for b in range(shape[0]):
        terms = []
        for t in range(shape[1]):
            if mask[b, t]:
                rho, a = math.exp(new[b, t] - old[b, t]), advantages[b, t].item()
                surrogate = min(rho * a, min(max(rho, 0.8), 1.2) * a)
                terms.append(-weight(kind, old[b, t].item(), engine[b, t].item()) * surrogate)
        expected += sum(terms) / len(terms) / shape[0]
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_equal_log_probabilities_leave_loss_and_gradient_the_same_to_the_bit(kind):
    old, advantages, mask = -numbers(0, 4, 6).abs(), numbers(1, 4, 6), numbers(2, 4, 6) > -0.5
    results = []
    for weights in (None, importance_weights(old, old.clone(), mask, kind, CAP)):
        new = (old + 0.1 * numbers(3, 4, 6)).requires_grad_()
        loss, clipped = policy_loss(new, old, advantages, mask, weights=weights)
        loss.backward()
        results.append((loss.detach(), clipped, new.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_weights_have_no_gradient_and_know_nothing_of_what_is_off_the_mask():
    old, engine = torch.tensor([[-1.0, -2.0, 5.0]], requires_grad=True), torch.tensor([[-1.5, -1.0, -300.0]])
    mask = torch.tensor([[True, True, False]])
    weights = importance_weights(old, engine, mask, "truncated", CAP)
    assert weights.tolist()[0] == pytest.approx([math.exp(0.5), math.exp(-1.0), 0.0])
    new = torch.zeros(1, 3, requires_grad=True)
    policy_loss(new, old.detach(), torch.ones(1, 3), mask, weights=weights)[0].backward()
    assert old.grad is None and new.grad[0, 2] == 0


def test_log_probabilities_as_far_apart_as_may_be():
    old, engine, mask = torch.tensor([[-1e4, 0.0]]), torch.tensor([[0.0, -1e4]]), torch.ones(1, 2).bool()
    assert importance_weights(old, engine, mask, "truncated", CAP).tolist()[0] == pytest.approx([0.0, CAP])
    assert importance_weights(old, engine, mask, "masked", CAP).tolist() == [[0.0, 0.0]]


def test_an_unknown_correction():
    with pytest.raises(ValueError, match="unknown correction 'some'; known: none, truncated, masked"):
        importance_weights(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), "some", CAP)


def test_a_mismatch_is_the_mean_and_the_largest_distance_and_k3():
    own, engine = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, 9.0, 9.0]]), torch.tensor([[-1.5, -1.0, 1.0], [-0.5, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = mismatch(own, engine, mask)
    k3 = [math.exp(0.5) - 1 - 0.5, math.exp(-1.0) - 1 + 1.0, 0.0]
    assert found["rollout_mismatch_mean"] == pytest.approx(1.5 / 3)
    assert found["rollout_mismatch_max"] == pytest.approx(1.0)
    assert found["rollout_mismatch_k3"] == pytest.approx(sum(k3) / 3)
    assert set(mismatch(own[:0], engine[:0], mask[:0]).values()) == {0.0}
