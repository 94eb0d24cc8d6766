"""What must hold across functions: one code path for three levels, and no dependence on padding, order or split."""

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.advantages import gae, whiten
from denserl.ppo_utils.assignment import KINDS, assign_rewards
from denserl.ppo_utils.kl import approx_kl, penalised_rewards
from denserl.ppo_utils.losses import policy_loss, value_loss
from denserl.ppo_utils.normalizer import LocationNormalizer, ScalarNormalizer
from denserl.rewards.aggregation import AGGREGATIONS, aggregate
from denserl.segmentation import segment_by_entropy, segment_scores

LINES = (0.7668, 0.2569, 0.4705, 2.8339)
LEVELS = [
    (0.0, "even"),
    (1.75, "even"),
    (1.75, "repeat"),
    (1.75, "end"),
    (1.75, "logsumexp_last"),
    (1000.0, "mean_last"),
    (0.0, "difference"),
    (1.75, "difference"),
    (1.75, "difference_end"),
    (1000.0, "difference"),
]
# The same numbers summed over a different number of zeros, and vectorised logarithms: a few fp32 roundings.
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


def pipeline(inputs: dict, threshold: float, kind: str) -> dict:
    """From entropies and scores to advantages and the loss of each row; every value is per row or per token."""
    mask = inputs["mask"]
    segments = segment_by_entropy(inputs["entropy"], mask, threshold, inputs["ended"])
    scores = segment_scores(inputs["scores"], segments)
    normalizer = LocationNormalizer(*LINES) if kind in ("even", "repeat", "end") else ScalarNormalizer(-0.5, 2.0)
    rewards = assign_rewards(normalizer(scores, segments.counts), segments, kind, mask)
    penalised = penalised_rewards(rewards, approx_kl(inputs["logprobs"], inputs["ref_logprobs"]), mask, beta=0.01)
    advantages, returns = gae(penalised, inputs["values"], mask)
    return {
        "ids": segments.ids,
        "ends": segments.ends,
        "counts": segments.counts,
        "score": aggregate(scores, segments.counts),
        "token rewards": rewards,
        "penalised": penalised,
        "advantages": advantages,
        "returns": returns,
    }


def make_inputs(batch) -> dict:
    ended = torch.ones(len(batch.mask)) if batch.has_end_of_turn is None else batch.has_end_of_turn
    names = ("scores", "logprobs", "ref_logprobs", "values")
    return {"mask": batch.mask, "entropy": batch.entropy, "ended": ended, **{name: batch.normal() for name in names}}


def select(inputs: dict, rows) -> dict:
    return {name: x[rows] for name, x in inputs.items()}


def assert_same(found: dict, expected: dict):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@given(loops.batches(), st.sampled_from(LEVELS))
def test_nothing_off_the_mask_is_non_zero(batch, level):
    inputs = make_inputs(batch)
    off = ~batch.mask.bool()
    found = pipeline(inputs, *level)
    assert (found["ids"][off] == -1).all() and not found["ends"][off].any()
    whitened = whiten(found["advantages"], batch.mask)
    for x in (found["token rewards"], found["penalised"], found["advantages"], found["returns"], whitened):
        assert x.isfinite().all() and (x[off] == 0).all()


@given(loops.batches(), st.sampled_from(LEVELS), st.integers(1, 9))
def test_padding_changes_nothing(batch, level, columns):
    inputs = make_inputs(batch)
    rows, width = batch.mask.shape
    wider = {"ended": inputs["ended"], "mask": torch.cat([batch.mask, batch.mask.new_zeros(rows, columns)], 1)}
    for name in inputs.keys() - wider.keys():
        wider[name] = loops.spoil(torch.cat([inputs[name], torch.zeros(rows, columns)], 1), wider["mask"])
    found, expected = pipeline(wider, *level), pipeline(inputs, *level)
    trimmed = {name: x if x.ndim == 1 else x[:, :width] for name, x in found.items()}
    assert_same(trimmed, expected)
    torch.testing.assert_close(
        whiten(found["advantages"], wider["mask"])[:, :width],
        whiten(expected["advantages"], batch.mask),
        # Whitening divides by a spread that may be small when a batch has two or three tokens.
        atol=1e-3,
        rtol=1e-3,
    )


@given(loops.batches(), st.sampled_from(LEVELS), st.randoms(use_true_random=False))
def test_order_changes_nothing(batch, level, random):
    inputs = make_inputs(batch)
    order = list(range(len(batch.mask)))
    random.shuffle(order)
    expected = {name: x[order] for name, x in pipeline(inputs, *level).items()}
    assert_same(pipeline(select(inputs, order), *level), expected)


@given(loops.batches(), st.sampled_from(LEVELS), st.integers(0, 5))
def test_splitting_changes_nothing(batch, level, at):
    inputs = make_inputs(batch)
    parts = [pipeline(select(inputs, rows), *level) for rows in (slice(0, at), slice(at, None))]
    assert_same({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, pipeline(inputs, *level))


@given(loops.batches(), st.sampled_from(["even", "repeat", "end"]))
def test_every_token_its_own_segment_is_the_token_path(batch, kind):
    """Threshold 0 and entropies above it: token t of the n content tokens gets its own score, normalised at t / n."""
    entropy, mask = batch.entropy + 0.25, batch.mask
    segments = segment_by_entropy(entropy, mask, 0.0, batch.has_end_of_turn)
    scores = batch.normal()
    rewards = LocationNormalizer(*LINES)(segment_scores(scores, segments), segments.counts)
    found = assign_rewards(rewards, segments, kind, mask)
    expected = torch.zeros(mask.shape)
    for b, tokens in enumerate(loops.places(mask)):
        ended = batch.has_end_of_turn is None or batch.has_end_of_turn[b]
        n = max(len(tokens) - 1, min(len(tokens), 1)) if ended else len(tokens)
        expected[b, :n] = torch.tensor(loops.normalise(scores[b, :n].tolist(), *LINES))
        assert segments.counts[b] == n
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=3e-6)


