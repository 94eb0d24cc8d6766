"""Worth of steps and ways of blaming: the numbers of a four-step solution by hand, and what must hold of any."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.assignment import assign_rewards
from denserl.ppo_utils.credit import CREDITS, STEP_REWARDS, credited, step_rewards
from denserl.ppo_utils.dense_reward import DenseReward
from denserl.segmentation import segments_from_starts

LOGITS = [4.0, 0.6, -1.0, -0.9]
CENTRED = [0.96402758, 0.29131261, -0.46211716, -0.42189901]
DIFFERENCE = [0.48201379, -0.33635748, -0.37671488, 0.02010908]
NUMBERS = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


def of(*rows: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with rubbish behind their ends, and how long they are."""
    width = max(map(len, rows)) + 1
    return torch.tensor([[*row, *[99.0] * (width - len(row))] for row in rows]), torch.tensor(list(map(len, rows)))


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("prob", [0.98201379, 0.64565631, 0.26894142, 0.28905050]),
        ("centred", CENTRED),
        ("logit", LOGITS),
        ("difference", DIFFERENCE),
    ],
)
def test_step_rewards_of_four_steps(kind, expected):
    found = step_rewards(*of(LOGITS, [0.6], []), kind)
    assert found[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-6)
    alone = {"prob": 0.64565631, "centred": 0.29131261, "logit": 0.6, "difference": 0.14565631}[kind]
    assert found[1].tolist() == pytest.approx([alone, 0, 0, 0, 0], abs=1e-6) and not found[2].any()


def test_differences_add_up_whatever_the_number_of_steps():
    assert step_rewards(*of(LOGITS), "difference").sum().item() == pytest.approx(-0.21094950, abs=1e-6)


@pytest.mark.parametrize(
    "rewards, temperature, expected, total",
    [
        (CENTRED, 0.1, [0.00000037, 0.00009326, -0.27681724, -0.16903800], -0.44576161),
        ([0.9, -0.8, 0.2], 0.1, [0.00000004, -0.79996365, 0.00000908], -0.79995453),
        ([0.9, -0.8, 0.2], 1.0, [0.10603579, -0.51594164, 0.04745108], -0.36245468),
    ],
)
def test_min_credit_by_hand(rewards, temperature, expected, total):
    found = credited(*of(rewards, []), "min", temperature)
    assert found[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-6)
    assert found[0].sum().item() == pytest.approx(total, abs=1e-6) and not found[1].any()


def test_returns_of_min_credit_are_the_least_up_to_the_worst_step():
    paid = credited(*of(CENTRED), "min")[0, :4]
    returns = paid.flip(0).cumsum(0).flip(0)
    assert returns.tolist() == pytest.approx([-0.44576161, -0.44576198, -0.44585524, -0.16903800], abs=1e-6)


def test_prefix_min_by_hand():
    found = credited(*of(CENTRED, [0.5]), "prefix_min")
    assert found[0].tolist() == pytest.approx([0.96402758, -0.67271497, -0.75342977, 0.0, 0.0], abs=1e-6)
    assert found[1].tolist() == [0.5, 0, 0, 0, 0]


@given(st.lists(NUMBERS, min_size=1, max_size=4), st.floats(0.05, 2))
def test_credits_of_any_rewards(rows, temperature):
    rewards, counts = of(*rows)
    found = {how: credited(rewards, counts, how, temperature) for how in CREDITS}
    for b, row in enumerate(rows):
        assert found["sum"][b, : len(row)].tolist() == pytest.approx(row, abs=1e-6)
        assert found["prefix_min"][b].sum().item() == pytest.approx(min(row), abs=1e-4)
        weights = [math.exp((min(row) - r) / temperature) for r in row]
        by_hand = [w * r / sum(weights) for w, r in zip(weights, row)]
        assert found["min"][b, : len(row)].tolist() == pytest.approx(by_hand, abs=1e-4)
        assert all(not values[b, len(row) :].any() for values in found.values())


def thirteen_tokens():
    """Steps of 3, 4, 2 and 3 tokens, and an end token."""
    starts = torch.zeros(1, 13, dtype=torch.bool)
    starts[0, [0, 3, 7, 9]] = True
    content = torch.ones(1, 13, dtype=torch.bool)
    content[0, 12] = False
    return segments_from_starts(starts, content), torch.ones(1, 13, dtype=torch.bool)


def test_steps_are_paid_at_their_ends_or_evenly():
    segments, mask = thirteen_tokens()
    logits = torch.tensor([LOGITS])
    found = DenseReward("end", None, "min", step_reward="difference")(logits, segments, mask)
    expected = torch.zeros(13)
    expected[[2, 6, 8, 11]] = torch.tensor(DIFFERENCE)
    torch.testing.assert_close(found.tokens[0], expected, atol=1e-6, rtol=0)
    assert found.score.item() == pytest.approx(0.26894142, abs=1e-6)
    assert found.changes.sum().item() == pytest.approx(found.score.item(), abs=1e-6)
    even = DenseReward("even", None, "min", step_reward="difference")(logits, segments, mask).tokens[0].tolist()
    shares = [0.16067126] * 3 + [-0.08408937] * 4 + [-0.18835744] * 2 + [0.00670303] * 3 + [0.0]
    assert even == pytest.approx(shares, abs=1e-6)
    mean = DenseReward("mean_last", None, "avg", step_reward="prob")(logits, segments, mask)
    assert mean.tokens[0].tolist() == pytest.approx([0.0] * 12 + [0.54641550], abs=1e-6)


@pytest.mark.parametrize("credit", ["min", "prefix_min"])
def test_rewards_of_ordinary_segments_may_be_credited_so(credit):
    segments, mask = thirteen_tokens()
    rewards = torch.tensor([CENTRED])
    found = DenseReward("end", None, credit=credit)(rewards, segments, mask)
    assert torch.equal(found.tokens, assign_rewards(credited(rewards, segments.counts, credit), segments, "end"))
    assert torch.equal(DenseReward("end", None)(rewards, segments, mask).tokens[:, [2, 6, 8, 11]], rewards)


def test_settings_that_contradict_one_another():
    for settings in ({"credit": "min"}, {"step_reward": "prob"}):
        with pytest.raises(ValueError, match="assignment difference_end"):
            DenseReward("difference_end", None, **settings)
    with pytest.raises(ValueError, match="unknown step reward 'p'"):
        step_rewards(torch.zeros(1, 1), torch.ones(1), "p")
    with pytest.raises(ValueError, match="unknown credit 'max'"):
        credited(torch.zeros(1, 1), torch.ones(1), "max")
    with pytest.raises(ValueError, match="temperature is 0"):
        credited(torch.zeros(1, 1), torch.ones(1), "min", 0)
    assert (STEP_REWARDS[0], CREDITS[0]) == ("difference", "sum")
