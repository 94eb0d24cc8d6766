"""GAE, whitening, losses and KL against other people's libraries; each test is skipped where its library is missing.

Compared with verl 0.9.1 (`verl.trainer.ppo.core_algos`) and trl 1.12.0 (`masked_whiten` of its PPO trainer).
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from denserl.ppo_utils.advantages import Advantages, gae, whiten
from denserl.ppo_utils.kl import KLCoefficient, approx_kl, penalised_rewards
from denserl.ppo_utils.losses import average_count, kl_loss, policy_loss, value_loss

# Their name for each of our averages.
MODES = [("sequence", "seq-mean-token-mean"), ("token_mean", "token-mean")]
SEEDS = range(3)
# Both sides compute in fp32, in different orders.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def verl():
    return pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)


def batch(seed: int, fields: int = 3):
    """Random (6, 40) tensors, finite everywhere because others multiply by the mask, and a mask without empty rows."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(40) < torch.tensor([40, 1, 17, 2, 39, 8])[:, None]
    return *torch.randn(fields, 6, 40, generator=generator), mask.float()


def whitened_as_theirs(found, mask):
    """Ours, by the unbiased variance that verl has in the place of the biased one."""
    tokens = mask.sum().item()
    return whiten(found, mask) * math.sqrt((tokens - 1) / tokens)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (1.0, 1.0), (0.99, 0.9), (1.0, 0.0)])
