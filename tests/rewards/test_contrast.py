"""Contrastive terms by worked examples and by loops; and the objective, whose batches add up to the whole gradient."""

import math
from functools import partial

import pytest
import torch
from test_objectives import groups_of

from denserl.models.prototypes import Prototypes
from denserl.rewards.objectives import Contrast, all_prototypes, all_step_rows, simcse_terms, sinkhorn, swav_terms, total_losses
from denserl.rewards.objectives import contrast as of_contrast
from denserl.rewards.objectives.contrast_terms import directions

FIRST, SECOND = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[1, 0.1], [0.1, 1], [0.9, 1]])


@pytest.mark.parametrize("temperature, expected", [(0.05, 0.01002645), (0.1, 0.10244558), (0.5, 0.63916798)])
def test_simcse_of_a_worked_example(temperature, expected):
    assert simcse_terms(FIRST, SECOND, temperature).mean().item() == pytest.approx(expected, abs=1e-6)


def test_swav_of_a_worked_example():
    prototypes = Prototypes(2, 2)
    with torch.no_grad():
        # Of which only the directions count.
        prototypes.weight.copy_(torch.tensor([[3.0, 0], [0, 0.2]]))
    scores, others = prototypes(FIRST), prototypes(SECOND)
    assert sinkhorn(scores).flatten().tolist() == pytest.approx([1, 0, 0, 1, 0.5, 0.5], abs=1e-6)
    assert sinkhorn(others)[2].tolist() == pytest.approx([0.32514671, 0.67485329], abs=1e-6)
    one = -(sinkhorn(scores) * (others / 0.1).log_softmax(-1)).sum(1).mean()
    other = -(sinkhorn(others) * (scores / 0.1).log_softmax(-1)).sum(1).mean()
    assert sorted([one.item(), other.item()]) == pytest.approx([0.23107947, 0.25364416], abs=1e-6)
    assert swav_terms(scores, others).mean().item() == pytest.approx(0.48472363, abs=1e-6)
    assert not sinkhorn(scores).requires_grad


def cosine(x, y):
    return (x * y).sum() / (x * x).sum().sqrt() / (y * y).sum().sqrt()


def simcse_loop(first, second, tau=0.05):
    """One feature at a time."""
    found = [[torch.exp(cosine(s, t) / tau) for t in second] for s in first]
    return torch.stack([-torch.log(row[i] / sum(row)) for i, row in enumerate(found)])


def codes_loop(scores):
    """Sinkhorn's, entry by entry in floats."""
    (many, kinds), q = scores.shape, [[math.exp(z / 0.05) for z in row] for row in scores.tolist()]
    for _ in range(3):
        columns = [sum(q[b][k] for b in range(many)) for k in range(kinds)]
        q = [[q[b][k] / columns[k] / kinds for k in range(kinds)] for b in range(many)]
        q = [[value / sum(row) / many for value in row] for row in q]
    return torch.tensor(q, dtype=torch.float64) * many


def swav_loop(first, second):
    def foretold(codes, scores):
        return -torch.stack([sum(q * torch.log(p) for q, p in zip(*each)) for each in zip(codes, (scores / 0.1).softmax(1))])

    return foretold(codes_loop(first), second) + foretold(codes_loop(second), first)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COUNTED = torch.tensor([True, True, False, True, True, False, True])


@pytest.mark.parametrize("kind", ["simcse", "swav"])
@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
def test_terms_and_their_gradients_are_those_of_loops_over_what_counts(kind, counted):
    first, second = (directions(drawn(7, 5, seed=seed)) if kind == "swav" else drawn(7, 5, seed=seed) for seed in (1, 2))
    ours = [x.clone().requires_grad_() for x in (first, second)]
    theirs = [x.clone().requires_grad_() for x in (first, second)]
    terms = simcse_terms(*ours, counted=counted) if kind == "simcse" else swav_terms(*ours, counted)
    kept = torch.arange(7) if counted is None else counted.nonzero().squeeze(1)
    loop = simcse_loop if kind == "simcse" else swav_loop
    expected = loop(*(x[kept] for x in theirs))
    torch.testing.assert_close(terms[kept], expected)
    assert terms.sum().item() == pytest.approx(expected.sum().item())  # what does not count is 0
    terms.sum().backward(), expected.sum().backward()
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.grad, want.grad)


def test_nothing_that_counts_is_no_error():
    first = drawn(3, 4).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    (simcse_terms(first, drawn(3, 4), counted=none).sum() + swav_terms(first, drawn(3, 4), none).sum()).backward()
    assert first.grad.tolist() == [[0.0] * 4] * 3


@pytest.fixture
def without_dropout(monkeypatch):
    monkeypatch.setattr(of_contrast, "dropout", lambda x, share: x)