@given(loops.batches(), st.sampled_from([1000, 1000.0, 1e4]))
def test_threshold_1000_is_the_bandit_path_bit_for_bit(batch, threshold):
    """One score read at the last response token, end-of-turn or not, scaled, and paid there."""
    mean, std = -0.51953125, 2.15625
    segments = segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    scores = batch.normal()
    per_segment = segment_scores(scores, segments)
    found = assign_rewards(ScalarNormalizer(mean, std)(per_segment, segments.counts), segments, "mean_last", batch.mask)
    plain_scores, plain_rewards = torch.zeros(len(scores)), torch.zeros(scores.shape)
    for b, tokens in enumerate(loops.places(batch.mask)):
        if tokens:
            plain_scores[b] = scores[b, tokens[-1]]
            plain_rewards[b, tokens[-1]] = (plain_scores[b] - mean) / std
    assert torch.equal(aggregate(per_segment, segments.counts), plain_scores)
    assert torch.equal(found, plain_rewards)
    assert segments.lengths.shape[1] <= 1


@given(
    loops.batches(),
    st.sampled_from([0.0, 0.5, 1.75, 1000.0]),
    st.sampled_from(["difference", "difference_end"]),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([0.0, 0.9, 1.0]),
)
def test_differences_are_one_reward_at_the_end_whose_critic_knows_the_score_so_far(batch, threshold, kind, agg_func, lam):
    """Shaping by a potential is a first value by it (Wiewiora 2003): paid at the end, values V give the advantages that
    differences give to V less what has been paid, for any V and lambda, at gamma 1.
    """
    segments = segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    rewards, values = torch.randn(segments.lengths.shape, generator=batch.generator), batch.normal()
    at_end = assign_rewards(rewards, segments, "score_last", batch.mask, agg_func=agg_func)
    dense = assign_rewards(rewards, segments, kind, batch.mask, agg_func=agg_func)
    paid_before = dense.cumsum(1) - dense
    expected, _ = gae(at_end, values, batch.mask, lam=lam)
    found, _ = gae(dense, values - paid_before, batch.mask, lam=lam)
    # Sums of a dozen fp32 numbers of size 10, added up in another order.
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@given(loops.batches())
def test_at_the_bandit_level_all_last_token_strategies_agree(batch):
    segments = segment_by_entropy(batch.entropy, batch.mask, 1000)
    rewards = torch.randn(segments.lengths.shape, generator=batch.generator)
    expected = assign_rewards(rewards, segments, "end")
    assert torch.equal(assign_rewards(rewards, segments, "mean_last"), expected)
    assert torch.equal(assign_rewards(rewards, segments, "mean_last", batch.mask), expected)
    torch.testing.assert_close(assign_rewards(rewards, segments, "logsumexp_last"), expected, **CLOSE)


@given(loops.batches(), st.sampled_from([0.0, 0.5, 1.75, 1000.0]))
def test_a_segments_token_rewards_sum_to_its_normalised_reward(batch, threshold):
    segments = segment_by_entropy(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    scores = batch.normal()
    rewards = LocationNormalizer(*LINES)(segment_scores(scores, segments), segments.counts)
    found = assign_rewards(rewards, segments, "even", batch.mask)
    rows = loops.segment(batch.entropy, batch.mask, threshold, batch.has_end_of_turn)
    for b, row in enumerate(rows):
        expected = loops.normalise([scores[b, tokens[-1]].item() for tokens in row], *LINES)
        sums = [found[b, tokens].sum().item() for tokens in row]
        assert sums == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("threshold, kind", [(t, kind) for t in (0.0, 1.75, 1000.0) for kind in KINDS])
def test_one_token_alone(threshold, kind):
    """A response that is only an end-of-turn token: one segment, one reward, advantage = that reward - value."""
    one = torch.ones(1, 1)
    segments = segment_by_entropy(one, one, threshold)
    rewards = assign_rewards(segment_scores(one * 3, segments), segments, kind, one)
    advantages, returns = gae(rewards, one * 0.5, one)
    assert rewards.item() == pytest.approx(3.0) and segments.lengths.tolist() == [[1]]
    assert advantages.item() == pytest.approx(2.5) and returns.item() == pytest.approx(3.0)
    assert whiten(advantages, one).item() == 0.0
    assert policy_loss(one, one, advantages, one)[0].item() == pytest.approx(-2.5)
    assert value_loss(one * 0.5, one * 0.5, returns, one)[0].item() == pytest.approx(3.125)


@given(loops.batches())
def test_losses_do_not_depend_on_padding_or_order(batch):
    x, old, third = batch.normal(), batch.normal(), batch.normal()
    rows = batch.mask.shape[0]
    mask = torch.cat([batch.mask, batch.mask.new_zeros(rows, 3)], 1).flip(0)
    wider = [loops.spoil(torch.cat([y, torch.zeros(rows, 3)], 1).flip(0), mask) for y in (x, old, third)]
    for loss in (policy_loss, value_loss):
        for average in ("sequence", "token_mean"):
            found = torch.stack(loss(*wider, mask, average=average))
            expected = torch.stack(loss(x, old, third, batch.mask, average=average))
            # Ratios up to exp(6) make terms of size 1000, and the order of the sum changes.
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
