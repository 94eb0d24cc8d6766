"""Killed by SIGKILL at any moment and resumed until done, a training ends as if nothing had happened, to the bit.

What is compared: weights, Adam moments, schedules and random states in every checkpoint, metrics and samples (without timings).
"""

import random
import shutil
import signal
import time
from functools import partial

import pytest
from on_ranks import ended, start_ranks
from real_runs import DiesAtFileCall, Training, answers_to_mtbench, checkpoints, differences, is_saving

SHORT, LONG = ["ppo-zero0", "rm-zero2"], ["ppo-zero2", "rm-zero0", "rm-terms"]


def killed_at_a_moment(training: Training, output, moments: random.Random, seconds: float) -> None:
    """Kill at a random moment of as long as a whole run takes, start-up included."""
    running = training.start(output)
    running.process.join(moments.uniform(0, seconds))
    running.process.kill()
    running.ended()


def killed_in_a_save(training: Training, output, moments: random.Random, seconds: float) -> None:
    """Kill a moment after a folder for an unfinished checkpoint is there."""
    began, running = time.time(), training.start(output)
    if running.wait_until(lambda: is_saving(output, began)):
        time.sleep(moments.uniform(0, 0.02))
        running.process.kill()
    running.ended()


def killed_at_a_file_call(training: Training, output, moments: random.Random, seconds: float) -> None:
    """Kill right before one of the first changes to files."""
    training.run(output, DiesAtFileCall(moments.randint(1, 60), output))


KILLS = [killed_at_a_moment, killed_in_a_save, killed_at_a_file_call]


def survives(done, output, kills: list, seed: int) -> None:
    """Kill a training in these ways, then let it go on to its end, and compare with an uninterrupted one."""
    moments = random.Random(seed)
    for kill in kills:
        kill(done.training, output, moments, done.seconds)
    code, said = done.training.run(output)
    assert code == 0, said[-3000:]
    assert not differences(done.output, output)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        (SHORT[0], KILLS[:2]),
        pytest.param(SHORT[1], KILLS[1:], marks=pytest.mark.long),
        *(pytest.param(name, KILLS, marks=pytest.mark.long) for name in LONG),
    ],
)
def test_a_training_killed_and_resumed_ends_the_same(name, kills, finished, tmp_path):
    survives(finished(name), tmp_path / "run", kills, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("name", [*SHORT, *LONG])
def test_a_training_killed_many_times_ends_the_same(name, seed, finished, tmp_path):
    survives(finished(name), tmp_path / "run", KILLS * 4, seed)


# Two checkpoints, of which the first is dropped.
FEW = {"train_ppo": {"iterations": 2, "keep_checkpoints": 1}, "train_rm": {"epochs": 1, "save_steps": 4, "save_total_limit": 1}}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SHORT)
def test_a_kill_before_any_change_to_a_file_is_survived(name, finished, tmp_path):
    """One after another, until a run gets to its end without being killed; every third one, for time."""
    training = finished(name).training
    few, expected = FEW[training.command], tmp_path / "expected"
    assert training.run(expected, **few).code == 0
    killed = 0
    for n in range(1, 1000, 3):
        output = tmp_path / f"killed-{n}"
        if training.run(output, DiesAtFileCall(n, output), **few).code == 0:
            break
        killed += 1
        code, said = training.run(output, **few)
        assert code == 0, f"after a kill at change {n}: {said[-3000:]}"
        # Where the last save could no more drop its predecessor, that stays; it takes room and does no other harm.
        for path in (output / "checkpoints").iterdir():
            if path.is_dir() and path.name != checkpoints(expected)[0].name:
                shutil.rmtree(path)
        assert not differences(expected, output), f"after a kill at change {n}"
    assert killed > 10 and len(checkpoints(expected)) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo-zero2", "rm-zero2"])
def test_when_one_rank_is_killed_no_other_waits_for_ever(name, trainings, tmp_path):
    training, outputs = trainings[name], [tmp_path / "whole", tmp_path / "killed"]
    assert ended(start_ranks(training, outputs[0]))[0] == [0, 0]
    for _ in range(3):
        began, running = time.time(), start_ranks(training, outputs[1])
        assert running[1].wait_until(partial(is_saving, outputs[1], began))
        running[1].process.kill()
        codes, _ = ended(running)
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
    assert ended(start_ranks(training, outputs[1]))[0] == [0, 0]
    assert not differences(*outputs)


@pytest.mark.long
@pytest.mark.parametrize("turn", [1, 2])
def test_answers_that_were_killed_in_either_turn_are_gone_on_with(turn, tmp_path):
    answering = answers_to_mtbench(tmp_path)
    assert answering.run(tmp_path / "whole").code == 0
    output = tmp_path / "killed"
    samples = output / f"samples-turn-{turn}.jsonl"
    for lines in (1, 9):
        running = answering.start(output)
        assert running.wait_until(partial(_holds, samples, lines))
        running.process.kill()
        assert running.ended().code == -signal.SIGKILL
    assert not (output / "policy.jsonl").exists()
    assert answering.run(output).code == 0
    for name in ("policy.jsonl", "policy-s1.jsonl", "samples-turn-1.jsonl", "samples-turn-2.jsonl"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _holds(path, lines: int) -> bool:
    """Whether a file has so many lines."""
    return path.exists() and path.read_bytes().count(b"\n") >= lines
