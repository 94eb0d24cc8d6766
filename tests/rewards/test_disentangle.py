"""Quality freed of a covariate: correlations and their gradients by the spec's vectors, by autograd, and on any split."""

import copy
import math

import pytest
import torch
from test_objectives import groups_of

from denserl.models.heads import DisentangledHead, Head, make_head, unit_rows
from denserl.rewards.objectives import (
    BradleyTerry,
    Disentangle,
    Groups,
    Orthogonal,
    all_step_sums,
    pair_losses,
    total_losses,
    total_step_losses,
)
from denserl.rewards.objectives.disentangle import correlation, correlation_slopes, moments
from denserl.trainer.group_trainer import with_sums

# Preference spec, section 5: the chosen responses, then the rejected ones.
QUALITY = [[1.2, -0.3, 0.8, 0.1], [0.5, 0.9, -0.4, 0.2]]
OTHER = [[0.6, 0.9, -0.2, 0.4], [0.1, 0.5, 0.3, -0.6]]
LENGTHS = [[120, 200, 90, 150], [80, 160, 130, 60]]
SLOPES = [0.08748592, 0.32130349, -0.12575014, 0.10505267, -0.21856986, 0.26309549, -0.06754214, -0.36507543]
PAIR_LOSSES = [0.26328247, 1.17110067, 0.40318605, 0.34115387]


def as_groups(quality, other, lengths=LENGTHS, counted=None, **known) -> Groups:
    """Groups of values of (candidates, groups)."""
    outputs = torch.stack([torch.as_tensor(quality).T, torch.as_tensor(other).T], -1)
    lengths = torch.as_tensor(lengths).T
    return groups_of(*torch.as_tensor(quality).unbind(), counted=counted, lengths=lengths, outputs=outputs, **known)


def rho(rewards, covariate) -> torch.Tensor:
    """Pearson's, by the textbook, with a graph."""
    r, n = rewards.flatten() - rewards.mean(), covariate.flatten().to(rewards) - covariate.to(rewards).mean()
    return (r * n).sum() / ((r * r).sum() * (n * n).sum()).sqrt()


def found_in(values, covariate=LENGTHS):
    values, covariate = torch.tensor(values, dtype=torch.float64), torch.tensor(covariate)
    return moments(values, covariate, torch.ones(()))


@pytest.mark.parametrize(
    "values, expected",
    [(QUALITY, -0.30198296), (OTHER, 0.89353086), ((torch.tensor(QUALITY) + torch.tensor(OTHER)).tolist(), 0.35101102)],
)
def test_correlations_are_those_of_the_spec(values, expected):
    assert correlation(found_in(values)).item() == pytest.approx(expected, abs=1e-6)


def test_slopes_are_those_of_the_spec_and_of_autograd():
    values = torch.tensor(QUALITY, dtype=torch.float64, requires_grad=True)
    slopes = correlation_slopes(values, torch.tensor(LENGTHS), found_in(QUALITY)) / 8
    assert slopes.flatten().tolist() == pytest.approx(SLOPES, abs=1e-6)
    rho(values, torch.tensor(LENGTHS)).backward()
    torch.testing.assert_close(slopes, values.grad)


def test_the_term_and_the_total_are_those_of_the_spec():
    groups = as_groups(QUALITY, OTHER, overlap=torch.tensor(0.38729833))
    own = all_step_sums([Disentangle()], groups)
    objectives = [BradleyTerry(), Disentangle(), Orthogonal()]
    losses, metrics = total_losses(objectives, with_sums(groups._replace(step=own)))
    assert metrics["bt_loss"].tolist() == pytest.approx(PAIR_LOSSES, abs=1e-6)
    value, found = total_step_losses(objectives, {name: float(x) for name, x in own.items()})
    assert found["disentangle_loss"] == pytest.approx(-0.59154791, abs=1e-6)
    assert losses.mean().item() + value == pytest.approx(0.34043119, abs=1e-6)
    # By themselves the losses of the term add up to nothing: the value is logged apart.
    assert losses.mean().item() == pytest.approx(0.54468076 + 0.38729833, abs=1e-6)
    extra, _ = total_step_losses([Disentangle(with_sum=True)], {name: float(x) for name, x in own.items()})
    assert extra == pytest.approx(-0.59154791 + 0.35101102, abs=1e-6)


