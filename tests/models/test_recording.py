"""A recorded function gives what the function gives, as long as it is told when tensors move; what cannot be recorded runs."""

import logging

import pytest
import torch
from op_recorder import op_graph

from denserl.models import recording
from denserl.models.recording import Recorded


class Sums:
    """Adds what it is given to a sum that stays in its place; counts how often it is run."""

    def __init__(self, device="cpu"):
        self.total, self.runs = torch.zeros(3, device=device), 0

    def __call__(self, given):
        self.runs += 1
        self.total += given
        return self.total * 2


def check_sums(device: str, runs: list[int]):
    """Six calls with a move before the fifth: sums by hand, and how often the function ran after each call."""
    sums, expected = Sums(device), torch.zeros(3)
    one = Recorded(sums, "Sums")
    for call in range(6):
        if call == 4:
            sums.total = sums.total.clone()
            one.forget()
        given = torch.tensor([1.0, 10.0, 100.0]) * (call + 1)
        expected = expected + given
        assert torch.equal(one(given.to(device)).cpu(), 2 * expected)
        assert sums.runs == runs[call]


def test_a_function_runs_once_and_is_recorded_once_for_each_place(monkeypatch):
    monkeypatch.setitem(recording.RECORDS, "cpu", op_graph)
    check_sums("cpu", [1, 2, 2, 2, 3, 4])


def test_where_nothing_is_recorded_it_runs():
    check_sums("cpu", [1, 2, 3, 4, 5, 6])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_recorded():
    check_sums("cuda", [1, 2, 2, 2, 3, 4])


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
def test_what_asks_the_device_runs_as_it_is(monkeypatch, caplog, device):
    def positive(given):
        return given[given.sum().item() > 0 :]

    monkeypatch.setitem(recording.RECORDS, "cpu", op_graph)
    recording.tell.cache_clear()
    one = Recorded(positive, "Positive")
    with caplog.at_level(logging.WARNING):
        found = [one(torch.tensor([sign, 2.0 * sign], device=device)).tolist() for sign in (1.0, -1.0, 1.0, -1.0)]
    assert found == [[2.0], [-1.0, -2.0], [2.0], [-1.0, -2.0]]
    assert [record.getMessage().startswith("Positive decodes kernel by kernel") for record in caplog.records] == [True]


def test_lack_of_memory_is_told(monkeypatch):
    def full(function):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setitem(recording.RECORDS, "cpu", full)
    one = Recorded(Sums(), "Sums")
    one(torch.ones(3))
    with pytest.raises(torch.OutOfMemoryError):
        one(torch.ones(3))
