"""SIGTERM and SIGINT: the step is finished and saved, status 75, and --resume goes on to the same end. Twice: at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from on_ranks import ended, start_ranks
from real_runs import SECONDS, SET_BY_LAUNCHERS, checkpoints, differences

from denserl.errors import STOPPED_STATUS
from denserl.trainer.checkpoint import read_state
from denserl.trainer.trackers import read_metrics

KINDS = ["ppo-zero0", "rm-zero2"]


class SlowSteps:
    """Called in a process, makes its first optimiser step take a minute; a file tells that it has begun."""

    def __init__(self, begun: Path, seconds: float = 60):
        self.begun, self.seconds = begun, seconds

    def __call__(self) -> None:
        import torch

        plain = torch.optim.AdamW.step

        def step(*args, **kw):
            if not self.begun.exists():
                self.begun.touch()
                time.sleep(self.seconds)
            return plain(*args, **kw)

        torch.optim.AdamW.step = step


def is_training(output: Path) -> bool:
    return any(row["step"] > 0 for row in read_metrics(output / "metrics.jsonl"))


def forget_further_checkpoints(expected: Path, output: Path) -> None:
    """Remove checkpoints that only a stop made."""
    names = {path.name for path in checkpoints(expected)}
    for path in checkpoints(output):
        if path.name not in names:
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (KINDS[0], signal.SIGTERM),
        pytest.param(KINDS[1], signal.SIGINT, marks=pytest.mark.long),
        pytest.param(KINDS[0], signal.SIGINT, marks=pytest.mark.long),
        pytest.param(KINDS[1], signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_signal_stops_a_run_after_its_step_and_it_can_go_on(name, number, finished, tmp_path):
    done, output = finished(name), tmp_path / "run"
    running = done.training.start(output)
    assert running.wait_until(lambda: is_training(output))
    running.signal(number)
    # Launchers pass on what a terminal has sent to all; that is one wish, not two.
    running.signal(number)
    code, said = running.ended()
    assert code == STOPPED_STATUS and "Traceback" not in said, said[-3000:]
    assert f"{number.name}: finishing this step" in said and "--resume" in said
    steps = [row["step"] for row in read_metrics(output / "metrics.jsonl")]
    assert (
        steps[-1] <= int(checkpoints(output)[-1].name.split("-")[1]) < read_metrics(done.output / "metrics.jsonl")[-1]["step"]
    )
    code, said = done.training.run(output)
    assert code == 0, said[-3000:]
    forget_further_checkpoints(done.output, output)
    assert not differences(done.output, output)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("ppo-zero0", signal.SIGTERM, id="ppo-SIGTERM"),
        pytest.param("rm-zero2", signal.SIGINT, id="rm-SIGINT"),
    ],
)
# In make test: test_stopping's, inside a long call.
@pytest.mark.long
def test_a_second_signal_stops_at_once(name, number, finished, tmp_path):
    done, output = finished(name), tmp_path / "run"
    running = done.training.start(output, SlowSteps(tmp_path / "begun"))
    assert running.wait_until((tmp_path / "begun").exists)
    running.signal(number)
    assert running.wait_until(lambda: "finishing this step" in running.log.read_text())
    time.sleep(1.1)
    assert running.process.is_alive()
    sent = time.monotonic()
    running.signal(number)
    code, said = running.ended()
    assert time.monotonic() - sent < 5
    assert code == 128 + number and "Traceback" not in said, said[-3000:]
    assert not checkpoints(output)
    code, said = done.training.run(output)
    assert code == 0, said[-3000:]
    assert not differences(done.output, output)


@pytest.mark.parametrize("name", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.long)])
def test_a_signal_to_one_rank_stops_all_ranks_after_the_same_step(name, trainings, tmp_path):
    training, outputs = trainings[name], [tmp_path / "whole", tmp_path / "stopped"]
    if name.startswith("ppo"):
        training = training._replace(settings={**training.settings, "iterations": 4})
    assert ended(start_ranks(training, outputs[0]))[0] == [0, 0]
    running = start_ranks(training, outputs[1])
    assert running[1].wait_until(lambda: is_training(outputs[1]))
    running[1].signal(signal.SIGTERM)
    codes, said = ended(running)
    assert codes == [STOPPED_STATUS] * 2, said[-3000:]
    assert ended(start_ranks(training, outputs[1]))[0] == [0, 0]
    forget_further_checkpoints(*outputs)
    assert not differences(*outputs)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--module"],
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "launcher"), [("ppo-zero0", "torchrun"), ("rm-zero2", "torchrun"), ("ppo-zero0", "deepspeed")]
)
def test_a_signal_to_the_launcher_reaches_all_ranks(name, launcher, trainings, tmp_path):
    """One SIGTERM to torchrun, which passes it on; to the process group of deepspeed, which does not."""
    training, outputs = trainings[name], [tmp_path / "whole", tmp_path / "stopped"]
    final = outputs[1] / "model.safetensors"
    assert ended(start_ranks(training, outputs[0]))[0] == [0, 0]
    process, log = launched(launcher, training, outputs[1])
    wait_for(lambda: is_training(outputs[1]) or process.poll() is not None)
    if launcher == "deepspeed":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    code = process.wait(SECONDS)
    wait_for(lambda: "--resume" in log.read_text() or final.exists())
    said = log.read_text()
    assert code != 0 and "SIGTERM: finishing this step" in said and "--resume" in said, said[-3000:]
    stopped_at = checkpoints(outputs[1])[-1]
    assert read_state(stopped_at)["settings"]["ranks"] == 2 and stopped_at.name != checkpoints(outputs[0])[-1].name
    assert ended(start_ranks(training, outputs[1]))[0] == [0, 0]
    forget_further_checkpoints(*outputs)
    assert not differences(*outputs)


def wait_for(happened) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.001)


def launched(launcher: str, training, output: Path) -> tuple[subprocess.Popen, Path]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(SET_BY_LAUNCHERS)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    argv = [sys.executable, *LAUNCHERS[launcher], f"denserl.cli.{training.command}", *training.arguments(output)]
    log = output.with_suffix(".log")
    with open(log, "w") as file:
        return subprocess.Popen(argv, env=environment, stdout=file, stderr=file, start_new_session=True), log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_before_training_begins_stops_at_once(number, trainings, tmp_path):
    output = tmp_path / "run"
    running = trainings["ppo-zero0"].start(output)
    assert running.wait_until(lambda: "rows read" in running.log.read_text())
    running.signal(number)
    code, said = running.ended()
    assert code == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 128 + signal.SIGINT}[number], said[-3000:]
    assert "Traceback" not in said and not checkpoints(output)
