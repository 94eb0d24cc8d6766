"""PPO whose responses come from vLLM, in an environment of its own, on the CPU: `make engine-test`.

The server is killed in the middle, and the run is asked to stop in the middle; what it comes to is an undisturbed run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / "runs/vllm/bin/python"
SECONDS = 1800
RUN = {
    "iterations": 4,
    "rollout_batch_size": 16,
    "train_batch_size": 8,
    "micro_batch_size": 4,
    "max_new_tokens": 24,
    "max_prompt_length": 64,
    "actor_lr": 1e-3,
    "warmup_ratio": 0,
    "save_every": 1,
    "rollout_engine": "vllm",
    "rollout_python": PYTHON,
    "rollout_timeout": SECONDS,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny policy and prompts."""
    folder = tmp_path_factory.mktemp("engine")
    tiny_models.save_language_model(folder / "policy", stops=20, hidden=64)
    rows = [{"prompt": f"Tell me about boat {i}."} for i in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def start(folder: Path, output: Path, **options) -> subprocess.Popen:
    named = {"model": folder / "policy", "data": folder / "prompts.jsonl", "output_dir": output}
    reward = f"{ROOT / 'tests/tiny_models.py'}:letters"
    words = tiny_models.as_argv({**RUN, **named, "reward_function": reward, **options})
    with open(output.with_suffix(".log"), "ab") as said:
        return subprocess.Popen([sys.executable, "-m", "denserl.cli.train_ppo", *words], stdout=said, stderr=said, cwd=ROOT)


def ended(run: subprocess.Popen, output: Path) -> tuple[int, str]:
    """Its status, and what was said; its server is gone."""
    status = run.wait(SECONDS)
    until = time.monotonic() + 30
    while servers(output) and time.monotonic() < until:
        time.sleep(0.1)
    assert not servers(output)
    return status, output.with_suffix(".log").read_text(errors="replace")


def servers(output: Path) -> list[int]:
    """Processes that serve the model of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:3] == [b"-m", b"vllm.entrypoints.openai.api_server"] and str(output / "rollout/weights").encode() in words:
            found.append(int(path.parent.name))
    return found


def metrics(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def wait_for(iterations: int, run: subprocess.Popen, output: Path) -> None:
    until = time.monotonic() + SECONDS
    while len(metrics(output)) < iterations and time.monotonic() < until:
        assert run.poll() is None, output.with_suffix(".log").read_text(errors="replace")[-3000:]
        time.sleep(0.02)


@pytest.mark.timeout(4 * SECONDS)
def test_a_run_that_is_disturbed_comes_to_the_same(folder, tmp_path):
    calm = tmp_path / "calm"
    status, said = ended(start(folder, calm), calm)
    assert status == 0, said[-3000:]
    assert len(metrics(calm)) == 4 and all(row["rollout_mismatch_max"] < 1e-4 for row in metrics(calm))

    output = tmp_path / "disturbed"
    run = start(folder, output, rollout_sync="disk")
    wait_for(1, run, output)
    for pid in servers(output):
        os.kill(pid, signal.SIGKILL)
    status, said = ended(run, output)
    assert status == 2 and "the engine at http://127.0.0.1" in said and "--resume" in said, said[-3000:]
    done = len(metrics(output))

    run = start(folder, output, resume=True)
    wait_for(done + 1, run, output)
    run.send_signal(signal.SIGTERM)
    status, said = ended(run, output)
    assert status == 75, said[-3000:]

    status, said = ended(start(folder, output, resume=True), output)
    assert status == 0, said[-3000:]
    for row, expected in zip(metrics(output), metrics(calm), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
