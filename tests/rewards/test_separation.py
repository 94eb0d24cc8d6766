"""How far scores of responses lie apart: values by hand, bounds, and where there is no gradient."""

import pytest
import torch

from denserl.rewards.objectives import separation


def test_values():
    found = separation(torch.tensor([[1.0, 2, 4], [3, 3, 3]]))
    assert found.tolist() == pytest.approx([0.56987329, 1 / 3], abs=1e-6)
    sigmoids = [1 / (1 + torch.tensor(-gap).exp().item()) for gap in (1.0, 3.0, 2.0)]
    assert found[0].item() == pytest.approx(2 / 9 * sum(sigmoids), abs=1e-6)


@pytest.mark.parametrize("many", [2, 4, 7])
def test_bounds(many):
    equal, apart = torch.full((1, many), -2.0), 1000 * torch.arange(many)[None]
    assert separation(equal).item() == pytest.approx((many - 1) / (2 * many))
    assert separation(apart).item() == pytest.approx((many - 1) / many)


def test_equal_scores_have_no_gradient_from_one_another():
    scores = torch.tensor([[1.0, 1, 1], [0, 0, 2]], requires_grad=True)
    separation(scores).sum().backward()
    assert scores.grad[0].tolist() == [0, 0, 0]
    # Of each equal one the part of the third alone: -2/9 s(2) (1 - s(2)).
    slope = (2 / 9 * torch.tensor(2.0).sigmoid() * torch.tensor(-2.0).sigmoid()).item()
    assert scores.grad[1].tolist() == pytest.approx([-slope, -slope, 2 * slope])