def prototypes_of(hidden, seed=4):
    made = Prototypes(hidden, 3)
    with torch.no_grad():
        made.weight.copy_(drawn(3, hidden, seed=seed))
    return made


def as_groups(hidden, second, prototypes, weight):
    """Groups of (G, 2, H) states of both passes; what weighs nothing is not counted."""
    known = {"prototypes": prototypes, "weight": weight, "counted": weight > 0}
    scores = torch.zeros(2, len(weight))
    return groups_of(*scores, hidden=hidden, second=groups_of(*scores, hidden=second), **known)


def joined(kind, on, hidden, second, prototypes, weight):
    """The term of all that counts, by the loops."""
    features = []
    for chosen, rejected in (states[weight > 0].unbind(1) for states in (hidden, second)):
        both = (chosen, rejected) if on == "pair" else (chosen - rejected, rejected - chosen)
        features.append(torch.stack(both, 1).flatten(0, 1))
    if kind == "swav":
        rows = [row / (row * row).sum().sqrt() for row in prototypes.weight]
        features = [torch.stack([torch.stack([cosine(f, row) for row in rows]) for f in each]) for each in features]
    terms = (simcse_loop if kind == "simcse" else swav_loop)(*features)
    return (terms * weight[weight > 0].repeat_interleave(2)).sum() / weight.sum() / 2


@pytest.mark.parametrize("parts", [[6], [2, 4], [1, 3, 2]], ids=str)
@pytest.mark.parametrize("on", ["pair", "diff"])
@pytest.mark.parametrize("kind", ["simcse", "swav"])
def test_any_split_of_a_step_has_the_loss_and_gradient_of_the_whole(kind, on, parts, without_dropout):
    """With negatives in all batches; rows of weight 0 are none, and may stand anywhere."""
    weight = torch.tensor([1, 0.5, 0, 2, 1, 0])
    states = [drawn(6, 2, 4, seed=seed).float() for seed in (1, 2)]
    whole, split = ([x.clone().requires_grad_() for x in states] for _ in range(2))
    own, other = prototypes_of(4), prototypes_of(4)
    expected = joined(kind, on, *whole, other, weight)
    expected.backward()
    objective = Contrast(kind=kind, on=on, prototypes=3)
    batches = [as_groups(*each[:2], own, each[2]) for each in zip(*(x.split(parts) for x in (*split, weight)), strict=True)]
    if len(parts) > 1:
        rows = [all_step_rows([objective], each) for each in batches]
        rows = {name: torch.cat([each[name] for each in rows]) for name in rows[0]}
        places = torch.arange(6).split(parts)
        batches = [each._replace(rows=rows, places=place) for each, place in zip(batches, places, strict=True)]
    found = [total_losses([objective], each) for each in batches]
    losses = torch.cat([losses for losses, _ in found])
    loss = torch.where(weight > 0, losses * weight, 0.0).sum() / weight.sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(split, whole, strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)
    if kind == "swav":
        torch.testing.assert_close(own.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-6)
    assert {metrics["contrastive_batch"][0].item() for _, metrics in found} == {8.0}


def test_metrics_are_means_over_own_and_other_features(without_dropout):
    hidden, second = drawn(3, 2, 4, seed=1).float(), drawn(3, 2, 4, seed=2).float()
    _, metrics = Contrast()(as_groups(hidden, second, None, torch.ones(3)))
    table = torch.tensor([[cosine(s, t) for t in second.flatten(0, 1)] for s in hidden.flatten(0, 1)])
    assert metrics["positive_cosine"].mean().item() == pytest.approx(table.diagonal().mean().item(), abs=1e-6)
    others = (table.sum() - table.diagonal().sum()).item() / 30
    assert metrics["negative_cosine"].mean().item() == pytest.approx(others, abs=1e-6)


def test_features_are_dropped_in_each_pass_anew():
    hidden = torch.ones(2, 2, 1000)
    rows = Contrast(dropout=0.2).step_rows(as_groups(hidden, hidden, None, torch.ones(2)))[of_contrast.FEATURES]
    assert rows.shape == (2, 2, 2, 1000) and not torch.equal(rows[:, :, 0], rows[:, :, 1])
    assert {round(x, 4) for x in rows.unique().tolist()} == {0.0, 1.25}
    assert (rows == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_objectives_share_prototypes():
    assert all_prototypes([Contrast(), Contrast(prototypes=5), Contrast(prototypes=5)]) == 5
    with pytest.raises(Exception, match="ask for 5 and 7 prototypes"):
        all_prototypes(list(map(partial(Contrast, 1.0, "swav", "pair", 0.05, 0.05), (5, 7))))
