"""Policy and value loss against loops over tokens: values, clip shares, gradients, and splitting into micro-batches."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.losses import average_count, kl_loss, masked_average, policy_loss, value_loss

AVERAGE = st.sampled_from(["sequence", "token_mean", "constant"])
CLIP = st.sampled_from([0.1, 0.2, 0.5])
LOSSES = [(policy_loss, loops.policy_terms), (value_loss, loops.value_terms)]
# Terms of size 10 in fp32, at most 60 of them, against float64.
CLOSE = {"abs": 5e-6, "rel": 5e-6}


def inputs(batch):
    """Something to take a loss of: (x, old x, advantages or returns), x a leaf; about half the tokens are clipped."""
    old = batch.normal()
    x = (old + 0.4 * batch.normal()).requires_grad_()
    return x, old, batch.normal()


@pytest.mark.parametrize("loss, terms", LOSSES)
@given(batch=loops.batches(), clip=CLIP, average=AVERAGE)
def test_equals_the_loop(loss, terms, batch, clip, average):
    x, old, third = inputs(batch)
    rows = terms(x.detach(), old, third, batch.mask, clip)
    value, share = loss(x, old, third, batch.mask, clip, average)
    assert value.shape == share.shape == () and value.dtype == share.dtype == torch.float32
    assert value.item() == pytest.approx(loops.average([[a for a, _, _ in row] for row in rows], average), **CLOSE)
    assert share.item() == pytest.approx(loops.average([[b for _, b, _ in row] for row in rows], average), **CLOSE)
    assert value.requires_grad and not share.requires_grad


@pytest.mark.parametrize("loss, terms", LOSSES)
@given(batch=loops.batches(), clip=CLIP, average=AVERAGE)
def test_gradient_equals_the_loop(loss, terms, batch, clip, average):
    """The derivative of each token's term, over its row's tokens and the rows; nothing off the mask."""
    x, old, third = inputs(batch)
    rows = terms(x.detach(), old, third, batch.mask, clip)
    loss(x, old, third, batch.mask, clip, average)[0].backward()
    expected = torch.zeros(batch.mask.shape)
    filled = sum(1 for row in rows if row)
    for b, row in enumerate(rows):
        counts = {"sequence": len(row) * filled, "token_mean": sum(map(len, rows)), "constant": filled}
        for t, (_, _, derivative) in enumerate(row):
            expected[b, t] = derivative / counts[average]
    torch.testing.assert_close(x.grad, expected, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("loss", [policy_loss, value_loss])
@given(batch=loops.batches(), average=AVERAGE, size=st.integers(1, 3))
def test_micro_batches_add_up_to_the_whole(loss, batch, average, size):
    x, old, third = inputs(batch)
    whole = loss(x, old, third, batch.mask, 0.2, average)
    count = average_count(batch.mask, average)
    for number in (count, count.item()):
        slices = [slice(i, i + size) for i in range(0, len(x), size)]
        parts = [loss(x[i], old[i], third[i], batch.mask[i], 0.2, average, number) for i in slices]
        for k in range(2):
            assert math.fsum(part[k].item() for part in parts) == pytest.approx(whole[k].item(), **CLOSE)


@given(batch=loops.batches(), average=AVERAGE)
def test_masked_average_equals_the_loop(batch, average):
    x = batch.normal()
    rows = [[x[b, t].item() for t in tokens] for b, tokens in enumerate(loops.places(batch.mask))]
    assert masked_average(x, batch.mask, average).item() == pytest.approx(loops.average(rows, average), **CLOSE)
    expected = sum(map(len, rows)) if average == "token_mean" else sum(1 for row in rows if row)
    assert average_count(batch.mask, average).item() == expected


def test_the_averages_by_hand():
    """Rows of one and three tokens: a response weighs the same under `sequence`, a token under `token`."""
    x = torch.tensor([[4.0, 9.0, 9.0], [1.0, 2.0, 3.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    assert masked_average(x, mask).item() == 3.0
    assert masked_average(x, mask, "token_mean").item() == 2.5
    assert masked_average(x, mask, "sequence", count=4).item() == 1.5
    assert masked_average(x, mask, "token_mean", count=torch.tensor(20)).item() == 0.5
    # Sums 4 and 6 of two responses, each divided by 10 tokens.
    assert masked_average(x, mask, "constant", average_count(mask, "constant", 10)).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "ratio, advantage, expected, clipped",
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 1.0),
        (1.5, -2.0, 3.0, 0.0),
        (0.5, 2.0, -1.0, 0.0),
        (0.5, -2.0, 1.6, 1.0),
        (1.1, 1.0, -1.1, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, clipped):
    one = torch.ones(1, 1)
    loss, share = policy_loss(one * math.log(ratio), one * 0, one * advantage, one, clip=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and share.item() == clipped


@pytest.mark.parametrize(
    "value, old, target, expected, clipped",
    [
        (1.0, 1.0, 3.0, 2.0, 0.0),
        (2.0, 1.0, 3.0, 0.5 * 1.75**2, 1.0),  # held at 1.25, further from the target
        (2.0, 1.0, 1.0, 0.5, 0.0),  # held at 1.25, nearer to the target: the larger error counts
        (0.0, 1.0, -1.0, 0.5 * 1.75**2, 1.0),
    ],
)
def test_value_loss_by_hand(value, old, target, expected, clipped):
    one = torch.ones(1, 1)
    loss, share = value_loss(one * value, one * old, one * target, one, clip=0.25)
    assert loss.item() == pytest.approx(expected, rel=1e-6) and share.item() == clipped


def test_no_value_inside_the_clip_range_counts_as_clipped():
    """Rounding must not make the clipped error differ from the plain one where nothing was clipped."""
    generator = torch.Generator().manual_seed(0)
    values, returns = torch.randn(2, 64, 64, generator=generator)
    old = values + 0.2 * torch.rand(64, 64, generator=generator)
    assert value_loss(values, old, returns, torch.ones(64, 64), clip=0.25)[1].item() == 0.0


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, 100.0, 1e4])
def test_huge_log_ratios_give_no_nan(advantage, log_ratio):
    logprobs = torch.full((1, 2), log_ratio, requires_grad=True)
    loss, share = policy_loss(logprobs, torch.zeros(1, 2), torch.full((1, 2), advantage), torch.ones(1, 2))
    loss.backward()
    assert not loss.isnan() and not share.isnan() and not logprobs.grad.isnan().any()
    if advantage == 0:
        assert loss.item() == 0.0 and (logprobs.grad == 0).all()
    if advantage * log_ratio > 0:
        # Clipped: the loss is the bound, and nothing pulls further.
        assert loss.item() == pytest.approx(-1.2 if advantage > 0 else 0.8) and (logprobs.grad == 0).all()


@pytest.mark.parametrize("loss", [policy_loss, value_loss])
@pytest.mark.parametrize("average", ["sequence", "token_mean", "constant"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_nothing_on_the_mask(loss, average, shape):
    x = torch.full(shape, math.nan, requires_grad=True)
    for count in (None, 5.0, 0):
        value, share = loss(x, x.detach(), x.detach(), torch.zeros(shape), average=average, count=count)
        assert value.item() == share.item() == 0.0
    value.backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("count", [None, 3.0])
def test_unknown_average(count):
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="'mean'.*sequence, token"):
        masked_average(one, one, "mean", count)
    with pytest.raises(ValueError, match="unknown average"):
        policy_loss(one, one, one, one, average="mean", count=count)
    with pytest.raises(ValueError, match="unknown average"):
        value_loss(one, one, one, one, average="mean", count=count)


def test_a_part_of_a_step_is_divided_by_its_share_below_one():
    mask = torch.ones(1, 2)
    assert masked_average(torch.tensor([[1.0, 3.0]]), mask, "token_mean", 0.5).item() == pytest.approx(8)


@pytest.mark.parametrize("gap, log_ratio", [(25.0, 20.0), (-25.0, -20.0), (19.0, 19.0)])
def test_log_ratios_are_held_within_twenty(gap, log_ratio):
    """A negative advantage takes the larger of both terms, a positive one the smaller: here the ratio itself."""
    advantage = -1.0 if gap > 0 else 1.0
    loss, _ = policy_loss(torch.tensor([[gap]]), torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), 1e9)
    assert loss.item() == pytest.approx(-advantage * math.exp(log_ratio), rel=1e-5)


def test_values_move_by_a_fifth_unless_told_otherwise():
    """From 0 to 1 with a return of 0.5: clipped at 0.2 the loss is max(0.25, 0.09) / 2, of a return of 2 max(1, 3.24) / 2."""
    found = [value_loss(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[r]]), torch.ones(1, 1))[0].item() for r in (0.5, 2)]
    assert found == pytest.approx([0.125, 1.62])


def test_the_kl_as_a_term_of_the_loss_by_hand():
    """k3 of log-ratios 0.2, -0.1 and 0.3: exp(-d) - 1 + d, whose gradient is 1 - exp(-d)."""
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 9.0]], requires_grad=True)
    ref_logprobs, mask = torch.tensor([[-1.2, -1.9], [-3.3, math.nan]]), torch.tensor([[1, 1], [1, 0]])
    loss = kl_loss(logprobs, ref_logprobs, mask, "token_mean")
    assert loss.item() == pytest.approx(sum(math.exp(-d) - 1 + d for d in (0.2, -0.1, 0.3)) / 3, rel=1e-5)
    loss.backward()
    expected = [(1 - math.exp(-d)) / 3 for d in (0.2, -0.1, 0.3)]
    assert logprobs.grad.flatten().tolist() == pytest.approx([*expected, 0.0], rel=1e-5)
