"""Runs whose rewards a server tells, killed while they wait for it, and on two ranks."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from parity import ranks
from real_runs import Training, differences, start_server
from reward_server import serving, vowels
from trainer.conftest import World, world  # noqa: F401

from denserl.trainer.trackers import read_metrics

PPO = {
    "reward_model": None,
    "entropy_threshold": None,
    "iterations": 6,
    "eval_every": 2,
    "save_every": 2,
    "keep_checkpoints": 2,
    "reward_url_batch": 3,
    "micro_batch_size": 2,
}


@pytest.fixture
def training(world) -> Training:  # noqa: F811
    start_server()
    return Training("train_ppo", world.argv, {**PPO, "eval_prompts": world.prompts})


def answer(body: dict) -> dict:
    return {"rewards": vowels(None, body["responses"]), "extra_logs": {"length": [len(text) for text in body["responses"]]}}


@pytest.mark.long
def test_a_run_that_is_killed_while_it_waits_goes_on_as_if_it_had_not_been(training, tmp_path):
    """Only what was on its way to a killed run is asked again: a chunk a kill."""
    # Numbers of requests; the first ten are before the first checkpoint.
    kills, running, started = {12, 15, 20, 29}, [], []

    def deadly(body):
        if len(asked) in kills:
            kills.remove(len(asked))
            os.kill(running[-1].process.pid, signal.SIGKILL)
            started.append(Counter(body["responses"]))
        return answer(body)

    with serving(answer) as undisturbed:
        assert training.run(tmp_path / "whole", reward_url=undisturbed.url).code == 0
    with serving(deadly) as asked:
        while not running or running[-1].ended().code == -signal.SIGKILL:
            running.append(training.start(tmp_path / "killed", reward_url=asked.url))
    assert running[-1].ended().code == 0 and not kills and len(running) == 5
    again = Counter(asked.responses) - Counter(undisturbed.responses)
    assert again == sum(started, Counter())
    # The address stands in what checkpoints remember.
    found = differences(tmp_path / "whole", tmp_path / "killed")
    assert [place for place in found if "reward_url" not in place] == []


@pytest.mark.long
def test_two_ranks_are_told_what_one_is(training, tmp_path):
    """Each rank asks about its own responses, and keeps their answers; the policy learns from the same tokens."""
    rows = []
    for count in (1, 2):
        with serving(answer) as asked:
            options = {"reward_url": asked.url, "policy_tokens": 0.3, "eval_every": 0}
            output = ranks.run(training, tmp_path / f"of-{count}", count, **options)
        rows.append([read_metrics(Path(output) / "metrics.jsonl"), Counter(asked.responses)])
        assert {path.name[-12:] for path in (Path(output) / "answers").iterdir()} == {f"rank-{n}.jsonl" for n in range(count)}
    (one, texts), (two, others) = rows
    assert texts == others
    for name in ("reward", "reward_url/length", "policy_loss", "policy_tokens", "policy_entropy", "kl", "actor_grad_norm"):
        assert [row[name] for row in one] == pytest.approx([row[name] for row in two], abs=1e-5), name
