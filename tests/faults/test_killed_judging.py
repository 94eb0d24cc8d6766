"""Judging killed by SIGKILL in the middle and started again ends in the same files, and asks little twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from denserl.cli import judge
from denserl.judging.config import STORE
from denserl.judging.templates import find_template

sys.path += [str(Path(__file__).parent.parent / "evaluation")]
from policy_files import PROMPTS, answers, write_prompts  # noqa: E402
from rule_server import Rule, serving  # noqa: E402
from test_judge_command import contents  # noqa: E402

KILLS, COUNT, AT_ONCE = 2, 40, 4


def killed(words: list[str], store: Path, lines: int) -> None:
    """Start the command, and kill it when its store has so many lines."""
    process = subprocess.Popen([sys.executable, "-m", "denserl.cli.judge", *words], stderr=subprocess.DEVNULL)
    for _ in range(1800):
        if store.exists() and store.read_bytes().count(b"\n") >= lines:
            break
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.long
def test_judging_that_is_killed_goes_on_to_the_same_files(tmp_path):
    prompts = PROMPTS[:COUNT]
    files = [write_prompts(tmp_path / f"{seed}.jsonl", prompts, answers(prompts, 2, seed)) for seed in (1, 2)]
    rule = Rule(find_template("pairwise"), noise=0.2, position_bias=0.3, invalid=0.05)
    words = ["prompts", str(files[0]), "--baseline", str(files[1]), "--judge_concurrency", str(AT_ONCE), "--bootstrap", "50"]

    def argv(url: str, name: str) -> list[str]:
        return [*words, "--judge", url, "--output_dir", str(tmp_path / name)]

    with serving(rule) as server:
        judge.main(argv(server.url, "clean"))
        asked = len(server.bodies)
    with serving(rule, delay=0.2) as server:
        for number in range(1, KILLS + 1):
            killed(argv(server.url, "killed"), tmp_path / "killed" / STORE, number * asked // (KILLS + 1))
        # The line that was being written is torn.
        with open(tmp_path / "killed" / STORE, "a") as file:
            file.write('{"key": "00')
        judge.main(argv(server.url, "killed"))
        assert len(server.bodies) <= asked + KILLS * AT_ONCE
        assert len({json.dumps(body) for body in server.bodies}) == asked
    assert contents(tmp_path / "killed") == contents(tmp_path / "clean")
