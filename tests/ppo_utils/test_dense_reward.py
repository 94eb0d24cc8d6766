"""From token scores to token rewards at the three levels, with every option, by numbers worked out by hand."""

import math

import pytest
import torch

from denserl.ppo_utils.dense_reward import DenseReward
from denserl.ppo_utils.normalizer import LocationNormalizer, ScalarNormalizer

# Row 0: four content tokens and an end of turn; the third content token was uncertain. Row 1: cut off after three tokens.
SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 99.0, 99.0]])
ENTROPY = torch.tensor([[9.0, 0.1, 3.0, 0.2, 9.0], [0.5, 0.4, 2.5, 99.0, 99.0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
ENDED = torch.tensor([True, False])
LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
LOCATION = LocationNormalizer(w_mu=1.0, w_sigma=0.0, b_mu=0.5, b_sigma=2.0)  # Mean(p) = ln p + 0.5, Std(p) = 2
SCALAR = ScalarNormalizer(mean=1.0, std=2.0)


def rewards(threshold, assignment, normalizer, **options):
    return DenseReward(threshold, assignment, normalizer, **options)(SCORES, ENTROPY, MASK, ENDED)


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


def test_tau_reaches_the_assignment():
    got = rewards(2.0, "logsumexp_last", None, tau=2.0)
    close(got.tokens[:, 2], [0.0, 2 * math.log(math.exp(3.5) + math.exp(4.0))])
    close(got.tokens[:, 4], [2 * math.log(math.exp(1.0) + math.exp(2.0)), 0.0])


def test_length_norm_divides_by_all_response_tokens():
    close(rewards(0.0, "even", None, length_norm=True).tokens, [[0.2, 0.4, 0.6, 0.8, 0.0], [2.0, 7 / 3, 8 / 3, 0.0, 0.0]])


def test_an_unfinished_response_gets_the_penalty_on_every_token_instead():
    got = rewards(2.0, "end", None, penalise_unfinished=True)
    close(got.tokens, [[0.0, 2.0, 0.0, 4.0, 0.0], [-0.05, -0.05, -0.05, 0.0, 0.0]])
    # What the reward source said stays on record.
    close(got.raw, [[2.0, 4.0], [7.0, 8.0]])


@pytest.mark.parametrize("longest, penalised", [(2, [True, True]), (3, [True, False]), (4, [True, False]), (5, [False, False])])
def test_a_response_of_more_tokens_gets_the_penalty(longest, penalised):
    got = rewards(2.0, "end", None, penalise_longer_than=longest, penalty=0.25)
    plain = [[0.0, 2.0, 0.0, 4.0, 0.0], [0.0, 7.0, 8.0, 0.0, 0.0]]
    punished = [[-0.25] * 5, [-0.25] * 3 + [0.0] * 2]
    close(got.tokens, [punished[b] if hit else plain[b] for b, hit in enumerate(penalised)])


def test_the_penalty_is_not_divided_by_length():
    got = rewards(0.0, "even", None, length_norm=True, penalise_unfinished=True, penalty=0.3)
    close(got.tokens[1], [-0.3, -0.3, -0.3, 0.0, 0.0])


def test_scores_off_the_mask_do_not_matter():
    spoiled = torch.where(MASK, SCORES, float("nan"))
    for threshold, kind, normalizer in ((2.0, "even", LOCATION), (0.0, "even", LOCATION), (1000.0, "mean_last", SCALAR)):
        reward = DenseReward(threshold, kind, normalizer, penalise_longer_than=4)
        got = reward(spoiled, torch.where(MASK, ENTROPY, float("nan")), MASK, ENDED).tokens
        assert torch.equal(got, reward(SCORES, ENTROPY, MASK, ENDED).tokens)
