"""Losses by hand, by the spec's vectors and by gradcheck; objectives, their sum, and those that users bring."""

import dataclasses
import math
import sys
from typing import Annotated, ClassVar, Literal

import pytest
import torch
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st

from denserl.errors import UserError
from denserl.rewards.objectives import (
    READS,
    REGULARIZERS,
    BradleyTerry,
    Groups,
    Objective,
    PositiveRegularizer,
    TextRegularizer,
    all_reads,
    bradley_terry,
    grm_regularizer,
    grm_terms,
    named_objective,
    pair_losses,
    positive_regularization,
    total_losses,
    wins,
)
from denserl.rewards.objectives.base import GROUP_METRICS
from denserl.rewards.pair_metrics import group_metrics, group_sums
from denserl.segmentation import segment_by_entropy

CHOSEN, REJECTED, MARGIN = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.0])
# -log sigmoid(1) = 0.313262, -log sigmoid(-0.5) = 0.974077, and so on, from a table.
BY_HAND = [
    ({}, (0.3132617 + 0.9740770) / 2),
    ({"margin": MARGIN}, (0.4740770 + 1.7014133) / 2),
    ({"label_smoothing": 0.1}, (0.9 * 0.3132617 + 0.1 * 1.3132617 + 0.9 * 0.9740770 + 0.1 * 0.4740770) / 2),
    ({"centring": 0.01}, (0.3132617 + 0.9740770) / 2 + 0.01 * (1.0 + 2.25) / 2),
    (
        {"margin": MARGIN, "label_smoothing": 0.2, "centring": 0.1},
        (0.8 * 0.4740770 + 0.2 * 0.9740770 + 0.8 * 1.7014133 + 0.2 * 0.2014133) / 2 + 0.1 * 3.25 / 2,
    ),
]


@pytest.mark.parametrize("options, expected", BY_HAND)
def test_by_hand(options, expected):
    assert bradley_terry(CHOSEN, REJECTED, **options).item() == pytest.approx(expected, abs=1e-6)


# Spec grm, sections 3 and 4: r_c = 1, r_r = 0.2, l_c = -20, l_r = -24, l_ref_c = -22, l_ref_r = -23, alpha = 0.01, beta = 0.1.
SCORES = torch.tensor([1.0]), torch.tensor([0.2])
LOGPS = [torch.tensor([x]) for x in (-20.0, -24.0, -22.0, -23.0)]
GRM = {
    "sft": (2.126928, 0.388659),
    "sft_plain": (20.0, 0.567390),
    "dpo_noref": (0.513015, 0.372520),
    "dpo": (0.554355, 0.372933),
}
BASELINES = [
    ({}, 0.371101),
    ({"margin": torch.tensor([0.5])}, 0.554355),
    ({"label_smoothing": 0.1}, 0.451101),
]


def groups_of(*sides, counted=None, lengths=None, margin=None, p_chosen=None, **known) -> Groups:
    """Groups whose first, second ... candidates have the scores `sides`, (G,) each. known: other fields of Groups."""
    scores = torch.stack(sides, 1)
    count, size = scores.shape
    lengths = torch.ones(count, size, dtype=torch.long) if lengths is None else lengths
    mask = torch.arange(int(lengths.max())) < lengths.T.reshape(-1, 1)
    return Groups(
        scores,
        torch.ones(count, dtype=torch.bool) if counted is None else counted,
        {name: label for name, label in {"margin": margin, "p_chosen": p_chosen}.items() if label is not None},
        lengths,
        torch.zeros(mask.shape),
        segment_by_entropy(torch.zeros(mask.shape), mask, 1000.0),
        **known,
    )


def one_pair() -> Groups:
    """The pair of the spec's vectors; the chosen response has 4 tokens, the rejected one 8."""
    logps, reference = torch.stack(LOGPS[:2], 1), torch.stack(LOGPS[2:], 1)
    return groups_of(*SCORES, lengths=torch.tensor([[4, 8]]), logps=logps, ref_logps=reference)


