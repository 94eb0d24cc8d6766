"""The command as users start it: plain, by the deepspeed launcher (ZeRO 2), by torchrun (ZeRO 3); mistakes and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denserl.cli import train_ppo
from denserl.models.loading import load_policy
from denserl.trainer.checkpoint import newest_checkpoint, read_state
from denserl.trainer.ppo_trainer import PPOTrainer
from denserl.trainer.trackers import read_metrics

SECONDS = 120
BIN = Path(sys.executable).parent
MODULE = "denserl.cli.train_ppo"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", MODULE]
DEEPSPEED = [str(BIN / "deepspeed"), "--num_gpus", "2", "--module", MODULE]
OPTIONS = {
    "iterations": 2,
    "train_batch_size": 4,
    "micro_batch_size": 2,
    "actor_lr": 1e-4,
    "ema_decay": 0.5,
    "save_every": 1,
}


def started(argv: list[str]) -> subprocess.Popen:
    """The process in a session of its own, without what an earlier run here may have set for its process group."""
    set_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "CROSS_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(set_by_launchers)}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(process: subprocess.Popen, argv: list[str]) -> tuple[int, str]:
    """Exit status and stderr; a process that hangs is killed with all it started, and fails the test."""
    try:
        _, stderr = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{argv[:8]} did not end in {SECONDS} s: {process.communicate()[1][-3000:]}")
    return process.returncode, stderr


def launched(argv: list[str]) -> tuple[int, str]:
    return finished(started(argv), argv)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """The output of a plain launch: one process, no ZeRO."""
    output = tmp_path_factory.mktemp("alone")
    argv = world.argv(output, eval_prompts=world.prompts, **OPTIONS)
    code, stderr = launched([sys.executable, "-m", MODULE, *argv])
    assert code == 0, stderr[-3000:]
    return output


def metrics(folder: Path) -> list[dict]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def same_run(one: Path, other: Path) -> None:
    assert [row["step"] for row in metrics(one)] == [0, 1, 2]
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5)
    for part in ("", "critic", "ema"):
        expected, got = (load_file(folder / part / "model.safetensors") for folder in (one, other))
        assert set(got) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=2e-5 if part != "critic" else 2e-4, msg=f"{part} {name}")


def test_a_plain_launch_writes_models_and_metrics(alone):
    rows = metrics(alone)
    assert [row["step"] for row in rows] == [0, 1, 2] and all(None not in row.values() for row in rows)
    load_policy(str(alone), "fp32")
    load_policy(str(alone / "ema"), "fp32")
    kept = sorted(path.name for path in (alone / "checkpoints").iterdir())
    assert kept == ["iteration-000001", "iteration-000002", "latest"]


@pytest.mark.parametrize(
    "launcher, zero_stage",
    [
        pytest.param(DEEPSPEED, 2, id="deepspeed-zero2", marks=pytest.mark.long),
        pytest.param(TORCHRUN, 3, id="torchrun-zero3", marks=pytest.mark.long),
    ],
)
def test_two_processes_do_what_one_does(launcher, zero_stage, alone, world, tmp_path):
    argv = world.argv(tmp_path / "out", eval_prompts=world.prompts, **OPTIONS | {"zero_stage": zero_stage})
    code, stderr = launched([*launcher, *argv])
    assert code == 0, stderr[-3000:]
    same_run(alone, tmp_path / "out")
    load_policy(str(tmp_path / "out"), "fp32")


def test_asked_to_stop_a_run_finishes_its_step_and_saves(world, tmp_path, monkeypatch, capsys):
    """Processes that signals come to are in tests/faults/test_signals.py."""
    step = PPOTrainer._optimiser_step

    def signalled(self, *args):
        os.kill(os.getpid(), signal.SIGINT)
        step(self, *args)

    monkeypatch.setattr(PPOTrainer, "_optimiser_step", signalled)
    with pytest.raises(SystemExit) as stop:
        train_ppo.main(world.argv(tmp_path, iterations=100_000, train_batch_size=4))
    said = capsys.readouterr().err
    assert stop.value.code == 75, said[-3000:]
    (step,) = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    saved = newest_checkpoint(tmp_path / "checkpoints")
    assert read_state(saved)["iteration"] == step == 1
    assert f"stopped after iteration 1 of 100000; {saved} is complete" in said
    assert "--resume" in said and "Traceback" not in said


def test_a_wrong_flag_ends_with_2_and_a_suggestion():
    code, stderr = launched([sys.executable, "-m", MODULE, "--reward_modle", "x"])
    assert code == 2
    assert "--reward_model" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("flag", ["model", "reward_model", "data", "fit", "eval_prompts", "config"])
def test_a_missing_file_ends_with_2_and_its_name(flag, world, tmp_path, capsys):
    missing = str(tmp_path / "no-such-thing")
    with pytest.raises(SystemExit) as stop:
        train_ppo.main(world.argv(tmp_path / "out", **{flag: missing}))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "denserl train-ppo:" in said and missing in said and "fix:" in said and "Traceback" not in said
