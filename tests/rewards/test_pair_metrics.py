"""Metrics of scored pairs, and of groups of other sizes, against loops over responses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from denserl.intervals import wilson
from denserl.rewards.pair_metrics import group_metrics, group_sums, pair_metrics, pair_sums, remarks
from denserl.segmentation import segment_by_entropy

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


def test_pairs_count_by_their_weight_and_the_way_round_that_their_label_says():
    """A pair of weight w is w pairs, one of p_chosen < .5 is the other way round, and a tie tells no accuracy."""
    scores = {"chosen": [1.0, 2.0, 0.5, 3.0], "rejected": [0.0, 4.0, 1.5, 1.0]}
    lengths = {"chosen": [5, 2, 1, 4], "rejected": [1, 3, 4, 2]}
    p_chosen, weight = torch.tensor([0.9, 0.2, 0.5, 0.6]), torch.tensor([2.0, 1.0, 3.0, 0.0])

    def summed(chosen: list[int], turned: set[int] = frozenset(), **labels) -> dict[str, float]:
        first, second = (
            [(name, n) for n in chosen for name in [pair[n in turned]]]
            for pair in (("chosen", "rejected"), ("rejected", "chosen"))
        )
        flat = [(scores[name][n], lengths[name][n]) for name, n in (*first, *second)]
        values, counts = torch.tensor([s for s, _ in flat]), torch.tensor([n for _, n in flat])
        mask = torch.arange(5) < counts[:, None]
        segments = segment_by_entropy((torch.arange(5) % 2).float().expand(len(mask), -1), mask, 0.5)
        return pair_metrics({key: value.item() for key, value in pair_sums(values, segments, counts, **labels).items()})

    found = summed([0, 1, 2, 3], counted=weight, p_chosen=p_chosen)
    pairs, responses = summed([0, 0, 1], turned={1}), summed([0, 0, 1, 2, 2, 2])
    of_pairs = ("accuracy", "chosen_reward", "rejected_reward", "reward_difference", "length_accuracy")
    assert found == pytest.approx({name: (pairs if name in of_pairs else responses)[name] for name in found})
    assert found["accuracy"] == 1.0 and found["reward_difference"] == pytest.approx((1 + 1 + 2) / 3)


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


GROUP = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 5)), min_size=1, max_size=3)


def sums_of(groups: list[list[tuple[int, int]]], counted: list[bool]) -> dict[str, torch.Tensor]:
    """The sums of groups of (score, length), as the trainer lays them out: all first candidates before all second ones."""
    scores, lengths = (torch.tensor([[response[i] for response in group] for group in groups]) for i in (0, 1))
    flat = lengths.T.flatten()
    mask = torch.arange(5) < flat[:, None]
    # Entropy above the threshold at every second token.
    segments = segment_by_entropy((torch.arange(5) % 2).float().expand(len(mask), -1), mask, 0.5)
    return group_sums(scores.float(), segments, lengths, torch.tensor(counted))


def expected_metrics(responses: list[tuple[int, int]]) -> dict[str, float]:
    """By loops over (score, length). Content is all but the end-of-turn token; segments open at tokens 0, 1 and 3."""
    contents = [max(length - 1, 1) for _, length in responses]
    segments = [sum(t < n for t in (0, 1, 3)) for n in contents]
    mean = sum(score for score, _ in responses) / len(responses)
    return {
        "segments_per_response": sum(segments) / len(responses),
        "segment_length": sum(contents) / sum(segments),
        "response_length": sum(length for _, length in responses) / len(responses),
        "score_mean": mean,
        "score_std": math.sqrt(sum((score - mean) ** 2 for score, _ in responses) / len(responses)),
    }


@given(st.sampled_from([1, 3]), st.integers(1, 3), st.data())
def test_metrics_of_groups_of_one_and_three_are_those_of_a_loop_however_they_are_batched(size, pieces, data):
    """Point labels have one response each; a list of candidates has no chosen one, and so no accuracy."""
    response = st.tuples(st.integers(-3, 3), st.integers(1, 5))
    rows = st.lists(st.tuples(st.lists(response, min_size=size, max_size=size), st.booleans()), min_size=1, max_size=8)
    groups = data.draw(rows)
    total = {}
    for piece in filter(None, (groups[i::pieces] for i in range(pieces))):
        sums = sums_of([group for group, _ in piece], [counted for _, counted in piece])
        assert all(value.dtype == torch.float64 and value.ndim == 0 for value in sums.values())
        total = {key: total.get(key, 0.0) + value.item() for key, value in sums.items()}
    counted = [response for group, counts in groups if counts for response in group]
    assert total["pairs"] == sum(counts for _, counts in groups)
    if counted:
        assert group_metrics(total) == pytest.approx(expected_metrics(counted), abs=1e-6)
    else:
        assert set(group_metrics(total).values()) == {0.0}


@given(st.lists(PAIR, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_groups_of_two_are_pairs(pairs, random):
    counted = [random.random() < 0.7 for _ in pairs]
    found = sums_of([[(chosen, long), (rejected, short)] for chosen, rejected, long, short in pairs], counted)
    found = {key: value.item() for key, value in found.items()}
    kept = [pair for pair, counts in zip(pairs, counted, strict=True) if counts]
    if kept:
        assert group_metrics(found) == pytest.approx(metrics_of(kept, 1), abs=1e-9)
    assert found["pairs"] == len(kept) and pair_metrics(found) == group_metrics(found)


def test_metrics_of_groups_by_hand():
    """Two groups of three: scores 1, 2, 3 and 5, 5, 5, of 1, 2, 4 and 3, 3, 3 tokens."""
    sums = sums_of([[(1, 1), (2, 2), (3, 4)], [(5, 3), (5, 3), (5, 3)]], [True, True])
    found = group_metrics({key: value.item() for key, value in sums.items()})
    # Contents of 1, 1, 3, 2, 2, 2 tokens, in 1, 1, 2, 2, 2, 2 segments.
    expected = {"segments_per_response": 10 / 6, "segment_length": 11 / 10, "response_length": 16 / 6, "score_mean": 3.5}
    assert found == pytest.approx({**expected, "score_std": math.sqrt((2.5**2 + 1.5**2 + 0.5**2 + 3 * 1.5**2) / 6)})


def test_sums_of_groups_carry_no_gradient():
    scores = torch.zeros(2, 3, requires_grad=True)
    segments = segment_by_entropy(torch.zeros(6, 1), torch.ones(6, 1), 1.0)
    sums = group_sums(scores, segments, torch.ones(2, 3), torch.tensor([True, True]))
    assert not any(value.requires_grad for value in sums.values())


@pytest.mark.parametrize("right, count", [(0, 1), (0, 8), (8, 8), (3, 8), (2, 2), (55, 100), (100, 100), (0.5, 1), (2.5, 7)])
def test_wilsons_interval_is_the_closed_form_and_scipys(right, count):
    """The shares p for which |right / count - p| is 1.96 sqrt(p (1 - p) / count): the roots of a quadratic."""
    z2 = 1.959963984540054**2
    roots = np.roots([1 + z2 / count, -(2 * right + z2) / count, (right / count) ** 2])
    assert wilson(right / count, count) == pytest.approx(sorted(roots.real), abs=1e-9)
    if isinstance(right, int):
        stock = binomtest(right, count).proportion_ci(0.9, method="wilson")
        assert wilson(right / count, count, 0.9) == pytest.approx([stock.low, stock.high], abs=1e-12)


def test_wilsons_interval_at_the_ends():
    """All of 8: n / (n + z^2) to 1, about .68; none: its mirror image."""
    assert wilson(1.0, 8) == pytest.approx([8 / (8 + 1.959963984540054**2), 1.0], abs=1e-12)
    assert wilson(0.0, 8) == pytest.approx([0.0, 1 - 8 / (8 + 1.959963984540054**2)], abs=1e-12)


def test_few_pairs_and_exploded_scores_are_remarked_on():
    # 2 of 2: 2 / (2 + 3.8415) = 0.342.
    assert remarks(1.0, 2, 3.0) == ["accuracy 1.000 is of 2 pairs only: 95% interval [0.342, 1.000]"]
    assert remarks(0.7, 10, interval=[0.4, 0.9]) == ["accuracy 0.700 is of 10 pairs only: 95% interval [0.400, 0.900]"]
    (line,) = remarks(1.0, 1000, 2.5e6)
    assert line.startswith("scores reach 2.5e+06 in magnitude")
    assert remarks(0.6, 100, 900.0) == [] and len(remarks(1.0, 2, 1e6)) == 2


def test_the_length_of_a_single_segment_and_the_score_of_a_single_response():
    mask = torch.ones(1, 3).bool()
    segments = segment_by_entropy(torch.zeros(1, 3), mask, 1000)
    sums = group_sums(torch.tensor([[2.0]]), segments, mask.sum(1)[:, None], torch.tensor([True]))
    found = group_metrics({name: float(value) for name, value in sums.items()})
    assert found["segment_length"] == 3 and found["score_mean"] == 2