@pytest.mark.parametrize("kind", GRM)
def test_the_text_term_and_the_total_are_those_of_the_spec(kind):
    term, total = GRM[kind]
    assert grm_regularizer(kind, *LOGPS).item() == pytest.approx(term, abs=1e-6)
    losses, metrics = total_losses([BradleyTerry(0.99), TextRegularizer(0.01, kind)], one_pair())
    assert losses.item() == pytest.approx(total, abs=1e-6)
    assert metrics["reg_loss"].item() == pytest.approx(term, abs=1e-6)
    assert metrics["bt_loss"].item() == pytest.approx(0.371101, abs=1e-6)


@pytest.mark.parametrize("options, expected", BASELINES)
def test_the_baselines_are_those_of_the_spec(options, expected):
    assert bradley_terry(*SCORES, **options).item() == pytest.approx(expected, abs=1e-6)


def test_positive_regularisation_is_that_of_the_spec():
    losses, metrics = total_losses([BradleyTerry(), PositiveRegularizer(0.1)], one_pair())
    assert losses.item() == pytest.approx(0.402427, abs=1e-6)
    assert metrics["pos_loss"].item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-6)


def test_positive_regularisation_is_the_term_of_the_mean_and_not_the_mean_of_terms():
    """-log sigmoid(0.5) = 0.474077 of 2 and -1, whose own terms are 0.126928 and 1.313262, 0.720095 in the mean."""
    assert positive_regularization(torch.tensor([2.0, -1.0])).item() == pytest.approx(0.4740770, abs=1e-6)


def test_positive_regularisation_is_of_the_mean_score_of_counted_pairs():
    chosen = torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64, requires_grad=True)
    counted = torch.tensor([True, False, True])
    losses, _ = PositiveRegularizer(1.0)(groups_of(chosen, torch.zeros(3).double(), counted=counted))
    losses[counted].sum().backward()
    term = math.log1p(math.exp(-0.75))
    assert losses.tolist() == pytest.approx([term] * 3)
    # The derivative of the term by its mean is -sigmoid(-0.75); each of two counted pairs bears the whole of it.
    slope = -1 / (1 + math.exp(0.75))
    assert chosen.grad.tolist() == pytest.approx([slope, 0, slope])


@pytest.mark.parametrize("kind", REGULARIZERS)
@given(st.lists(st.tuples(*[st.floats(-400, -0.5)] * 4), min_size=1, max_size=5), st.floats(0.01, 1))
def test_terms_are_those_of_a_loop(kind, rows, beta):
    expected = []
    for chosen, rejected, ref_chosen, ref_rejected in rows:
        gaps = {"sft": chosen, "dpo_noref": chosen - rejected, "dpo": chosen - ref_chosen - rejected + ref_rejected}
        x = beta * gaps.get(kind, 0.0)
        # -log sigmoid(x) = log(1 + exp(-x)), written so that nothing overflows.
        expected.append(-chosen if kind == "sft_plain" else max(-x, 0.0) + math.log1p(math.exp(-abs(x))))
    logps = torch.tensor(rows, dtype=torch.float64).T
    assert grm_terms(kind, *logps, beta).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert grm_regularizer(kind, *logps, beta).item() == pytest.approx(sum(expected) / len(rows), rel=1e-9, abs=1e-12)
    assert grm_regularizer(kind, *logps.float(), beta).dtype == torch.float32


@pytest.mark.parametrize("logp, slope", [(-20.0, -0.088080), (-150.0, -0.1)])
def test_the_slope_of_the_sft_term_is_that_of_the_spec(logp, slope):
    chosen = torch.tensor([logp], requires_grad=True)
    grm_regularizer("sft", chosen).backward()
    assert chosen.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("kind, slopes", [("sft_plain", (-1, 0)), ("dpo_noref", (-0.1, 0.1)), ("dpo", (-0.1, 0.1))])
def test_slopes_of_the_other_terms_are_beta_times_the_probability_of_the_wrong_order(kind, slopes):
    chosen, rejected = (x.clone().requires_grad_() for x in LOGPS[:2])
    grm_regularizer(kind, chosen, rejected, *LOGPS[2:]).backward()
    wrong = {"sft_plain": 1.0, "dpo_noref": 1 / (1 + math.exp(0.4)), "dpo": 1 / (1 + math.exp(0.3))}[kind]
    found = [0.0 if x.grad is None else x.grad.item() for x in (chosen, rejected)]
    assert found == pytest.approx([wrong * slope for slope in slopes], abs=1e-6)


