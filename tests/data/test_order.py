"""Which rows come when: the steps of a rollout batch, and the stream of prompts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from denserl.data.order import prompt_rows, step_table


@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(0, 3))
def test_every_response_is_in_one_step_and_ranks_keep_their_own(steps, world, rows_per_rank, epoch):
    per_step = world * rows_per_rank
    table = step_table(steps * per_step, per_step, (1, 2, epoch))
    assert table.shape == (steps, per_step) and sorted(table.flatten().tolist()) == list(range(steps * per_step))
    for rank in range(world):
        # The trainer deals response i to rank i % world and looks for it at place i // world there.
        assert all(row % world == rank for row in table[:, rank::world].flatten())


def test_steps_are_mixed_anew_in_each_epoch():
    first, second = (step_table(400, 8, (1, 2, epoch)).tolist() for epoch in (0, 1))
    assert first != second and sorted(map(sorted, first)) != sorted(map(sorted, second))
    assert first == step_table(400, 8, (1, 2, 0)).tolist()


@given(st.integers(0, 40), st.integers(1, 20), st.integers(1, 9), st.integers(0, 5))
def test_prompts_come_as_one_stream_of_permutations(first, count, total, seed):
    whole = prompt_rows(0, 60 + total, total, seed)
    for episode in range(60 // total):
        assert sorted(whole[episode * total : (episode + 1) * total]) == list(range(total))
    assert prompt_rows(first, count, total, seed) == whole[first : first + count]


def test_the_stream_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = prompt_rows(0, 40, 20, 7)
    torch.manual_seed(2)
    assert prompt_rows(0, 40, 20, 7) == before != prompt_rows(0, 40, 20, 8)
    assert before[:20] != before[20:]
