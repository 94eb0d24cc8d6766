"""Losses and metrics of labels that name the better of two responses: published definitions by hand, and loops over pairs."""

import math

import pytest
import torch

from denserl.rewards.objectives import label_cross_entropy, label_logprobs, position_bias
from denserl.rewards.objectives.pair_labels import label_targets
from denserl.rewards.order_metrics import order_metrics, order_sums

# Logits of A, B, Same, and two other tokens.
LOGITS = torch.tensor([2, 1, 0.5, -1, 0], dtype=torch.float64)
MARGINS = LOGITS[0] - LOGITS[1:3]
FIRST = LOGITS.log_softmax(0)[0]


@pytest.mark.parametrize(
    ("p_first", "labels", "whole", "expected"),
    [
        (1.0, 2, True, 0.57443794),
        (1.0, 2, False, 0.31326169),
        (1.0, 3, False, 0.46436878),
        (0.5, 3, False, 1.96436878),
        (0.5, 2, False, 0.81326169),
        (0.7, 2, False, 0.61326169),
    ],
)
def test_cross_entropy_of_the_label(p_first, labels, whole, expected):
    p = torch.tensor(p_first, dtype=torch.float64)
    found = label_cross_entropy(MARGINS[: labels - 1], p, FIRST if whole else None)
    assert found.item() == pytest.approx(expected, abs=1e-8)


def test_gradient_of_an_even_label():
    margin = torch.ones(1, dtype=torch.float64, requires_grad=True)
    label_cross_entropy(margin, torch.tensor(0.5)).backward()
    assert margin.grad.item() == pytest.approx(0.23105858, abs=1e-8)


def test_mass_of_the_labels_among_all_tokens():
    assert label_logprobs(MARGINS[:1], FIRST).exp().sum().item() == pytest.approx(0.77014517, abs=1e-8)
    torch.testing.assert_close(label_logprobs(MARGINS, FIRST), LOGITS.log_softmax(0)[:3])


def test_a_tie_is_the_third_label_where_there_is_one():
    p = torch.tensor([1.0, 0.5, 0.3])
    assert label_targets(p, 2).tolist() == [[1, 0], [0.5, 0.5], pytest.approx([0.3, 0.7])]
    assert label_targets(p, 3).tolist() == [[1, 0, 0], [0, 0, 1], pytest.approx([0.3, 0.7, 0])]


def test_position_bias_is_what_both_orders_have_in_common():
    """Order 1: 2 against 1; order 2, with the second response first: .5 against .8."""
    bias = position_bias(torch.tensor([[1.0, -0.3]], dtype=torch.float64))
    assert bias.item() == pytest.approx(0.35) and bias.square().item() == pytest.approx(0.1225)
    assert position_bias(torch.tensor([[1.5, -1.5]])).item() == 0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("both", [True, False])
def test_metrics_are_those_of_a_loop_over_pairs_in_any_batches(both):
    log_odds = torch.tensor([[1.0, -0.3], [-0.5, 0.9], [0.2, 0.2], [0.4, 0.1], [2.0, 2.0], [-1.0, 0.4]])
    chosen_first = torch.tensor([[True, False]] * 5 + [[False, True]])
    p_chosen, weight = torch.tensor([1.0, 0.2, 1.0, 0.5, 0.8, 1.0]), torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0, 1.0])
    if not both:
        log_odds, chosen_first = log_odds[:, :1], chosen_first[:, :1]
    right = decided = consistent = bias = 0.0
    for row, first, p, w in zip(log_odds.tolist(), chosen_first.tolist(), p_chosen.tolist(), weight.tolist(), strict=True):
        chances = [sigmoid(x) if is_first else 1 - sigmoid(x) for x, is_first in zip(row, first, strict=True)]
        chance = sum(chances) / len(chances)
        decided += w * (p != 0.5)
        right += w * (p != 0.5) * (0.5 if abs(chance - 0.5) < 1e-9 else (chance > 0.5) == (p > 0.5))
        consistent += w * (len({c > 0.5 for c in chances}) == 1)
        bias += w * abs(sum(row) / len(row))
    parts = [slice(0, 2), slice(2, 6)]
    sums = [order_sums(log_odds[part], chosen_first[part], p_chosen[part], weight[part]) for part in parts]
    found = order_metrics({name: sum(each[name].item() for each in sums) for name in sums[0]})
    weighted = log_odds.double().flatten(), weight.repeat_interleave(log_odds.shape[1]).double()
    mean = (weighted[0] * weighted[1]).sum() / weighted[1].sum()
    std = ((weighted[0] - mean).square() * weighted[1]).sum().div(weighted[1].sum()).sqrt()
    expected = {"accuracy": right / decided, "score_mean": mean.item(), "score_std": std.item()}
    if both:
        expected |= {"position_consistency": consistent / 5.5, "position_bias": bias / 5.5}
    assert found == pytest.approx(expected, abs=1e-6)