def test_the_head_reads_with_centred_unit_weights():
    weight = torch.tensor([[0.5, -0.2, 0.1, 0.4], [0.3, 0.1, -0.6, 0.2]])
    head = make_head(4, Head("disentangled"))
    assert isinstance(head, DisentangledHead)
    with torch.no_grad():
        head.weight.copy_(weight)
    # Raw, the quality of it would be 2.
    quality, _ = head(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[0]
    assert quality.item() == pytest.approx(0.0, abs=1e-6)
    assert head.overlap.item() == pytest.approx(0.38729833, abs=1e-6)
    again = copy.deepcopy(head)  # as adapters copy it
    assert torch.equal(again.weight, head.weight) and again.overlap is None and head.overlap.requires_grad
    assert torch.equal(unit_rows(torch.full((1, 4), 3.0)), torch.zeros(1, 4))  # no direction at all: the floor of the norm
    raw = torch.nn.functional.cosine_similarity(*weight, dim=0)
    assert raw.item() == pytest.approx(0.31277162, abs=1e-6)  # of weights that are not centred: another number


@pytest.mark.parametrize(
    "values, lengths", [(QUALITY, [[7] * 4] * 2), ([[0.3] * 4] * 2, LENGTHS), ([[1 / 3] * 4] * 2, [[7] * 4] * 2)]
)
def test_constant_lengths_or_rewards_count_for_nothing(values, lengths):
    quality = torch.tensor(values, requires_grad=True)
    groups = as_groups(quality, values, lengths)
    own = all_step_sums([Disentangle(with_sum=True)], groups)
    losses, _ = Disentangle(with_sum=True)(groups._replace(step=own))
    losses.sum().backward()
    assert losses.tolist() == [0.0] * 4 and quality.grad.tolist() == [[0.0] * 4] * 2
    value, found = total_step_losses([Disentangle(with_sum=True)], {name: float(x) for name, x in own.items()})
    assert value == 0 and not any(found.values())


def test_values_apart_by_rounding_alone_are_constant():
    values = torch.full((2, 4), 100.0)
    values[0, 1] = values[0, 1].nextafter(torch.tensor(200.0))
    assert correlation(moments(values, torch.tensor(LENGTHS), torch.ones(()))) == 0


@pytest.mark.parametrize("parts", [[4], [1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("with_sum", [False, True])
def test_gradients_on_any_split_are_those_of_the_joined_loss(parts, with_sum):
    """Against autograd through the textbook's correlation of all responses; a fifth group is not counted."""
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(2, 2, 5, generator=generator, dtype=torch.float64)
    lengths = torch.randint(3, 90, (2, 5), generator=generator)
    joined = outputs.clone().requires_grad_()
    quality, other = joined[:, :, :4].unbind()
    expected = pair_losses(*(quality + other)).mean() + rho(quality, lengths[:, :4]).abs() - rho(other, lengths[:, :4])
    expected = expected + with_sum * rho(quality + other, lengths[:, :4]).abs()
    expected.backward()
    objectives = [BradleyTerry(), Disentangle(with_sum=with_sum)]
    split = outputs.clone().requires_grad_()
    parts, counted = [*parts, 1], torch.arange(5) < 4
    pieces = zip(split.split(parts, 2), lengths.split(parts, 1), counted.split(parts), strict=True)
    groups = [as_groups(*each, of, among) for each, of, among in pieces]
    sums = [all_step_sums(objectives, each) for each in groups]
    total = {name: sum(each[name] for each in sums) for name in sums[0]}
    losses = torch.cat([total_losses(objectives, with_sums(each._replace(step=total)))[0] for each in groups])
    (torch.where(counted, losses, 0.0).sum() / 4).backward()
    torch.testing.assert_close(split.grad, joined.grad, rtol=1e-9, atol=1e-12)
    value, _ = total_step_losses(objectives, {name: float(x) for name, x in total.items()})
    assert losses[:4].mean().item() + value == pytest.approx(expected.item(), abs=1e-12)


def test_another_covariate_is_columns_of_both_responses():
    objective = Disentangle(covariate="stars")
    assert objective.labels == ("chosen_stars", "rejected_stars") and Disentangle().labels == ()
    stars = {"chosen_stars": torch.tensor([1.0, 2, 3, 4]), "rejected_stars": torch.tensor([4.0, 4, 0, 1])}
    found = all_step_sums([objective], as_groups(QUALITY, OTHER)._replace(labels=stars))
    _, metrics = total_step_losses([objective], {name: float(x) for name, x in found.items()})
    expected = rho(torch.tensor(QUALITY), torch.stack([stars["chosen_stars"], stars["rejected_stars"]])).item()
    assert metrics["quality_correlation"] == pytest.approx(expected, abs=1e-6) and not math.isclose(
        expected, -0.302, abs_tol=0.01
    )


def test_a_weight_of_two_is_a_row_twice():
    once, twice = [0, 1, 2], [0, 1, 1, 2]
    weight = torch.tensor([1.0, 2, 1])
    values = torch.tensor([QUALITY, OTHER])
    lengths = torch.tensor(LENGTHS)
    weighted = as_groups(*values[:, :, once], lengths[:, once], weight=weight)
    repeated = as_groups(*values[:, :, twice], lengths[:, twice])
    sums = [all_step_sums([Disentangle()], groups) for groups in (weighted, repeated)]
    assert {name: float(x) for name, x in sums[0].items()} == pytest.approx({name: float(x) for name, x in sums[1].items()})
    # The trainer multiplies the losses of groups by their weights.
    one, two = (Disentangle()(groups._replace(step=found))[0] for groups, found in zip((weighted, repeated), sums, strict=True))
    torch.testing.assert_close(one, two[[0, 1, 3]])


def test_where_longer_answers_win_the_quality_is_free_of_length():
    """A linear head on features of which one is the length, one the true worth; labels like both. The sum alone learns both."""
    generator = torch.Generator().manual_seed(1)
    worth, lengths = torch.randn(2, 200, generator=generator), torch.randint(5, 60, (2, 200), generator=generator)
    noise = torch.randn(2, 200, 6, generator=generator)
    features = torch.cat([torch.stack([worth, (lengths - 32) / 16], -1), noise], -1)
    wins = (worth[0] - worth[1]) + (lengths[0] - lengths[1]) / 16 > 0
    features, lengths, worth = (
        torch.where(wins.view(-1, *[1] * (x.ndim - 2)), x, x.flip(0)) for x in (features, lengths, worth)
    )

    def learned(objectives) -> torch.Tensor:
        head = make_head(8, Head("disentangled"))
        with torch.no_grad():
            head.weight.copy_(torch.randn(2, 8, generator=torch.Generator().manual_seed(2)))
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        for _ in range(120):
            groups = as_groups(*head(features).unbind(-1), lengths, overlap=head.overlap)
            groups = groups._replace(step=all_step_sums([Disentangle()], groups))
            optimizer.zero_grad()
            total_losses(objectives, with_sums(groups))[0].mean().backward()
            optimizer.step()
        return head(features).detach()

    plain, freed = learned([BradleyTerry()]), learned([BradleyTerry(), Disentangle(), Orthogonal()])
    assert rho(plain.sum(-1), lengths) > 0.5 and rho(freed.sum(-1), lengths) > 0.5
    assert abs(rho(freed[..., 0], lengths)) < 0.05 and rho(freed[..., 1], lengths) > 0.9
    assert rho(freed[..., 0], worth) > 0.75
