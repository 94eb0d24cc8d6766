"""Losses of labelled steps against worked numbers and plain loops, and the metrics of steps against counting by hand."""

import math

import pytest
import torch

from denserl.data.step_encoding import until_first_error
from denserl.errors import UserError
from denserl.rewards.objectives import (
    BradleyTerry,
    Groups,
    StepLabels,
    Steps,
    all_units,
    step_cross_entropy,
    total_losses,
    whole_cross_entropy,
)
from denserl.rewards.step_metrics import first_errors, step_metrics, step_sums
from denserl.segmentation import Segments

NAN = math.nan
# Four steps: logits of + and - apart from others, hard labels, chances of success.
PLUS, MINUS = torch.tensor([3.0, 1.0, -0.5, 0.2]), torch.tensor([-1.0, 0.4, 0.5, 1.1])
LOGITS = PLUS - MINUS
HARD, SOFT = [1.0, 1.0, 0.0, 0.0], [1.0, 0.75, 0.1875, 0.0]
SIGMOIDS = [0.98201379, 0.64565631, 0.26894142, 0.28905050]


def groups(logits, labels, logps=None) -> Groups:
    rows = len(labels)
    none = torch.zeros(rows, 1)
    scores = torch.as_tensor(logits).amin(1, keepdim=True)
    segments = Segments(*[none] * 4)
    counted = torch.ones(rows, dtype=torch.bool)
    steps = Steps(torch.as_tensor(logits), torch.tensor(labels), logps)
    return Groups(scores, counted, {}, none, none, segments, steps=steps)


def test_losses_are_the_worked_numbers():
    losses = step_cross_entropy(LOGITS, torch.tensor(HARD))
    assert LOGITS.sigmoid().tolist() == pytest.approx(SIGMOIDS, abs=1e-6)
    assert losses.tolist() == pytest.approx([0.01814993, 0.43748795, 0.31326169, 0.34115387], abs=1e-6)
    assert losses.mean().item() == pytest.approx(0.27751336, abs=1e-6)
    soft = step_cross_entropy(LOGITS, torch.tensor(SOFT))
    assert soft.tolist() == pytest.approx([0.01814993, 0.58748795, 0.50076169, 0.34115387], abs=1e-6)
    assert soft.mean().item() == pytest.approx(0.36188836, abs=1e-6)


def test_stopped_at_the_first_error_the_rest_is_not_counted():
    labels = torch.tensor(until_first_error(HARD))
    losses = step_cross_entropy(LOGITS, labels)
    assert losses[3] == 0 and (losses.sum() / (~labels.isnan()).sum()).item() == pytest.approx(0.25629986, abs=1e-6)


def test_two_way_cross_entropy_is_that_of_a_softmax_over_both_and_the_whole_one_over_all():
    both = torch.stack([PLUS, MINUS], -1).log_softmax(-1)[:, 0]
    torch.testing.assert_close(
        whole_cross_entropy(both, LOGITS, torch.tensor(SOFT)), step_cross_entropy(LOGITS, torch.tensor(SOFT))
    )
    vocabulary = torch.tensor([3.0, -1.0, 0.5, 0.0])
    logprobs, logit = vocabulary.log_softmax(0), vocabulary[:1] - vocabulary[1:2]
    expected = {1.0: 0.13992515, 0.0: -logprobs[1].item(), 0.25: -(0.25 * logprobs[0] + 0.75 * logprobs[1]).item()}
    for label, loss in expected.items():
        got = whole_cross_entropy(logprobs[:1], logit, torch.tensor([label]))
        assert got.item() == pytest.approx(loss, abs=1e-6)
    assert whole_cross_entropy(logprobs[:1], logit, torch.tensor([NAN])).item() == 0


def test_steps_without_label_have_no_part_in_gradients():
    logits = torch.tensor([[0.5, -2.0, 40.0]], requires_grad=True)
    step_cross_entropy(logits, torch.tensor([[0.25, NAN, 1.0]])).sum().backward()
    assert logits.grad.tolist() == [pytest.approx([1 / (1 + math.exp(-0.5)) - 0.25, 0.0, 0.0], abs=1e-6)]
    assert step_cross_entropy(torch.tensor([-90.0]), torch.tensor([1.0])).item() == pytest.approx(90.0)


ROWS = [[4.0, 0.6, -1.0, -0.9], [0.3, 9.0, 9.0, 9.0], [-0.2, 1.5, 9.0, 9.0]]
LABELS = [HARD, [1.0, NAN, NAN, NAN], [NAN, 0.0, NAN, NAN]]


