"""The console script where what it prints is no longer read."""

import os
import subprocess
import sys

import pytest

from denserl.cli.main import main

SCRIPT = [sys.executable, "-c", "from denserl.cli.main import main; main()"]


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"]])
def test_a_reader_that_has_gone_is_no_fault(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*SCRIPT, *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_pipe_of_something_else_that_breaks_is_a_fault(monkeypatch, tmp_path):
    def broken(argv):
        raise BrokenPipeError

    monkeypatch.setattr("denserl.cli.plan.main", broken)
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(BrokenPipeError):
            main(["plan"])
