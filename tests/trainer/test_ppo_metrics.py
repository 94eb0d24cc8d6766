"""What is reported of rollouts, by numbers worked out by hand: perplexities, KL a token, the share at the cap, quantiles."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from denserl.data.responses import Responses
from denserl.levels import BANDIT_THRESHOLD
from denserl.ppo_utils.dense_reward import DenseReward, Penalties
from denserl.ppo_utils.experience import ScoredRollouts
from denserl.segmentation import Segmenter, segment_by_entropy
from denserl.trainer import ppo_metrics
from denserl.trainer.ppo_metrics import RunLog, rollout_metrics
from denserl.trainer.ppo_rewards import PaidSource, Rewards


class Letters:
    """A tokenizer whose token ids are code points, 0 ending a turn."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(id) for id in ids if id or not skip_special_tokens)


def logged(samples: int, longest: int = 4096) -> list[dict]:
    """Sample rows of two responses, of four tokens and of two."""
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    logprobs, ref = torch.full((2, 4), -1.0), torch.tensor([[-1.5, -1.25, -1.0, -0.5], [-3.0, -1.0, 9.0, 9.0]])
    entropy = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 1.5, 9.0, 9.0]])
    segments, dense = segment_by_entropy(entropy, mask, 1.75), DenseReward("mean_last", None)
    found = dense(torch.tensor([[1.0, 2.0, 6.0], [4.0, 0.0, 0.0]])[:, : segments.lengths.shape[1]], segments, mask)
    scored = ScoredRollouts(mask, torch.tensor([True, False]), logprobs, ref, entropy, found.tokens, [found])
    rewards = Rewards([PaidSource("function", None, Segmenter(1.75), dense, 2.0)], Penalties())
    responses = Responses([[], []], ["abc", "é!"], [[65], [66, 67]], [[97, 98, 99, 0], [233, 33]], [True, False])
    rows, trackers = [], SimpleNamespace(active=True, log_samples=lambda name, step, samples: rows.extend(samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_metrics, "TOKENS_LOGGED", longest)
        RunLog(trackers, Letters(), Path(), samples).log_samples(
            "samples", 1, responses, scored, rewards, {"true_reward": [5.0, 6.0]}
        )
    return rows


def test_samples_say_what_each_token_is_worth():
    """The first is cut before b and c (entropies 2 and 3 above 1.75): 3 segments of a mean of 3, weighed twice."""
    first, second = logged(8)
    assert first["reward"] == 6.0 and second["reward"] == 8.0 and first["true_reward"] == 5.0
    assert first["kl"] == 0.5 + 0.25 + 0 - 0.5 and second["kl"] == 2.0
    assert (first["length"], second["length"]) == (4, 2) and (first["entropy"], second["entropy"]) == (2.5, 1.0)
    assert first["tokens"] == {"end": [1, 2, 3, 3], "kl": [0.5, 0.25, 0.0, -0.5], "entropy": [1.0, 2.0, 3.0, 4.0]}
    assert second["tokens"] == {"end": [1, 2], "kl": [2.0, 0.0], "entropy": [0.5, 1.5]}
    assert [part["text"] for part in first["segments"]] == ["a", "b", "c"]
    assert first["prompt_id"] != second["prompt_id"] and len(first["prompt_id"]) == 16


def test_samples_are_bounded():
    (row,) = logged(1, longest=2)
    assert row["tokens"] == {"end": [1, 2], "kl": [0.5, 0.25], "entropy": [1.0, 2.0]} and row["kl"] == 0.25


def reported(nll, ref_nll, ended, scores, counted=None, cap=3, clip=None) -> dict[str, float]:
    """Metrics of responses whose tokens have these negative log-probabilities; off the mask stand numbers of no meaning."""
    width = max(map(len, nll)) + 1
    logprobs, ref_logprobs = (
        torch.tensor([[-x for x in row] + [9.0] * (width - len(row)) for row in rows]) for rows in (nll, ref_nll)
    )
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in nll])
    dense, entropy = DenseReward("mean_last", None, score_clip=clip), torch.ones(mask.shape)
    segments = segment_by_entropy(entropy, mask, BANDIT_THRESHOLD)
    found = dense(torch.tensor(scores)[:, None], segments, mask)
    scored = ScoredRollouts(mask, torch.tensor(ended), logprobs, ref_logprobs, entropy, found.tokens, [found])
    rewards = Rewards([PaidSource("function", None, Segmenter(BANDIT_THRESHOLD), dense)], Penalties())
    return rollout_metrics(scored, rewards, {}, torch.ones(len(nll)).bool() if counted is None else counted, cap)


def test_perplexity_is_of_all_response_tokens_alike():
    """6 nats on 5 tokens, exp(1.2); by responses first it would be exp(1.25). The reference has 7.5 nats on them."""
    row = reported([[0.5, 1.0, 1.5], [2.0, 1.0]], [[1.0, 1.0, 1.5], [3.0, 1.0]], [True, True], [1.0, 2.0])
    assert row["perplexity"] == pytest.approx(3.32011692, abs=1e-6)
    assert row["ref_perplexity"] == pytest.approx(math.exp(1.5), rel=1e-6)
    assert row["kl"] == pytest.approx(0.75) and row["kl_per_token"] == pytest.approx(0.3)
    assert "nll" not in row


def test_the_share_at_the_cap_is_of_responses_that_did_not_end_there():
    """Of four: one of the most tokens that ended with the last of them, one that was cut, one shorter and without an end."""
    nll = [[1.0] * 3, [1.0] * 3, [1.0] * 2, [1.0]]
    row = reported(nll, nll, [True, False, False, True], [0.0] * 4)
    assert row["capped"] == 0.25 and row["ended"] == 0.5 and row["perplexity"] == pytest.approx(math.e)


def test_the_share_that_a_clip_holds():
    """Of 1, -3, 2 and 5 at 2: two. A row that only fills up a batch does not count."""
    nll = [[1.0]] * 4
    assert reported(nll, nll, [True] * 4, [1.0, -3.0, 2.0, 5.0], clip=2.0)["score_clipped"] == 0.5
    counted = torch.tensor([True, True, True, False])
    row = reported(nll, nll, [True] * 4, [1.0, -3.0, 2.0, 5.0], counted, clip=2.0)
    assert row["score_clipped"] == pytest.approx(1 / 3)
    assert "score_clipped" not in reported(nll, nll, [True] * 4, [1.0, -3.0, 2.0, 5.0])


def test_quantiles_of_rewards():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    nll, counted = [[1.0]] * 40, torch.arange(40) < 37
    row = reported(nll, nll, [True] * 40, scores, counted)
    expected = np.quantile(scores[:37], [0.05, 0.5, 0.95])
    assert [row[name] for name in ("reward_q05", "reward_q50", "reward_q95")] == pytest.approx(expected, abs=1e-6)
    assert row["paid"] == row["normalised_reward"] == pytest.approx(np.mean(scores[:37]), abs=1e-6)
    # The mean says that one is no number, the quantiles are of the others.
    row = reported(nll, nll, [True] * 40, [math.nan, *scores[1:]], counted)
    assert math.isnan(row["reward"]) and row["reward_q50"] == pytest.approx(np.median(scores[1:37]), abs=1e-6)


def test_responses_without_tokens_give_numbers():
    row = reported([[], []], [[], []], [False, False], [1.0, 2.0])
    assert row["perplexity"] == 1 and row["kl_per_token"] == 0 and row["capped"] == 0