@pytest.mark.parametrize("average", ["steps", "solutions"])
def test_the_mean_is_over_all_labelled_steps_or_over_those_of_each_solution(average):
    objective = StepLabels(average=average)
    losses, metrics = total_losses([objective], groups(ROWS, LABELS))
    own = [
        [-math.log(1 / (1 + math.exp(-x if y else x))) for x, y in zip(*row) if not math.isnan(y)] for row in zip(ROWS, LABELS)
    ]
    over_steps = sum(map(sum, own)) / sum(map(len, own))
    over_solutions = sum(sum(row) / len(row) for row in own) / 3
    count = {"steps": 6, "groups": 3}[objective.units]
    assert metrics == {}
    assert losses.sum().item() / count == pytest.approx(over_steps if average == "steps" else over_solutions, abs=1e-6)


def test_what_is_averaged_over_different_things_is_not_added():
    assert all_units([StepLabels(), StepLabels()]) == "steps" and all_units([BradleyTerry()]) == "groups" == all_units([])
    with pytest.raises(UserError, match="StepLabels over steps and BradleyTerry over groups"):
        all_units([StepLabels(), BradleyTerry()])


def test_metrics_are_those_of_counting_by_hand():
    logits = [[2.0, -1.0, 1.0], [1.0, 1.0, 5.0], [-3.0, -1.0, 5.0], [0.0, 1.0, -9.0], [-1.0, 1.0, 1.0]]
    labels = [[1.0, 0.25, 0.0], [1.0, 0.0, NAN], [NAN, 0.0, NAN], [0.5, 1.0, NAN], [1.0, 1.0, 1.0]]
    # Right: + + - | - missed: 2 of 3; 1 of 2; 1 of 1; 2 of 2 (a half counts as right); 2 of 3.
    # First errors: at 1, found; at 1, not found; at 1, found, for what has no label is not looked at; none; none, one is said.
    all_groups = groups(logits, labels)
    sums = {name: value.item() for name, value in step_sums(all_groups.steps, all_groups.scores, all_groups.counted).items()}
    got = step_metrics(sums)

    def p(*values):
        return sum(1 / (1 + math.exp(-value)) for value in values) / len(values)

    expected = {
        "step_accuracy": 8 / 11,
        "always_plus_accuracy": 7 / 11,
        "good_probability": p(2, 1, 0, 1, -1, 1, 1),
        "bad_probability": p(-1, 1, 1, -1),
        "steps_per_solution": 11 / 5,
        "wrong_solutions": 3 / 5,
        "first_error_accuracy": 2 / 3,
        "correct_accuracy": 1 / 2,
        "first_error_f1": 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
        "score_mean": (-1 + 1 - 3 - 9 - 1) / 5,
        "score_std": torch.tensor([-1.0, 1, -3, -9, -1]).std(correction=0).item(),
    }
    assert got == pytest.approx(expected, rel=1e-6)
    some = torch.tensor([True, False, True, False, False])
    counted = step_sums(all_groups.steps, all_groups.scores, some)
    assert counted["pairs"] == 2 and counted["good_steps"] == 1 and counted["right_steps"] == 3


def test_the_published_way_of_judging_first_errors():
    """Seven solutions, and what is said of them: of four wrong ones two are found, of three right ones two are passed."""
    truth, said = [-1, -1, 2, 0, 1, 3, -1], [-1, 1, 2, 0, 2, -1, -1]
    wrong = torch.tensor([[k == first for k in range(4)] for first in said])
    assert first_errors(wrong).tolist() == said
    labels = [[0.0 if k == first else 1.0 for k in range(4)] for first in truth]
    logits = [[-1.0 if k == first else 1.0 for k in range(4)] for first in said]
    all_groups = groups(logits, labels)
    got = step_metrics({k: v.item() for k, v in step_sums(all_groups.steps, all_groups.scores, all_groups.counted).items()})
    assert got["first_error_accuracy"] == 0.5 and got["correct_accuracy"] == pytest.approx(0.66666667)
    assert got["first_error_f1"] == pytest.approx(0.57142857, abs=1e-6)


def test_without_any_steps_there_is_nothing_to_tell():
    assert first_errors(torch.zeros(2, 0, dtype=torch.bool)).tolist() == [-1, -1]
    nothing = groups(torch.zeros(1, 1), [[1.0]])
    sums = step_sums(nothing.steps, nothing.scores, torch.tensor([False]))
    assert step_metrics({name: value.item() for name, value in sums.items()})["step_accuracy"] == 0.0