def doubles(count: int, seed: int = 0) -> list[torch.Tensor]:
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [row.clone().requires_grad_() for row in values]


def test_gradients_are_those_of_finite_differences():
    chosen, rejected, margin, labels, *reference = doubles(6)
    labels = labels.detach().sigmoid()
    check = torch.autograd.gradcheck
    assert check(lambda c, r, m: pair_losses(c, r, m, 0.1, 0.01, labels), (chosen, rejected, margin))
    assert check(positive_regularization, (chosen,))
    for kind in REGULARIZERS:
        assert check(lambda *logps, kind=kind: grm_terms(kind, *logps, 0.3), (chosen, rejected, *reference))


def test_soft_labels_are_the_cross_entropy_of_the_label():
    labels = [0.7, 0.2]
    found = pair_losses(CHOSEN, REJECTED, soft_labels=torch.tensor(labels))
    # The losses of both orders at gaps of 1 and -0.5.
    both = [(0.3132617, 1.3132617), (0.9740770, 0.4740770)]
    assert found.tolist() == pytest.approx([p * right + (1 - p) * wrong for p, (right, wrong) in zip(labels, both)], abs=1e-6)
    assert torch.equal(pair_losses(CHOSEN, REJECTED, soft_labels=torch.ones(2)), pair_losses(CHOSEN, REJECTED))
    # Smoothing turns a label of 0.7 into 0.9 x 0.7 + 0.1 x 0.3 = 0.66, and 0.2 into 0.26.
    smoothed = pair_losses(CHOSEN, REJECTED, label_smoothing=0.1, soft_labels=torch.tensor(labels))
    expected = [0.66 * 0.3132617 + 0.34 * 1.3132617, 0.26 * 0.974077 + 0.74 * 0.474077]
    assert smoothed.tolist() == pytest.approx(expected, abs=1e-6)


def test_soft_labels_of_the_objective_are_the_sigmoid_of_scaled_margins():
    pairs = groups_of(CHOSEN, REJECTED, margin=torch.tensor([2.0, -1.0]))
    labels = [1 / (1 + math.exp(-2 / 4)), 1 / (1 + math.exp(1 / 4))]
    losses, _ = BradleyTerry(soft_label_scale=4.0)(pairs)
    torch.testing.assert_close(losses, pair_losses(CHOSEN, REJECTED, soft_labels=torch.tensor(labels)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_certain_is_the_plain_one_to_the_bit(smoothing):
    sides = [[x.clone().requires_grad_() for x in (CHOSEN, REJECTED)] for _ in range(2)]
    certain, _ = BradleyTerry(label_smoothing=smoothing)(groups_of(*sides[0], p_chosen=torch.ones(2)))
    plain = pair_losses(*sides[1], label_smoothing=smoothing)
    certain.sum().backward()
    plain.sum().backward()
    assert torch.equal(certain, plain)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(*sides))


def test_the_gradient_of_a_soft_label_is_the_chance_less_the_label():
    # A tie at differences of 0, 1 and -2: chances .5, .73105858 and .11920292, less a half.
    chosen = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    losses, _ = BradleyTerry()(groups_of(chosen, torch.zeros(3), p_chosen=torch.full((3,), 0.5)))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(2), 0.81326169, 1.12692801], abs=1e-6)
    assert chosen.grad.tolist() == pytest.approx([0, 0.23105858, -0.38079708], abs=1e-6)
    turned, _ = BradleyTerry()(groups_of(chosen, torch.zeros(3), p_chosen=torch.zeros(3)))
    torch.testing.assert_close(turned, pair_losses(torch.zeros(3), chosen.detach()))


def test_scores_of_chosen_responses_are_averaged_by_weight():
    pairs = groups_of(torch.tensor([3.0, -1.0, 50.0]), torch.zeros(3), weight=torch.tensor([1.0, 3.0, 0.0]))
    losses, _ = PositiveRegularizer()(pairs)
    assert losses.tolist() == pytest.approx([math.log(2)] * 3)  # (3 - 3) / 4
    nothing, _ = PositiveRegularizer()(pairs._replace(weight=torch.zeros(3)))
    assert nothing.isfinite().all()


