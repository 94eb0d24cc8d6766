"""From segment scores to token rewards at the three levels, with every option, by numbers worked out by hand; penalties."""

import math

import pytest
import reference_loops as loops
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.ppo_utils.assignment import AT_LAST, CHANGE, KINDS
from denserl.ppo_utils.dense_reward import DenseReward, Penalties, weighted_sum
from denserl.ppo_utils.kl import penalised_rewards
from denserl.ppo_utils.moments import Moments, RunningMoments
from denserl.ppo_utils.normalizer import LocationNormalizer, RunningNormalizer, ScalarNormalizer
from denserl.segmentation import Segments, segment_by_entropy, segment_scores

# Row 0: four content tokens and an end of turn; the third content token was uncertain. Row 1: cut off after three tokens.
SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 99.0, 99.0]])
ENTROPY = torch.tensor([[9.0, 0.1, 3.0, 0.2, 9.0], [0.5, 0.4, 2.5, 99.0, 99.0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
ENDED = torch.tensor([True, False])
LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
LOCATION = LocationNormalizer(w_mu=1.0, w_sigma=0.0, b_mu=0.5, b_sigma=2.0)  # Mean(p) = ln p + 0.5, Std(p) = 2
SCALAR = ScalarNormalizer(mean=1.0, std=2.0)


def rewards(threshold, assignment, normalizer, agg_func="avg", scores=SCORES, entropy=ENTROPY, mask=MASK, **options):
    segments = segment_by_entropy(entropy, mask, threshold, ENDED)
    return DenseReward(assignment, normalizer, agg_func, **options)(segment_scores(scores, segments), segments, mask)


def close(got, want) -> None:
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-6, atol=1e-6)


def test_segment_level():
    got = rewards(2.0, "even", LOCATION)
    assert got.segments.counts.tolist() == [2, 2] and got.segments.lengths.tolist() == [[2, 2], [2, 1]]
    close(got.raw, [[2.0, 4.0], [7.0, 8.0]])
    # p = 1/2 and 1: means 0.5 - ln 2 and 0.5.
    close(got.normalised, [[0.75 + LN2 / 2, 1.75], [3.25 + LN2 / 2, 3.75]])
    first, second = 0.375 + LN2 / 4, 1.625 + LN2 / 4
    close(got.tokens, [[first, first, 0.875, 0.875, 0.0], [second, second, 3.75, 0.0, 0.0]])


def test_token_level():
    got = rewards(0.0, "even", LOCATION)
    assert got.segments.counts.tolist() == [4, 3]
    row = [(1 - 0.5 + LN4) / 2, (2 - 0.5 + LN2) / 2, (3 - 0.5 + LN4 - LN3) / 2, 1.75, 0.0]
    cut_off = [(6 - 0.5 + LN3) / 2, (7 - 0.5 + LN3 - LN2) / 2, 3.75, 0.0, 0.0]
    close(got.tokens, [row, cut_off])


def test_bandit_level():
    got = rewards(1000.0, "mean_last", SCALAR)
    close(got.raw, [[5.0], [8.0]])
    close(got.normalised, [[2.0], [3.5]])
    close(got.tokens, [[0.0, 0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 3.5, 0.0, 0.0]])


def test_no_normaliser_leaves_scores_as_they_are():
    got = rewards(2.0, "end", None)
    close(got.normalised, [[2.0, 4.0], [7.0, 8.0]])
    close(got.tokens, [[0.0, 2.0, 0.0, 4.0, 0.0], [0.0, 7.0, 8.0, 0.0, 0.0]])


def test_differences_after_the_location_lines_are_of_normalised_rewards():
    got = rewards(2.0, "difference", LOCATION)
    first, last = (0.75 + LN2 / 2, 1.75), (3.25 + LN2 / 2, 3.75)
    changes = [[first[0], (first[1] - first[0]) / 2], [last[0], (last[1] - last[0]) / 2]]
    close(got.changes, changes)
    ((a, b), (c, d)) = changes
    close(got.tokens, [[a / 2, a / 2, b / 2, b / 2, 0.0], [c / 2, c / 2, d, 0.0, 0.0]])


def test_differences_of_a_mean_by_the_scalar_normaliser():
    """(2 - 1) / 2 and then 1 and 3 / 2 of the mean 3; of 7 and 8, 3 and 3.25."""
    got = rewards(2.0, "difference_end", SCALAR)
    close(got.changes, [[0.5, 0.5], [3.0, 0.25]])
    close(got.tokens, [[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 3.0, 0.25, 0.0, 0.0]])
    close(rewards(2.0, "score_last", SCALAR).tokens, [[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.25, 0.0, 0.0]])
    close(rewards(0.0, "difference", SCALAR).tokens[0], [0.0, 0.25, 0.25, 0.25, 0.0])


@pytest.mark.parametrize(
    "agg_func, score",
    [
        ("avg", [3.0, 7.5]),
        ("sum", [6.0, 15.0]),
        ("min", [2.0, 7.0]),
        ("last", [4.0, 8.0]),
        ("logsumexp", [math.log(math.exp(2) + math.exp(4)), math.log(math.exp(7) + math.exp(8))]),
    ],
)
def test_the_scalar_normaliser_is_of_the_score_whatever_makes_it(agg_func, score):
    """Mean 1 and std 2 are those of whole responses' scores: what is paid adds up to (score - 1) / 2, the first's alone too."""
    for kind in ("difference", "difference_end", "score_last"):
        got = rewards(2.0, kind, SCALAR, agg_func=agg_func)
        close(got.tokens.sum(1), [(s - 1) / 2 for s in score])
        close(got.changes[:, 0], [0.5, 3.0])
        if agg_func in ("sum", "logsumexp"):
            assert torch.equal(got.normalised, got.changes)
        else:
            close(got.normalised, [[0.5, 1.5], [3.0, 3.5]])
        # Before it is normalised.
        assert got.score.tolist() == pytest.approx(score)
    assert rewards(2.0, "even", None, agg_func).score.tolist() == pytest.approx(score)


def test_what_is_paid_is_known_when_it_is_paid():
    """Another end, or none yet: what the first segment was paid stays. Divided by the number of segments it would not."""
    longer, mask = ENTROPY.clone(), MASK.clone()
    longer[0, 3] = 3.0
    mask[1, 2] = False
    for kind, same in (("difference", True), ("even_mean", False)):
        before = rewards(2.0, kind, SCALAR).tokens
        more, fewer = rewards(2.0, kind, SCALAR, entropy=longer).tokens, rewards(2.0, kind, SCALAR, mask=mask).tokens
        assert torch.equal(more[0, :2], before[0, :2]) == torch.equal(fewer[1, :2], before[1, :2]) == same


def test_changes_are_known_whatever_is_paid():
    for kind in ("even", "mean_last", "difference"):
        close(rewards(2.0, kind, SCALAR).changes, [[0.5, 0.5], [3.0, 0.25]])


def test_an_unknown_assignment():
    with pytest.raises(ValueError, match="unknown assignment 'evenly'"):
        DenseReward("evenly", None)


def test_tau_reaches_the_assignment():
    got = rewards(2.0, "logsumexp_last", None, tau=2.0)
    close(got.tokens[:, 2], [0.0, 2 * math.log(math.exp(3.5) + math.exp(4.0))])
    close(got.tokens[:, 4], [2 * math.log(math.exp(1.0) + math.exp(2.0)), 0.0])


def test_length_norm_divides_by_all_response_tokens():
    close(rewards(0.0, "even", None, length_norm=True).tokens, [[0.2, 0.4, 0.6, 0.8, 0.0], [2.0, 7 / 3, 8 / 3, 0.0, 0.0]])


def test_scores_off_the_mask_do_not_matter():
    spoiled = torch.where(MASK, SCORES, float("nan"))
    off = {"scores": spoiled, "entropy": torch.where(MASK, ENTROPY, float("nan"))}
    for threshold, kind, normalizer in ((2.0, "even", LOCATION), (0.0, "even", LOCATION), (1000.0, "mean_last", SCALAR)):
        got = rewards(threshold, kind, normalizer, **off).tokens
        assert torch.equal(got, rewards(threshold, kind, normalizer).tokens)
        penalties = Penalties(longer_than=4)
        assert torch.equal(penalties(got, MASK, ENDED), penalties(rewards(threshold, kind, normalizer).tokens, MASK, ENDED))


def test_no_penalty_leaves_rewards_as_they_are():
    tokens = rewards(2.0, "end", None).tokens
    assert torch.equal(Penalties()(tokens, MASK, ENDED), tokens)


def test_an_unfinished_response_gets_the_penalty_on_every_token_instead():
    got = rewards(2.0, "end", None)
    tokens = Penalties(unfinished=True)(got.tokens, MASK, ENDED)
    close(tokens, [[0.0, 2.0, 0.0, 4.0, 0.0], [-0.05, -0.05, -0.05, 0.0, 0.0]])
    # What the reward source said stays on record.
    close(got.tokens[1], [0.0, 7.0, 8.0, 0.0, 0.0])


@pytest.mark.parametrize("longest, penalised", [(2, [True, True]), (3, [True, False]), (4, [True, False]), (5, [False, False])])
def test_a_response_of_more_tokens_gets_the_penalty(longest, penalised):
    got = Penalties(longer_than=longest, penalty=0.25)(rewards(2.0, "end", None).tokens, MASK, ENDED)
    plain = [[0.0, 2.0, 0.0, 4.0, 0.0], [0.0, 7.0, 8.0, 0.0, 0.0]]
    punished = [[-0.25] * 5, [-0.25] * 3 + [0.0] * 2]
    close(got, [punished[b] if hit else plain[b] for b, hit in enumerate(penalised)])


def test_the_penalty_is_not_divided_by_length():
    got = Penalties(unfinished=True, penalty=0.3)(rewards(0.0, "even", None, length_norm=True).tokens, MASK, ENDED)
    close(got[1], [-0.3, -0.3, -0.3, 0.0, 0.0])


def test_the_penalty_takes_the_place_of_rewards_that_are_no_numbers():
    tokens = torch.where(ENDED[:, None], rewards(2.0, "end", None).tokens, torch.nan)
    close(Penalties(unfinished=True)(tokens, MASK, ENDED)[1], [-0.05, -0.05, -0.05, 0.0, 0.0])


@given(loops.batches(), st.booleans(), st.none() | st.integers(0, 12), st.sampled_from([0.05, 2.0]))
def test_penalties_are_those_of_a_loop(batch, unfinished, longest, penalty):
    tokens = torch.where(batch.mask.bool(), batch.normal(), 0.0)
    ended = torch.ones(len(tokens)).bool() if batch.has_end_of_turn is None else batch.has_end_of_turn
    expected = tokens.tolist()
    for b, places in enumerate(loops.places(batch.mask)):
        if (unfinished and not ended[b]) or (longest is not None and len(places) > longest):
            expected[b] = [-penalty if t in places else 0.0 for t in range(tokens.shape[1])]
    found = Penalties(unfinished, longest, penalty)(tokens, batch.mask, ended)
    torch.testing.assert_close(found, torch.tensor(expected).reshape(tokens.shape))


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=4), st.integers(0, 99))
def test_sources_are_added_up_by_their_weights(weights, seed):
    values = torch.randn(len(weights), 2, 3, generator=torch.Generator().manual_seed(seed))
    expected = [
        [sum(weight * values[source, b, t].item() for source, weight in enumerate(weights)) for t in range(3)] for b in range(2)
    ]
    torch.testing.assert_close(weighted_sum(list(values), weights), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_one_source_of_weight_one_is_itself():
    value = torch.tensor([[-0.0, 1e-45, float("nan")]])
    assert weighted_sum([value], [1.0]) is value and weighted_sum([value], [2.0])[0, 2].isnan()
    with pytest.raises(ValueError):
        weighted_sum([value, value], [1.0])


def test_a_response_of_one_token_is_divided_by_one():
    mask = torch.ones(1, 1).bool()
    segments = segment_by_entropy(torch.zeros(1, 1), mask, 0.0)
    settings = {"assignment": "even", "length_norm": True}
    (rewards, *_) = DenseReward(normalizer=None, **settings)(torch.tensor([[3.0]]), segments, mask)
    assert rewards.item() == 3


def moments(mean, std) -> Moments:
    return Moments(torch.tensor(mean).double(), torch.tensor(std).double())


def on_tokens(threshold, assignment, centre, seen, **options):
    segments = segment_by_entropy(ENTROPY, MASK, threshold, ENDED)
    dense = DenseReward(assignment, RunningNormalizer(centre), **options)
    return dense.on_tokens(dense.payments(segment_scores(SCORES, segments), segments), MASK, seen)


def test_running_moments_are_of_what_is_paid_each_segment():
    """Segments of 2, 4 and of 7, 8; what they change in the mean is 2, 1 and 7, 0.5. By a mean of 1 and a std of 2."""
    seen = moments(1.0, 2.0)
    close(on_tokens(2.0, "end", True, seen).tokens, [[0.0, 0.5, 0.0, 1.5, 0.0], [0.0, 3.0, 3.5, 0.0, 0.0]])
    close(on_tokens(2.0, "even", False, seen).tokens, [[0.5, 0.5, 1.0, 1.0, 0.0], [1.75, 1.75, 4.0, 0.0, 0.0]])
    close(on_tokens(2.0, "difference_end", True, seen).tokens, [[0.0, 0.5, 0.0, 0.0, 0.0], [0.0, 3.0, -0.25, 0.0, 0.0]])
    # One number is paid at the end: the mean 3, or 7.5, of which the mean of what is paid comes off once.
    for kind in ("score_last", "mean_last"):
        close(on_tokens(2.0, kind, True, seen).tokens, [[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 3.25, 0.0, 0.0]])


def test_what_is_paid_is_clipped_before_it_is_put_on_tokens():
    """0.5 and 1.5, 3 and 3.5, at 1: split over two tokens, 1 is a half on each."""
    got = on_tokens(2.0, "even", True, moments(1.0, 2.0), score_clip=1.0)
    close(got.tokens, [[0.25, 0.25, 0.5, 0.5, 0.0], [0.5, 0.5, 1.0, 0.0, 0.0]])
    close(got.score, [3.0, 7.5])
    close(got.clipped, [0.5, 1.0])
    close(rewards(2.0, "end", LOCATION, score_clip=1.5).tokens[1], [0.0, 1.5, 1.5, 0.0, 0.0])
    one = rewards(1000.0, "mean_last", SCALAR, score_clip=2.5)
    close(one.tokens[1], [0.0, 0.0, 2.5, 0.0, 0.0])
    assert one.clipped[1] == 1 and not rewards(1000.0, "mean_last", SCALAR).clipped.any()


def test_the_published_numbers_of_running_moments():
    """One reward a response: 1 and 3, then 5, 7 and 9, normalised by all so far and clipped at 0.8."""
    running, expected = RunningMoments(), {2: [-0.70710678, 0.70710678], 3: [0.0, 0.63245553, 0.8]}
    dense = DenseReward("mean_last", RunningNormalizer(), score_clip=0.8)
    for scores in ([1.0, 3.0], [5.0, 7.0, 9.0]):
        mask = torch.ones(len(scores), 3).bool()
        segments = segment_by_entropy(torch.zeros(mask.shape), mask, 1000.0)
        found = dense.payments(torch.tensor(scores)[:, None], segments)
        running.update({"paid": found.stream()})
        tokens = dense.on_tokens(found, mask, running.of("paid")).tokens
        assert not tokens[:, :2].any() and tokens[:, 2].tolist() == pytest.approx(expected[len(scores)], abs=1e-6)


def test_the_kl_penalty_comes_after_the_clip_and_is_not_normalised():
    """0.7 at the last of three tokens; 0.05 of 0.2, -0.1 and 0.3 comes off."""
    mask = torch.ones(1, 3).bool()
    segments = segment_by_entropy(torch.zeros(1, 3), mask, 1000.0)
    dense = DenseReward("mean_last", RunningNormalizer(centre=False), score_clip=0.7)
    tokens = dense.on_tokens(dense.payments(torch.tensor([[12.0]]), segments), mask, moments(3.0, 4.0)).tokens
    close(penalised_rewards(tokens, torch.tensor([[0.2, -0.1, 0.3]]), mask, 0.05), [[-0.01, 0.005, 0.685]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_of_what_is_paid_has_a_number_for_each_that_is_paid(kind):
    """A number a segment, or one a response; none for what is not there."""
    entropy, mask = torch.tensor([[9.0, 3.0, 0.1], [9.0, 0.1, 0.1], [0.0, 0.0, 0.0]]), torch.ones(3, 3).bool()
    mask[2] = False
    segments = segment_by_entropy(entropy, mask, 2.0, torch.tensor([False, False, True]))
    assert segments.counts.tolist() == [2, 1, 0]
    found = DenseReward(kind, RunningNormalizer()).payments(torch.tensor([[1.0, 5.0], [2.0, 77.0], [99.0, 99.0]]), segments)
    changes = [1.0, 2.0, 2.0]  # in the means 1, 3 and 2
    one = {"mean_last": [3.0, 2.0], "score_last": [3.0, 2.0], "logsumexp_last": [5 + math.log1p(math.exp(-4)), 2.0]}
    expected = one.get(kind, changes if kind in CHANGE else [1.0, 5.0, 2.0])
    stream = found.stream()
    close(stream[stream.isfinite()], expected)


@pytest.mark.parametrize("kind", AT_LAST)
def test_a_response_that_was_not_cut_into_anything_is_paid_nothing(kind):
    """Tokens of a response in which there is no step, beside one that has one."""
    mask = torch.ones(2, 2).bool()
    segments = Segments(
        torch.tensor([[-1, -1], [0, 0]]), torch.tensor([[0, 0], [0, 1]]).bool(), torch.tensor([[0], [2]]), torch.tensor([0, 1])
    )
    for normalizer, seen, paid in ((None, None, 5.0), (RunningNormalizer(), moments(1.0, 2.0), 2.0)):
        dense = DenseReward(kind, normalizer, "last")
        tokens = dense.on_tokens(dense.payments(torch.tensor([[7.0], [5.0]]), segments), mask, seen).tokens
        close(tokens, [[0.0, 0.0], [0.0, paid]])


def test_a_number_that_is_not_finite_is_not_clipped_to_a_large_one():
    dense = DenseReward("end", None, score_clip=1.0)
    segments = segment_by_entropy(ENTROPY, MASK, 2.0, ENDED)
    tokens = dense(torch.tensor([[math.inf, math.nan], [-math.inf, 9.0]]), segments, MASK).tokens
    assert tokens[0, 1] == math.inf and tokens[0, 3].isnan() and tokens[1, 1] == -math.inf and tokens[1, 2] == 1


def test_moments_are_given_to_what_runs_and_to_nothing_else():
    segments = segment_by_entropy(ENTROPY, MASK, 2.0, ENDED)
    running, plain = DenseReward("end", RunningNormalizer()), DenseReward("end", None)
    with pytest.raises(ValueError, match="with the moments None"):
        running(segment_scores(SCORES, segments), segments, MASK)
    with pytest.raises(ValueError, match="the normaliser None with the moments"):
        plain.on_tokens(plain.payments(segment_scores(SCORES, segments), segments), MASK, moments(0.0, 1.0))


def test_running_moments_are_also_of_what_steps_are_paid():
    """The chances 1/2 and 3/4 change by 0 and 1/4; with a normaliser of scores they are refused."""
    segments = segment_by_entropy(ENTROPY, MASK, 2.0, ENDED)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    dense = DenseReward("end", RunningNormalizer(), "min", step_reward="difference")
    found = dense.on_tokens(dense.payments(logits, segments), MASK, moments(0.5, 0.5)).tokens
    close(found[0], [0.0, -1.0, 0.0, -0.5, 0.0])
    with pytest.raises(ValueError, match="with a normaliser of scores"):
        DenseReward("end", SCALAR, "min", step_reward="difference")
