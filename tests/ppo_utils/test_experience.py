"""Experience against the loops: penalised rewards, GAE, whitening, and what is logged of them."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.advantages import Advantages
from denserl.ppo_utils.experience import Experience, ScoredRollouts, make_experience
from denserl.ppo_utils.losses import highest_entropies

KL = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}


def scored_rollouts(batch) -> ScoredRollouts:
    """Rollouts with random numbers; token rewards are 0 off the mask, everything else is anything but a number there.

    What each source says, before weights and penalties, is nothing that experience is made of.
    """
    mask = batch.mask.bool()
    tokens = torch.where(mask, 4 * torch.randn(mask.shape, generator=batch.generator), 0.0)
    return ScoredRollouts(mask, torch.ones(len(mask)).bool(), batch.normal(), batch.normal(), batch.entropy, tokens, [])


def expected_rewards(scored, beta, clip, estimator):
    out = torch.zeros(scored.mask.shape, dtype=torch.float64)
    for b, places in enumerate(loops.places(scored.mask)):
        for t in places:
            difference = scored.logprobs[b, t].item() - scored.ref_logprobs[b, t].item()
            reward = min(max(scored.rewards[b, t].item(), -clip), clip)
            out[b, t] = reward - beta * KL[estimator](difference)
    return out


@given(loops.batches(), st.sampled_from(sorted(KL)), st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)]))
def test_experience_is_what_the_loops_make(batch, estimator, discounts):
    scored, values, (gamma, lam) = scored_rollouts(batch), batch.normal(), discounts
    got, log = make_experience(
        scored, values, beta=0.3, reward_clip=3.0, kl_estimator=estimator, estimate=Advantages(gamma, lam)
    )
    rewards = expected_rewards(scored, 0.3, 3.0, estimator)
    advantages, returns = (torch.tensor(x) for x in loops.gae(rewards, values, scored.mask, gamma, lam))
    whitened = torch.tensor(loops.whiten(advantages, scored.mask))
    for name, want in (("advantages", whitened), ("returns", returns)):
        want = want.reshape(scored.mask.shape).float()
        torch.testing.assert_close(getattr(got, name), want, rtol=1e-3, atol=1e-4, msg=name)
    assert torch.equal(got.mask, scored.mask)
    assert torch.equal(got.logprobs[scored.mask], scored.logprobs[scored.mask])
    assert torch.equal(got.values[scored.mask], values[scored.mask])
    assert got.weights is None
    for x in got[:-1]:
        assert not x[~scored.mask].any()


@given(loops.batches(), st.integers(0, 3))
def test_what_is_logged(batch, _):
    scored, values = scored_rollouts(batch), batch.normal()
    _, log = make_experience(scored, values, beta=0.1, reward_clip=10.0, kl_estimator="k1", estimate=Advantages(1.0, 0.9))
    rewards = expected_rewards(scored, 0.1, 10.0, "k1")
    advantages, returns = (torch.tensor(x) for x in loops.gae(rewards, values, scored.mask, 1.0, 0.9))
    if scored.mask.sum() < 2:
        assert all(torch.isfinite(value) for value in log.values())
        return
    advantages, returns = (x.reshape(scored.mask.shape)[scored.mask] for x in (advantages, returns))
    unexplained = (returns - values[scored.mask]).var(correction=0) / returns.var(correction=0)
    assert log["advantage_mean"].item() == pytest.approx(advantages.mean().item(), rel=1e-4, abs=1e-5)
    assert log["advantage_std"].item() == pytest.approx(advantages.std(correction=0).item(), rel=1e-4, abs=1e-5)
    assert log["explained_variance"].item() == pytest.approx(
        1 - unexplained.item(), rel=1e-3, abs=1e-3 * (1 + unexplained.item())
    )


def test_rows_are_picked_and_cut():
    whole = Experience(*(torch.arange(12).reshape(3, 4) + 100 * i for i in range(7)))
    part = whole.rows(torch.tensor([2, 0]), 3)
    assert part.mask.tolist() == [[8, 9, 10], [0, 1, 2]]
    assert part.returns.tolist() == [[408, 409, 410], [400, 401, 402]]


def test_rewards_that_are_all_the_same_give_numbers():
    mask = torch.ones(3, 4).bool()
    zero = torch.zeros(3, 4)
    scored = ScoredRollouts(mask, torch.ones(3).bool(), zero - 1, zero - 1, zero, zero, [])
    got, log = make_experience(scored, zero, beta=0.1, reward_clip=10.0, kl_estimator="k1", estimate=Advantages(1.0, 0.95))
    assert not got.advantages.any() and not got.returns.any()
    assert all(torch.isfinite(value) for value in log.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_response_that_is_not_finite_leaves_the_others_as_they_would_be_without_it(bad):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 4).bool()
    logprobs, ref_logprobs, entropy, values = torch.randn(4, 3, 4, generator=generator)
    rewards = torch.randn(3, 4, generator=generator)
    settings = {"beta": 0.1, "reward_clip": 10.0, "kl_estimator": "k1", "estimate": Advantages(1.0, 0.9)}

    def made(rows: list[int], rewards):
        scored = ScoredRollouts(mask, mask.any(1), logprobs, ref_logprobs, entropy, rewards, [])
        scored = ScoredRollouts(*(x[rows] for x in scored[:6]), [])
        return make_experience(scored, values[rows], **settings)

    spoiled = rewards.clone()
    spoiled[1, 2] = bad
    (whole, log), (others, of_others) = made([0, 1, 2], spoiled), made([0, 2], rewards)
    assert whole.advantages[1].isnan().all() and whole.returns[1].isnan().all()
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(whole, name)[[0, 2]], getattr(others, name))
    assert {key: value.item() for key, value in log.items()} == pytest.approx({k: v.item() for k, v in of_others.items()})


def test_variance_is_explained_whatever_the_size_of_returns():
    """Two responses of one token: returns +-0.01, values +-0.005, so that a quarter of the variance is left."""
    one, zero = torch.ones(2, 1).bool(), torch.zeros(2, 1)
    rewards = torch.tensor([[0.01], [-0.01]])
    scored = ScoredRollouts(one, one[:, 0], zero, zero, zero, rewards, [])
    _, log = make_experience(scored, rewards / 2, beta=0.0, reward_clip=10.0, kl_estimator="k1", estimate=Advantages(1.0, 1.0))
    assert log["explained_variance"].item() == pytest.approx(0.75, abs=1e-5)


@given(loops.batches(), st.sampled_from([0.1, 0.2, 0.5, 0.9]))
def test_the_policy_learns_from_the_tokens_of_highest_entropy(batch, share):
    """Sorted by hand; the share of them and the least entropy among them are logged, and the rest stays as it is."""
    scored, values = scored_rollouts(batch), batch.normal()
    settings = {"beta": 0.1, "reward_clip": 10.0, "kl_estimator": "k1", "estimate": Advantages(1.0, 0.95)}
    got, log = make_experience(scored, values, **settings, policy_tokens=share)
    whole, before = make_experience(scored, values, **settings)
    places = [(b, t) for b, row in enumerate(loops.places(scored.mask)) for t in row]
    places.sort(key=lambda place: -scored.entropy[place].item())
    count = -(-round(1000 * share) * len(places) // 1000)
    while count < len(places) and scored.entropy[places[count]] == scored.entropy[places[count - 1]]:
        count += 1
    assert sorted(map(tuple, got.policy_mask.nonzero().tolist())) == sorted(places[:count])
    if places:
        assert log["policy_tokens"].item() == pytest.approx(count / len(places))
        assert log["policy_entropy"].item() == scored.entropy[places[count - 1]].item()
    assert torch.equal(whole.policy_mask, scored.mask) and "policy_tokens" not in before
    assert all(torch.equal(x, y) for x, y in zip(got[:6], whole[:6], strict=True))


def test_tokens_of_equal_entropy_count_alike_and_what_is_no_number_counts():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    entropy = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.5, 9.0]])
    chosen, least = highest_entropies(entropy, mask, 0.4)
    assert chosen.tolist() == [[True, True, True], [True, False, False]] and least.item() == 1.0
    chosen, least = highest_entropies(torch.where(entropy == 0.5, torch.nan, entropy), mask, 0.2)
    assert chosen.tolist() == [[True, False, False], [False, True, False]] and least.item() == 2.0
    # Seven of a hundred, although 0.07 * 100 is a little more than 7.
    assert highest_entropies(torch.arange(100.0)[None], torch.ones(1, 100).bool(), 0.07)[0].sum() == 7 < 0.07 * 100
    chosen, _ = highest_entropies(entropy, torch.zeros_like(mask), 0.5)
    assert not chosen.any()
