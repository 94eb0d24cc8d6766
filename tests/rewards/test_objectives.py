"""The Bradley-Terry loss by hand, and the metrics of pairs against a loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.rewards.objectives import bradley_terry
from denserl.rewards.scoring import pair_metrics, pair_sums
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


PAIR = st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 5), st.integers(1, 5))


def metrics_of(pairs: list[tuple[int, int, int, int]], pieces: int) -> dict[str, float]:
    """The metrics of (chosen score, rejected score, chosen length, rejected length), summed over some batches."""
    total = {}
    for piece in filter(None, (pairs[i::pieces] for i in range(pieces))):
        chosen, rejected, long, short = map(list, zip(*piece, strict=True))
        lengths = torch.tensor(long + short)
        mask = torch.arange(5) < lengths[:, None]
        # Entropy above the threshold at every second token.
        segments = segment_by_entropy((torch.arange(5) % 2).float().expand(len(mask), -1), mask, 0.5)
        sums = pair_sums(torch.tensor(chosen + rejected).float(), segments, lengths)
        total = {key: total.get(key, 0.0) + value.item() for key, value in sums.items()}
    return pair_metrics(total)


@given(st.lists(PAIR, min_size=1, max_size=8), st.integers(1, 3))
def test_metrics_are_those_of_a_loop_however_pairs_are_batched(pairs, pieces):
    got = metrics_of(pairs, pieces)
    chosen, rejected, long, short = (np.array(x, dtype=float) for x in zip(*pairs, strict=True))
    scores, lengths = np.concatenate([chosen, rejected]), np.concatenate([long, short])
    # Content is all but the end-of-turn token (a lone token counts); segments open at tokens 0, 1 and 3.
    contents = [max(int(n) - 1, 1) for n in lengths]
    segments = [sum(t < n for t in (0, 1, 3)) for n in contents]
    expected = {
        "accuracy": sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)) / len(pairs),
        "length_accuracy": sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(long, short, strict=True)) / len(pairs),
        "chosen_reward": chosen.mean(),
        "rejected_reward": rejected.mean(),
        "reward_difference": (chosen - rejected).mean(),
        "segments_per_response": np.mean(segments),
        "segment_length": sum(contents) / sum(segments),
        "response_length": lengths.mean(),
        "score_mean": scores.mean(),
        "score_std": scores.std(),
        "length_correlation": np.corrcoef(scores, lengths)[0, 1] if scores.std() > 0 and lengths.std() > 0 else 0.0,
    }
    assert got == pytest.approx(expected, abs=1e-6)


def test_no_pairs_give_numbers():
    keys = pair_sums(torch.zeros(2), segment_by_entropy(torch.zeros(2, 1), torch.ones(2, 1), 1.0), torch.ones(2))
    assert all(math.isfinite(value) for value in pair_metrics(dict.fromkeys(keys, 0.0)).values())


def test_pairs_that_are_not_counted_add_nothing():
    entropy, mask = torch.tensor([[0.0, 2.0, 0.0]] * 4), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    scores, lengths = torch.tensor([0.5, -1.0, 2.0, 0.25]), mask.sum(1)
    counted = pair_sums(scores, segment_by_entropy(entropy, mask, 1.0), lengths, torch.tensor([False, True]))
    rows = [1, 3]
    alone = pair_sums(scores[rows], segment_by_entropy(entropy[rows], mask[rows], 1.0), lengths[rows])
    assert {key: value.item() for key, value in counted.items()} == {key: value.item() for key, value in alone.items()}
