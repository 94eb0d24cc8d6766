"""Padding, response slots and batches of like length, against plain loops."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tqdm.auto import tqdm

from denserl import distributed
from denserl.data import batching
from denserl.data.batching import (
    DemonstrationCollator,
    in_rank_batches,
    length_batches,
    map_responses,
    map_rows_in_batches,
    pad_responses,
    pad_rows,
    rank_batches,
    response_slots,
)

PAD = 0
ROWS = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), min_size=1, max_size=5)
PAIRS = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.lists(st.integers(1, 9), max_size=5)),
    min_size=1,
    max_size=5,
)
LENGTHS = st.lists(st.integers(1, 40), max_size=30)


@given(ROWS, st.integers(-1, 0))
def test_pad_rows(rows, value):
    width = max(map(len, rows))
    assert pad_rows(rows, value).tolist() == [row + [value] * (width - len(row)) for row in rows]


@given(PAIRS)
def test_pad_responses(pairs):
    prompts, responses = (list(part) for part in zip(*pairs, strict=True))
    batch = pad_responses(prompts, responses, PAD)
    width = max(len(p) + len(r) for p, r in pairs)
    longest = max(map(len, responses))
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(pairs), width)
    assert batch.response_mask.shape == (len(pairs), longest) and batch.response_mask.dtype == torch.bool
    for b, (prompt, response) in enumerate(pairs):
        real = len(prompt) + len(response)
        assert batch.input_ids[b].tolist() == prompt + response + [PAD] * (width - real)
        assert batch.attention_mask[b].tolist() == [1] * real + [0] * (width - real)
        assert batch.response_start[b].item() == len(prompt)
        assert batch.response_mask[b].tolist() == [True] * len(response) + [False] * (longest - len(response))
        assert batch.response_ids[b][batch.response_mask[b]].tolist() == response


@given(PAIRS, st.sets(st.integers(1, 9), max_size=3))
def test_ends_with_looks_at_the_last_response_token_only(pairs, stops):
    prompts, responses = (list(part) for part in zip(*pairs, strict=True))
    expected = [bool(r) and r[-1] in stops for r in responses]
    assert pad_responses(prompts, responses, PAD).ends_with(stops).tolist() == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(1, 5), st.sampled_from([(), (3,)]))
def test_response_slots(starts, length, more):
    values = torch.arange(len(starts) * 7 * (3 if more else 1)).reshape(len(starts), 7, *more)
    got = response_slots(values, torch.tensor(starts), length)
    for b, start in enumerate(starts):
        assert got[b].tolist() == [values[b, min(start + t, 6)].tolist() for t in range(length)]


@given(LENGTHS, st.integers(1, 100))
def test_length_batches_hold_every_row_once_within_the_budget(lengths, max_tokens):
    batches = length_batches(lengths, max_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= max_tokens
    order = [lengths[row] for batch in batches for row in batch]
    assert order == sorted(order, reverse=True)


@given(LENGTHS, st.integers(1, 100), st.data())
def test_rows_of_a_group_follow_one_another(lengths, max_tokens, data):
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    batches = length_batches(lengths, max_tokens, groups)
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= max_tokens
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    runs = [group for place, group in enumerate(groups[row] for row in order) if not place or groups[order[place - 1]] != group]
    assert len(runs) == len(set(runs))
    longest = [max(length for length, other in zip(lengths, groups, strict=True) if other == group) for group in runs]
    assert longest == sorted(longest, reverse=True)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 4))
def test_ranks_take_equally_many_batches_and_count_each_once(lengths, max_tokens, world):
    shares = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: world)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(list(rank_batches(length_batches(lengths, max_tokens))))
    assert len({len(share) for share in shares}) == 1
    counted = [row for share in shares for batch, counts in share if counts for row in batch]
    assert sorted(counted) == list(range(len(lengths)))


@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_map_responses_gives_each_row_its_own_values(max_tokens):
    prompts, responses = [[1, 2], [3], [4, 5, 6], [7]], [[8, 9], [], [1], [2, 3, 4]]
    calls = []

    def double(batch):
        assert not torch.is_grad_enabled()
        calls.append(len(batch.input_ids))
        return batch.response_ids * 2

    got = map_responses(prompts, responses, double, pad_id=PAD, max_tokens=max_tokens, device="cpu", progress="test")
    assert sum(calls) == 4
    assert {row: values.tolist() for row, values in got.items()} == {0: [16, 18], 1: [], 2: [2], 3: [4, 6, 8]}
    assert all(values.dtype == np.float32 for values in got.values())


@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_map_rows_gives_each_row_its_own_values_and_rows_of_one_prompt_together(max_tokens):
    prompts, responses = [[1, 2], [3], [1, 2], [7]], [[8, 9], [5], [1], [2, 3, 4]]
    calls = []

    def of_rows(rows):
        assert not torch.is_grad_enabled()
        calls.append(rows)
        # Two numbers a token: the row's, and the token's place.
        width = max(len(responses[row]) for row in rows)
        return torch.stack([torch.stack([torch.full((width,), row), torch.arange(width)], 1) for row in rows]).double()

    got = map_rows_in_batches(prompts, responses, of_rows, max_tokens, "test")
    assert {row: values.tolist() for row, values in got.items()} == {
        row: [[row, place] for place in range(len(response))] for row, response in enumerate(responses)
    }
    assert all(values.dtype == np.float32 for values in got.values())
    order = [row for rows in calls for row in rows]
    assert sorted(order) == [0, 1, 2, 3] and abs(order.index(0) - order.index(2)) == 1


def test_map_rows_halves_what_memory_does_not_hold():
    sizes = []

    def of_rows(rows):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([[float(row)] for row in rows])

    got = map_rows_in_batches([[1]] * 3, [[2]] * 3, of_rows, 100, "test")
    assert {row: values.tolist() for row, values in got.items()} == {0: [0.0], 1: [1.0], 2: [2.0]} and sizes[0] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bar_of_rank_0_counts_the_tokens_of_its_share(rank, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **kw):
            super().__init__(**kw, file=io.StringIO())
            bars.append((self.total, [], self.disable))

        def update(self, n=1):
            bars[-1][1].append(n)

    monkeypatch.setattr(batching, "tqdm", Bar)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    # The second rank's last batch is the first one again, which does not count.
    found = list(in_rank_batches(lambda rows: rows, [[4], [0, 1], [2, 3]], [7, 20, 13], "test"))
    ((total, steps, is_hidden),) = bars
    assert (found, steps, total) == (([[4], [2, 3]], [7, 13], 20), ([[0, 1]], [20], 20))[rank]
    assert is_hidden == (rank == 1)


@pytest.mark.parametrize("world", [2, 3])
def test_map_rows_gives_each_rank_its_share(world):
    prompts, responses = [[1], [2], [3], [4]], [[5], [6, 6], [7, 7, 7], [8, 8, 8, 8]]
    shares = []
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: world)
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(map_rows_in_batches(prompts, responses, lambda rows: torch.ones(len(rows), 4), 1, "test"))
    assert sorted(row for share in shares for row in share) == [0, 1, 2, 3]


def test_demonstrations_have_no_loss_before_the_response_or_on_padding():
    batch = DemonstrationCollator(PAD)([{"input_ids": [5, 6, 7, 8], "loss_start": 2}, {"input_ids": [9, 4], "loss_start": 1}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["response_start"].tolist() == [2, 1]
    assert batch["response_mask"].tolist() == [[True, True], [True, False]]
