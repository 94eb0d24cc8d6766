"""Which rows come when: the steps of a rollout batch, and the stream of prompts."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.data.order import StepSampler, endless_rows, step_table
from denserl.streams import Purpose, stream


@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(0, 3))
def test_every_response_is_in_one_step_and_ranks_keep_their_own(steps, world, rows_per_rank, epoch):
    per_step = world * rows_per_rank
    table = step_table(steps * per_step, per_step, stream(1, Purpose.STEPS, 2, epoch))
    assert table.shape == (steps, per_step) and sorted(table.flatten().tolist()) == list(range(steps * per_step))
    for rank in range(world):
        # The trainer deals response i to rank i % world and looks for it at place i // world there.
        assert all(row % world == rank for row in table[:, rank::world].flatten())


def test_steps_are_mixed_anew_in_each_epoch():
    first, second = (step_table(400, 8, stream(1, Purpose.STEPS, 2, epoch)).tolist() for epoch in (0, 1))
    assert first != second and sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert first == step_table(400, 8, stream(1, Purpose.STEPS, 2, 0)).tolist()


@given(st.integers(0, 40), st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_prompts_come_as_one_stream_of_permutations(first, count, total, seed):
    whole = endless_rows(0, 60 + total, total, seed, Purpose.PROMPTS)
    for episode in range(60 // total):
        assert sorted(whole[episode * total : (episode + 1) * total]) == list(range(total))
    assert endless_rows(first, count, total, seed, Purpose.PROMPTS) == whole[first : first + count]


def test_the_stream_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = endless_rows(0, 40, 20, 7, Purpose.PROMPTS)
    torch.manual_seed(2)
    assert endless_rows(0, 40, 20, 7, Purpose.PROMPTS) == before != endless_rows(0, 40, 20, 8, Purpose.PROMPTS)
    assert before[:20] != before[20:]


def test_no_pass_of_a_seed_is_a_pass_of_another_and_no_purpose_that_of_another():
    rows, passes = 30, 4
    orders = [
        tuple(endless_rows(each * rows, rows, rows, seed, purpose))
        for seed in (42, 43, 44)
        for purpose in (Purpose.PROMPTS, Purpose.PRETRAINING_TEXT)
        for each in range(passes)
    ]
    for seed in (42, 43, 44):
        for epoch in range(passes):
            sampler = StepSampler(rows, step_rows=5, micro_rows=5, seed=seed, epoch=lambda epoch=epoch: epoch)
            orders.append(tuple(row for batch in sampler for row, _ in batch))
    assert len(set(orders)) == len(orders) == 3 * 3 * passes


def test_streams_of_other_lengths_and_purposes_share_no_numbers():
    """numpy's own seeds of a tuple do: (42, 0, 5) is (42, 0, 5, 0)."""
    assert np.random.default_rng((42, 0, 5)).random() == np.random.default_rng((42, 0, 5, 0)).random()
    places = [(), (0,), (0, 0), (5,), (0, 5), (5, 0), (0, 5, 0), (0, 5, 0, 0)]
    names = [(seed, purpose, *place) for seed in (0, 5, 42, 43, 2**32 - 1) for purpose in Purpose for place in places]
    numbers = {number for name in names for number in np.random.default_rng(stream(*name)).integers(2**62, size=3).tolist()}
    assert len(numbers) == 3 * len(names)
    assert np.random.default_rng(stream(*names[7])).random() == np.random.default_rng(stream(*names[7])).random()