def test_the_options_of_the_objective_are_those_of_the_loss():
    pairs = groups_of(CHOSEN, REJECTED, margin=MARGIN)
    losses, _ = BradleyTerry(use_margin=True, label_smoothing=0.2, centring=0.1)(pairs)
    assert losses.mean().item() == pytest.approx(BY_HAND[-1][1], abs=1e-6)
    assert torch.equal(BradleyTerry()(pairs)[0], pair_losses(CHOSEN, REJECTED))


def test_one_objective_of_weight_one_is_itself_to_the_bit():
    chosen, rejected = (x.clone().requires_grad_() for x in (CHOSEN, REJECTED))
    losses, _ = total_losses([BradleyTerry()], groups_of(chosen, rejected))
    losses.sum().backward()
    plain = [x.clone().requires_grad_() for x in (CHOSEN, REJECTED)]
    pair_losses(*plain).sum().backward()
    assert torch.equal(losses, pair_losses(CHOSEN, REJECTED))
    assert torch.equal(chosen.grad, plain[0].grad) and torch.equal(rejected.grad, plain[1].grad)


def test_log_probabilities_can_be_means_over_tokens():
    # -20 over 4 tokens, -24 over 8; the reference -22 over 4, -23 over 8: ((-5 + 5.5) - (-3 + 2.875)) x 2 = 1.25.
    terms, metrics = TextRegularizer(1.0, "dpo", beta=2.0, logp="mean")(one_pair())
    assert terms.item() == pytest.approx(math.log1p(math.exp(-1.25)), abs=1e-6)
    logged = {name: metrics[name].item() for name in sorted(metrics) if name.endswith("logprob")}
    assert logged == {"chosen_logprob": -20, "chosen_token_logprob": -5, "rejected_logprob": -24, "rejected_token_logprob": -3}


@pytest.mark.parametrize("kind, expected", [("dpo_noref", [1.0, 0.0, 0.5]), ("dpo", [0.0, 1.0, 0.5])])
def test_accuracy_of_log_probabilities_is_that_of_what_is_compared(kind, expected):
    logps = torch.tensor([[-1.0, -2.0, -4.0], [-2.0, -1.0, -4.0], [-1.0, -9.0, -5.0], [-5.0, -1.0, -5.0]])
    pairs = groups_of(*logps[:2], lengths=torch.full((3, 2), 2), logps=logps[:2].T, ref_logps=logps[2:].T)
    assert TextRegularizer(1.0, kind)(pairs)[1]["logprob_accuracy"].tolist() == expected


def test_what_is_read_is_said_beforehand():
    plain, positive = BradleyTerry(), PositiveRegularizer(1.0)
    text = {kind: TextRegularizer(1.0, kind) for kind in REGULARIZERS}
    said = {kind: objective.reads for kind, objective in text.items()}
    chosen, both = ("first_logps",), ("logps",)
    assert said == {"sft": chosen, "sft_plain": chosen, "dpo_noref": both, "dpo": ("logps", "ref_logps")}
    assert plain.reads == positive.reads == ()
    assert all_reads([plain, positive]) == all_reads([]) == set()
    assert all_reads([plain, text["sft"]]) == {"first_logps"}
    assert all_reads([text["sft"], text["dpo"]]) == {"first_logps", "logps", "ref_logps"}
    assert {*chosen, *both, *text["dpo"].reads} < {*READS}


def test_a_regulariser_that_is_none_or_lacks_its_log_probabilities():
    with pytest.raises(ValueError, match="'kto'; known: sft, sft_plain, dpo_noref, dpo"):
        grm_terms("kto", LOGPS[0])
    with pytest.raises(ValueError, match="'dpo' needs ref_chosen_logps, ref_rejected_logps"):
        grm_terms("dpo", *LOGPS[:2])


def test_gradients_are_probabilities_of_the_wrong_order():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    bradley_terry(chosen, rejected).backward()
    wrong = [1 / (1 + math.exp(1.0)) / 2, 1 / (1 + math.exp(-0.5)) / 2]
    assert chosen.grad.tolist() == pytest.approx([-w for w in wrong])
    assert rejected.grad.tolist() == pytest.approx(wrong)


