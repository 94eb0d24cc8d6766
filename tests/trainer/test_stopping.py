"""Requests to stop, in processes of their own: heard at once even inside a call that Python cannot interrupt."""

import signal
import subprocess
import sys
import time

import pytest

# Inside one matrix product the main thread runs no signal handler.
BUSY = """
import torch, denserl.trainer.stopping as stopping
torch.set_num_threads(1)
x = torch.zeros(SIZE, SIZE)
with stopping.StopRequest() as stop:
    print("in", flush=True)
    x @ x
    print("out", stop.requested(), flush=True)
"""


def busy(size: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.replace("SIZE", str(size))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    return process


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_the_second_signal_stops_at_once_inside_a_long_call(number):
    process = busy(14000)  # about a minute
    began = time.monotonic()
    process.send_signal(number)
    time.sleep(1.2)
    process.send_signal(number)
    out, said = process.communicate(timeout=100)
    assert process.returncode == 128 + number and "out" not in out
    assert time.monotonic() - began < 10
    assert f"{number.name}: finishing this step, then saving" in said


def test_what_a_launcher_sends_again_is_one_request():
    process = busy(3000)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=100)
    assert process.returncode == 0 and out == "out True\n" and said.count("finishing this step") == 1


@pytest.mark.parametrize(
    "rank, minutes, expected", [(0, 2, [58, 158]), (0, None, []), (1, 2, [])], ids=["rank 0", "without", "another rank"]
)
def test_a_checkpoint_is_due_when_the_minutes_have_gone_by_since_the_last_one(rank, minutes, expected, monkeypatch):
    """Steps of 2.1 seconds: two minutes are over in the 58th; the 100th is saved for another reason, and 58 later it is due."""
    from denserl.trainer.stopping import SaveClock, distributed

    seconds = [0.0]
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(SaveClock, "now", staticmethod(lambda: seconds[0]))
    clock, found = SaveClock(minutes), []
    for number in range(1, 200):
        seconds[0] = 2.1 * number
        if clock.due():
            found.append(number)
        if number in (*found, 100):
            clock.saved()
    assert found == expected


def test_outside_the_context_signals_are_what_they_were(monkeypatch):
    from denserl.trainer.stopping import SIGNALS, StopRequest

    before = [signal.getsignal(number) for number in SIGNALS]
    for _ in range(2):
        with StopRequest() as stop:
            assert not stop.requested()
            signal.raise_signal(signal.SIGTERM)
            patience = time.monotonic() + 10
            while not stop.requested() and time.monotonic() < patience:
                time.sleep(0.01)
            assert stop.requested()
        assert [signal.getsignal(number) for number in SIGNALS] == before
