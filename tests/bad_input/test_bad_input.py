"""A user's mistakes through the real commands: one message with what, got and fix, exit status 2, no traceback.

The table is in cases.py, what the inputs are made of in conftest.py, and how they are spoilt in corruptions.py.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import cases
import pytest
from corruptions import model, with_code
from transformers import dynamic_module_utils

from denserl.cli.main import COMMANDS
from denserl.cli.main import main as denserl

SECONDS = 20
BY_NAME = pytest.mark.parametrize


def argv(world, command: str, flags: dict, words=()) -> list[str]:
    """The words of a good run of the command, with these flags laid over its own."""
    good = world.flags(command) if command in COMMANDS else {}
    line = [command]
    for name, value in (good | flags).items():
        value = value(world) if callable(value) else value
        if value is not None:
            line += [f"--{name}", *map(str, value)] if isinstance(value, tuple) else [f"--{name}={value}"]
    return [*line, *words]


def refused(line: list[str], says: tuple[str, ...], capsys) -> None:
    """Run a command that must end with status 2 and one message with all of this."""
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        denserl(line)
    assert end.value.code == 2
    assert time.monotonic() - began < SECONDS
    out, err = capsys.readouterr()
    # A box around the message, and where its lines break, are of no matter.
    said = " ".join(err.replace("│", " ").split())
    assert [part for part in says if part not in said] == [], err[-3000:]
    assert "Traceback" not in err and not out
    if "--help" not in says[-1] and line[0] in COMMANDS:
        assert f"denserl {line[0]}: " in err and "fix: " in err


@BY_NAME("case", cases.MODELS + cases.ROWS + cases.FILES, ids=lambda case: f"{case.command}-{case.name}")
def test_a_mistake_is_named_with_what_mends_it(case, world, capsys):
    refused(argv(world, case.command, case.flags, case.words), case.says, capsys)
    assert not (world.own / "ran").exists()


@BY_NAME("case", cases.OPTIONS, ids=lambda case: f"{case.command}-{case.name}")
def test_wrong_options_are_refused_before_anything_is_written(case, world, capsys):
    line = argv(world, case.command, case.flags, case.words)
    before = set(world.own.rglob("*"))
    refused(line, case.says, capsys)
    assert set(world.own.rglob("*")) == before


def test_the_table_is_long_and_its_names_are_its_own():
    names = [(case.command, case.name) for case in cases.MODELS + cases.ROWS + cases.FILES + cases.OPTIONS]
    assert len(names) == len(set(names)) >= 60


@BY_NAME("command", ["train-sft", "train-rm", "fit-normalizer", "train-ppo", "bon", "new-model", "make-world"])
def test_without_a_mistake_the_same_flags_run(command, world, capsys):
    small = {"new-model": {"vocab_size": 300, "hidden_size": 32}, "make-world": {"scale": 0.001}}
    denserl(argv(world, command, small.get(command, {})))
    assert any((world.own / "out").iterdir())


def test_code_that_is_trusted_runs(world, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(world.own / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    denserl(argv(world, "train-sft", {"model": model("sft", with_code)}, ["--trust_remote_code"]))
    assert (world.own / "ran").exists() and (world.own / "out" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_named(world, capsys, monkeypatch):
    # The superuser, as whom tests may run, can write into folders that forbid it.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != world.own / "out" and access(path, mode))
    refused(argv(world, "train-rm", {}), ("out: not writable", "give a folder that can be written"), capsys)


@pytest.mark.long
def test_a_port_in_use_is_named(world, taken_port):
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken_port)}
    line = [sys.executable, "-m", "denserl.cli.main", *argv(world, "train-rm", {})]
    run = subprocess.run(line, env={**os.environ, **place}, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert f"127.0.0.1:{taken_port}" in run.stderr and "in use" in run.stderr and "--master_port" in run.stderr
    assert "Traceback" not in run.stderr