def test_large_gaps_give_numbers():
    loss = bradley_terry(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]), label_smoothing=0.1)
    # One pair at a gap of -20000, one at 20000: each label smoothed.
    assert loss.item() == pytest.approx((0.9 * 20000 + 0.1 * 20000) / 2)


def test_half_precision_scores_are_compared_in_full():
    chosen, rejected = torch.tensor([1.0]).bfloat16(), torch.tensor([0.0]).bfloat16()
    assert bradley_terry(chosen, rejected).dtype == torch.float32


scores_of = st.floats(-5, 5, width=32)


@given(
    st.lists(st.tuples(scores_of, scores_of, st.floats(-3, 3, width=32)), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.02]),
    st.none() | st.floats(0.5, 4),
)
def test_bradley_terry_of_groups_is_that_of_the_pure_function(rows, use_margin, smoothing, centring, scale):
    chosen, rejected, margin = map(torch.tensor, zip(*rows, strict=True))
    losses, metrics = BradleyTerry(0.5, use_margin, smoothing, centring, scale)(groups_of(chosen, rejected, margin=margin))
    labels = None if scale is None else torch.tensor([1 / (1 + math.exp(-m / scale)) for m in margin.tolist()])
    expected = pair_losses(chosen, rejected, margin if use_margin else None, smoothing, centring, labels)
    # The weight is for the sum alone.
    torch.testing.assert_close(losses, expected)
    assert list(metrics) == ["bt_loss", *["margin"] * use_margin] and metrics["bt_loss"] is losses


@pytest.mark.parametrize("logp", ["sum", "mean"])
@pytest.mark.parametrize("kind", REGULARIZERS)
@given(st.lists(st.tuples(*[st.floats(-400, -0.5, width=32)] * 4, st.integers(1, 9), st.integers(1, 9)), min_size=1))
def test_the_text_term_of_groups_is_that_of_the_pure_function(kind, logp, rows):
    *logps, long, short = map(torch.tensor, zip(*rows, strict=True))
    lengths = torch.stack([long, short], 1)
    read = REGULARIZERS[kind]
    logps_of = torch.stack(logps[: min(read, 2)], 1)
    reference = torch.stack(logps[2:], 1) if read == 4 else None
    groups = groups_of(*logps[:2], lengths=lengths, logps=logps_of, ref_logps=reference)
    losses, metrics = TextRegularizer(1.0, kind, 0.3, logp)(groups)
    divisors = [long, short, long, short] if logp == "mean" else [1] * 4
    compared = [x / divisor for x, divisor in zip(logps, divisors, strict=True)]
    torch.testing.assert_close(losses, grm_terms(kind, *compared[:read], beta=0.3))
    assert metrics["reg_loss"] is losses and torch.equal(metrics["chosen_logprob"], logps[0])
    torch.testing.assert_close(metrics["chosen_token_logprob"], logps[0] / long)
    assert ("logprob_accuracy" in metrics) == ("rejected_logprob" in metrics) == (read > 1)
    if read > 1:
        torch.testing.assert_close(metrics["rejected_token_logprob"], logps[1] / short)
        gaps = [compared[0] - compared[2], compared[1] - compared[3]] if read == 4 else compared[:2]
        assert torch.equal(metrics["logprob_accuracy"], wins(*gaps))


def test_log_probabilities_per_token_are_of_each_candidates_own_length():
    """Of the first candidates alone as well; a response without tokens, which there should be none of, divides by 1."""
    groups = groups_of(*torch.zeros(2, 2), lengths=torch.tensor([[4, 2], [5, 0]]))
    assert groups.per_token(torch.tensor([[-8.0, -3.0], [-10.0, -1.0]])).tolist() == [[-2.0, -1.5], [-2.0, -1.0]]
    assert groups.per_token(torch.tensor([[-8.0], [-10.0]])).tolist() == [[-2.0], [-2.0]]


def test_the_text_term_reads_the_first_candidate_of_many_as_the_chosen():
    logps = torch.tensor([[-1.0, -2.0, -4.0], [-2.0, -1.0, -4.0]])
    groups = groups_of(*torch.zeros(3, 2), lengths=torch.tensor([[1, 2, 4], [2, 1, 4]]), logps=logps[:, :1])
    losses, metrics = TextRegularizer(1.0, "sft_plain")(groups)
    assert losses.tolist() == [1.0, 2.0] and metrics["chosen_token_logprob"].tolist() == [-1.0, -1.0]


