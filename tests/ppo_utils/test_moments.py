"""Running moments against those of all numbers together, in any split; what is left out, and what has no spread."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.moments import RunningMoments
from denserl.ppo_utils.normalizer import RunningNormalizer

FIRST, SECOND = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0, 9.0])
NUMBERS = st.lists(st.floats(-50, 50, width=32), max_size=6)


def after(*batches, name="paid") -> RunningMoments:
    moments = RunningMoments()
    for batch in batches:
        moments.update({name: torch.as_tensor(batch)})
    return moments


def test_two_batches_by_hand():
    """Of 1 and 3: 2 and sqrt 2; of 1, 3, 5, 7 and 9: 5 and sqrt 10. A batch is normalised with itself among them."""
    for batches, expected in (((FIRST,), [-0.70710678, 0.70710678]), ((FIRST, SECOND), [0.0, 0.63245553, 1.26491106])):
        found = RunningNormalizer()(batches[-1], after(*batches).of("paid"))
        assert found.dtype == torch.float32 and found.tolist() == pytest.approx(expected, abs=1e-6)
    mean, std = after(FIRST, SECOND).of("paid")
    assert (mean.item(), std.item()) == pytest.approx((5, 3.16227766), abs=1e-8)
    scaled = RunningNormalizer(centre=False)(SECOND, after(FIRST, SECOND).of("paid"))
    assert scaled.tolist() == pytest.approx([1.58113883, 2.21359436, 2.84604989], abs=1e-6)


@given(st.lists(NUMBERS, max_size=5), st.sampled_from([0.0, 1e4]))
def test_moments_are_those_of_all_numbers_at_once(batches, shift):
    batches = [torch.tensor(batch) + shift for batch in batches]
    mean, std = after(*batches).of("paid")
    seen = [number for batch in batches for number in batch.tolist()]
    if len(seen) < 2:
        assert std == 1 and mean == (seen or [0.0])[0]
    elif (expected := statistics.stdev(seen)) > 1e-5 * abs(statistics.fmean(seen)):
        assert mean.item() == pytest.approx(statistics.fmean(seen), rel=1e-9, abs=1e-9)
        assert std.item() == pytest.approx(expected, rel=1e-4)


def test_numbers_that_are_all_the_same_have_no_spread_to_be_divided_by():
    for number in (0.0, 0.1, -1e6):
        mean, std = after([number] * 3, [number] * 4).of("paid")
        assert std == 1 and mean.item() == pytest.approx(torch.tensor(number).item(), rel=1e-12)


def test_numbers_that_are_not_finite_are_left_out():
    spoiled = after([1.0, math.nan, 3.0], [math.inf, -math.inf], SECOND)
    assert torch.equal(spoiled.state["paid"], after(FIRST, SECOND).state["paid"])
    assert RunningNormalizer()(torch.tensor([math.nan, math.inf]), spoiled.of("paid")).isfinite().tolist() == [False, False]


def test_streams_know_nothing_of_one_another():
    moments = RunningMoments()
    moments.update({"a": FIRST, "b": torch.full((2, 3), 7.0)})
    moments.update({"b": torch.tensor([[8.0]])})
    assert torch.equal(moments.state["a"], after(FIRST).state["paid"])
    assert moments.of("b").mean.item() == pytest.approx(50 / 7) and moments.of("c") == (0, 1)


def test_what_a_checkpoint_keeps_goes_on_to_the_bit():
    half = after(FIRST, name="function:of a module")
    again = RunningMoments()
    again.restore({**half.saved(), "ema.0": torch.ones(3)})
    for moments in (half, again):
        moments.update({"function:of a module": SECOND})
    assert again.state.keys() == half.state.keys()
    assert all(torch.equal(again.state[name], half.state[name]) for name in half.state)