def test_gae_and_whitening_with_verl(seed, gamma, lam):
    theirs = verl()
    rewards, values, mask = batch(seed, 2)
    expected, expected_returns = theirs.compute_gae_advantage_return(rewards, values, mask, gamma, lam)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(returns, expected_returns * mask, **CLOSE)
    torch.testing.assert_close(whitened_as_theirs(advantages, mask), expected * mask, **CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_discounted_returns_with_verl(seed, gamma):
    """REINFORCE++, of rewards of tokens."""
    theirs = verl()
    rewards, mask = batch(seed, 1)
    config = SimpleNamespace(gamma=gamma)
    expected, expected_returns = theirs.compute_reinforce_plus_plus_outcome_advantage(rewards * mask, mask, config)
    found, returns = Advantages(gamma, kind="reinforce")(rewards, None, mask)
    torch.testing.assert_close(returns, expected_returns * mask, **CLOSE)
    torch.testing.assert_close(whitened_as_theirs(found, mask), expected * mask, **CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo", "reinforce_plus_plus_baseline"])
def test_returns_against_those_of_a_group_with_verl(seed, kind):
    """Of one reward at the end of each response, in groups of 4 and 2."""
    theirs = verl()
    scores, mask = batch(seed, 1)
    rewards = scores * (torch.arange(40) == mask.sum(1, keepdim=True) - 1)
    groups = [0, 1, 0, 0, 1, 0]
    names = {"dr_grpo": "grpo"}
    estimator = getattr(theirs, f"compute_{names.get(kind, kind)}_outcome_advantage")
    more = {"norm_adv_by_std_in_grpo": kind == "grpo"} if "grpo" in kind else {}
    expected, _ = estimator(rewards, mask, np.array(groups), **more)
    ours = Advantages(kind="rloo" if kind == "rloo" else "grpo", group_std=kind == "grpo")
    found, _ = ours(rewards, None, mask, groups)
    if kind == "reinforce_plus_plus_baseline":
        found = whitened_as_theirs(found, mask)
    torch.testing.assert_close(found, expected * mask, **CLOSE)


@pytest.mark.parametrize("module", ["trl.experimental.ppo.ppo_trainer", "verl.utils.torch_functional"])
@pytest.mark.parametrize("seed", SEEDS)
def test_whitening(module, seed):
    theirs = pytest.importorskip(module, exc_type=ImportError)
    x, mask = batch(seed, 1)
    expected = theirs.masked_whiten(x * 5 + 3, mask.bool()) * mask
    torch.testing.assert_close(whitened_as_theirs(x * 5 + 3, mask), expected, **CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("average, mode", [*MODES, ("constant", "seq-mean-token-sum-norm")])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_policy_loss_with_verl(seed, average, mode, dual_clip):
    """Their constant is the width of the batch, 40."""
    theirs = verl()
    logprobs, old, advantages, mask = batch(seed)
    ours, again = (0.5 * logprobs).requires_grad_(), (0.5 * logprobs).requires_grad_()
    count = average_count(mask, average, 40)
    loss, share = policy_loss(ours, 0.5 * old, advantages, mask, 0.2, average, count, dual_clip)
    # Far away, the second bound on tokens of negative advantage, which theirs always has, never acts.
    expected, expected_share, _, expected_lower = theirs.compute_policy_loss(
        0.5 * old, again, advantages, mask, cliprange=0.2, clip_ratio_c=dual_clip or 1e6, loss_agg_mode=mode
    )
    torch.testing.assert_close(loss, expected, **CLOSE)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, again.grad, **CLOSE)
    assert (expected_lower > 0) == (dual_clip is not None)
    if average == "token_mean":
        torch.testing.assert_close(share, expected_share + expected_lower, **CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("average, mode", MODES)
def test_a_kl_in_the_loss_with_verl(seed, average, mode):
    """Of gaps that are small: theirs cuts a token's estimate at 10."""
    theirs = verl()
    logprobs, ref_logprobs, _, mask = batch(seed)
    ours, again = (0.5 * logprobs).requires_grad_(), (0.5 * logprobs).requires_grad_()
    loss = kl_loss(ours, 0.5 * ref_logprobs, mask, average)
    expected = theirs.agg_loss(theirs.kl_penalty(again, 0.5 * ref_logprobs, "low_var_kl"), mask, mode)
    torch.testing.assert_close(loss, expected, **CLOSE)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, again.grad, **CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("average, mode", MODES)
@pytest.mark.parametrize("clip", [0.2, 0.25])
def test_value_loss_with_verl(seed, average, mode, clip):
    theirs = verl()
    values, old, returns, mask = batch(seed)
    ours, again = values.clone().requires_grad_(), values.clone().requires_grad_()
    loss, share = value_loss(ours, old, returns, mask, clip, average)
    expected, expected_share = theirs.compute_value_loss(again, returns, old, mask, clip, loss_agg_mode=mode)
    torch.testing.assert_close(loss, expected, **CLOSE)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, again.grad, **CLOSE)
    if average == "token_mean":
        torch.testing.assert_close(share, expected_share, **CLOSE)


@pytest.mark.parametrize("average, mode", MODES)
def test_micro_batches_with_verl(average, mode):
    """A part's loss, divided by the number of the whole batch."""
    theirs = verl()
    logprobs, old, advantages, mask = batch(0)
    count = {"sequence": 6, "token_mean": mask.sum()}[average]
    name = {"sequence": "global_batch_size", "token_mean": "batch_num_tokens"}[average]
    found, _ = policy_loss(logprobs[:2], old[:2], advantages[:2], mask[:2], 0.2, average, count)
    ratio = (logprobs - old).exp()
    terms = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    torch.testing.assert_close(found, theirs.agg_loss(terms[:2], mask[:2], mode, **{name: count}), **CLOSE)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_with_verl(estimator):
    theirs = verl()
    # Their k3 is held within +-10; these differences stay far below.
    logprobs, reference, _ = batch(0, 2)
    logprobs, reference = 0.3 * logprobs, 0.3 * reference
    expected = theirs.kl_penalty(logprobs, reference, estimator)
    # exp(x) - 1 - x cancels in theirs: an fp32 rounding of 1 is left.
    torch.testing.assert_close(approx_kl(logprobs, reference, estimator), expected, atol=5e-7, rtol=1e-6)


def test_penalised_rewards_with_verl():
    theirs = verl()
    rewards, logprobs, reference, mask = batch(0)
    found = penalised_rewards(rewards, approx_kl(logprobs, reference), mask, beta=0.01)
    torch.testing.assert_close(found, theirs.compute_rewards(rewards, logprobs, reference, 0.01) * mask, **CLOSE)


def test_adaptive_coefficient_with_verl():
    theirs = verl().AdaptiveKLController(0.05, target_kl=3.0, horizon=5000)
    ours = KLCoefficient(0.05, target=3.0, horizon=5000)
    for kl in (0.0, 1.0, 2.9, 3.1, 10.0):
        theirs.update(kl, 128)
        ours.update(kl, 128)
        assert ours.beta == pytest.approx(theirs.value, rel=1e-12)