@dataclasses.dataclass(frozen=True)
class Centre(Objective):
    """Scores near 0, by the mean square of a group's candidates, however many there are."""

    weight: Annotated[float, Ge(0)] = 0.01
    power: Literal[2, 4] = 2

    def __call__(self, groups):
        losses = (groups.scores**self.power).mean(1)
        return losses, {"centre_loss": losses}


class Fourth(Centre):
    """The same under another name."""

    def __call__(self, groups):
        losses, _ = super().__call__(groups)
        return losses, {"fourth_loss": losses}


class Taken(Objective):
    """One with a metric of a given name."""

    def __init__(self, name):
        self.name = name

    def __call__(self, groups):
        losses = groups.scores.sum(1)
        return losses, {self.name: losses}


class Plain(Objective):
    """One without options."""

    def __call__(self, groups):
        return groups.scores.sum(1), {}


def test_the_sum_is_weighted_and_metrics_stand_side_by_side():
    scores = torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, 2.0]])
    losses, metrics = total_losses([Centre(0.5), Plain(), Fourth(0.1, 4)], groups_of(*scores.T))
    squares, fourths = [14 / 3, 20 / 3], [98 / 3, 272 / 3]
    assert losses.tolist() == pytest.approx([0.5 * squares[g] + (2, 6)[g] + 0.1 * fourths[g] for g in range(2)])
    assert metrics["centre_loss"].tolist() == pytest.approx(squares)
    assert metrics["fourth_loss"].tolist() == pytest.approx(fourths)


@pytest.mark.parametrize("objectives", [[Centre(), Centre(0.5)], [Taken("loss")], [Taken("accuracy")], [Taken("score_mean")]])
def test_a_metric_under_a_name_that_is_taken_is_refused(objectives):
    with pytest.raises(UserError, match="returned the metric .*, a name that is taken") as error:
        total_losses(objectives, groups_of(CHOSEN, REJECTED))
    assert error.value.one_rank


def test_the_names_that_are_taken_are_those_that_pairs_and_other_groups_have():
    for many in (1, 2):
        scores, counted = torch.zeros(2, many), torch.ones(2, dtype=torch.bool)
        segments = groups_of(*scores.T).segments
        sums = group_sums(scores, segments, torch.ones(2, many), counted)
        assert {*group_metrics({name: value.item() for name, value in sums.items()})} <= {*GROUP_METRICS}


class Raises(Objective):
    def __call__(self, groups):
        raise KeyError("river")


class SaysNothing(Objective):
    def __call__(self, groups):
        return None


@pytest.mark.parametrize("objective", [Raises(), SaysNothing()])
def test_an_objective_that_raises_is_named(objective):
    with pytest.raises(UserError, match=f"^the objective {type(objective).__name__} raised ") as error:
        total_losses([objective], groups_of(CHOSEN, REJECTED))
    assert error.value.one_rank and error.value.__cause__ is not None


class Wrong(Objective):
    def __init__(self, losses, metric=None):
        self.losses, self.metric = losses, metric

    def __call__(self, groups):
        return self.losses, {} if self.metric is None else {"own": self.metric}


@pytest.mark.parametrize(
    "objective, shown",
    [
        (Wrong(torch.zeros(())), r"losses of the shape \(\) for 2 groups"),
        (Wrong(torch.zeros(2, 2)), r"losses of the shape \(2, 2\)"),
        (Wrong(torch.zeros(1)), r"losses of the shape \(1,\)"),
        (Wrong(torch.zeros(2), torch.zeros(())), r"own of the shape \(\)"),
        (Wrong(torch.zeros(2), torch.zeros(4)), r"own of the shape \(4,\)"),
    ],
)
def test_an_objective_that_returns_a_wrong_shape_is_named(objective, shown):
    with pytest.raises(UserError, match=f"^the objective Wrong returned {shown}") as error:
        total_losses([BradleyTerry(), objective], groups_of(CHOSEN, REJECTED))
    assert "one value for each group" in error.value.fix


class Reader(Plain):
    reads: ClassVar = ("hidden", "attentions")


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(
        UserError, match="an objective reads attentions; there are first_logps, logps, ref_logps, hidden, second"
    ):
        all_reads([BradleyTerry(), Reader()])


HERE = f"{__name__}:"


def test_an_objective_is_named_with_its_options():
    assert named_objective(f"{HERE}Centre") == Centre()
    assert named_objective(f"{HERE}Centre,weight=0.5,power=4") == Centre(0.5, 4)
    assert named_objective(f"{HERE}Centre,weight=1.0e-3").weight == 0.001
    assert isinstance(named_objective(f"{HERE}Plain"), Plain) and named_objective(f"{HERE}Plain").weight == 1
    found = named_objective("denserl.rewards.objectives:BradleyTerry,use_margin=true,soft_label_scale=2,label_smoothing=0.1")
    assert found == BradleyTerry(use_margin=True, soft_label_scale=2, label_smoothing=0.1)


def test_an_objective_in_a_file(tmp_path):
    file = tmp_path / "my_objectives_in_a_file.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from denserl import Objective\n"
        "@dataclass(frozen=True)\n"
        "class Longer(Objective):\n"
        "    weight: float = 1.0\n"
        "    scale: float = 2.0\n"
        "    def __call__(self, groups):\n"
        "        losses = groups.lengths.float().mean(1) / self.scale\n"
        "        return losses, {}\n"
    )
    try:
        objective = named_objective(f"{file}:Longer,scale=4")
    finally:
        sys.modules.pop(file.stem, None)
    losses, _ = total_losses([objective], groups_of(CHOSEN, REJECTED, lengths=torch.tensor([[3, 5], [2, 2]])))
    assert losses.tolist() == [1.0, 0.5]


def no_objective():
    return "no objective"


@pytest.mark.parametrize(
    "words, shown",
    [
        ("Centre,wieght=0.5", "has no option 'wieght'; it has weight, power"),
        ("Plain,weight=0.5", "has no option 'weight'; it has none"),
        ("Centre,weight=-1", "`weight` is -1; it must be at least 0"),
        ("Centre,weight=NaN", "`weight` is nan; it must be at least 0"),
        ("Centre,power=3", "`power` is 3; it must be one of 2, 4"),
        ("Centre,power=two", "`power` is 'two'; it must be one of 2, 4"),
        ("no_objective", "is no Objective"),
        ("HERE", "is no function and no class"),
        ("Gone", "has no attribute 'Gone'"),
    ],
)
def test_an_objective_that_cannot_be_had(words, shown):
    with pytest.raises(UserError, match=shown):
        named_objective(HERE + words)


@pytest.mark.parametrize("name", ["there_is_no_such_module:Centre", "no/such/file.py:Centre", "Centre", ""])
def test_an_objective_of_a_module_that_is_not_there(name):
    with pytest.raises(UserError, match=f"^`objective` {name}") as error:
        named_objective(name)
    assert "module:name" in error.value.fix


@dataclasses.dataclass(frozen=True)
class Needy(Centre):
    """One with an option that must be given."""

    scale: float = dataclasses.field(kw_only=True)


class Abstract(Objective):
    """One that says nothing of losses."""


@pytest.mark.parametrize("words", ["Centre,weight=high", "Centre,weight"])
def test_an_option_of_another_kind_is_refused(words):
    with pytest.raises(UserError, match="`weight`|`power`"):
        named_objective(HERE + words)


def test_a_number_may_be_written_with_an_exponent():
    assert named_objective(f"{HERE}Centre,weight=1e-3").weight == 0.001


@pytest.mark.parametrize("words", ["Centre,weight=[", "Needy", "Abstract"])
def test_an_objective_that_cannot_be_made_is_named(words):
    with pytest.raises(UserError, match="^`objective` "):
        named_objective(HERE + words)


def test_the_mean_loss_has_all_that_the_losses_of_pairs_have():
    options = (MARGIN, 0.1, 0.01, torch.tensor([0.7, 0.2]))
    assert bradley_terry(CHOSEN, REJECTED, *options).item() == pytest.approx(
        pair_losses(CHOSEN, REJECTED, *options).mean().item()
    )
