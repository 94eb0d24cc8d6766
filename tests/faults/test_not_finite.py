"""Losses, gradients and rewards that are not finite: no update, the batch is kept, and n in a row end the run."""

import json
from pathlib import Path

import pytest
import torch
from real_runs import checkpoints
from safetensors.torch import load_file, save_file

from denserl.trainer.trackers import read_metrics

# One optimiser step of the trainings here is two micro-batches; PPO takes one of the critic and one of the policy in turn.
BACKWARDS_PER_STEP = {"train_ppo": 4, "train_rm": 2}
KINDS = ["ppo-zero0", "rm-zero2", "ppo-zero2", "rm-zero0"]


def kinds(short: str) -> list:
    """Of the trainings, one that is not of the long ones; in one process, PPO and reward models are in tests/trainer."""
    return [name if name == short else pytest.param(name, marks=pytest.mark.long) for name in KINDS]


class NotFinite:
    """Called in a process, makes the losses of some optimiser steps NaN, which are numbered from 1."""

    def __init__(self, command: str, steps: range):
        self.every, self.steps, self.calls = BACKWARDS_PER_STEP[command], steps, 0

    def __call__(self) -> None:
        from deepspeed.runtime.engine import DeepSpeedEngine

        plain = DeepSpeedEngine.backward

        def backward(engine, loss, *args, **kw):
            step = self.calls // self.every + 1
            self.calls += 1
            return plain(engine, loss * float("nan") if step in self.steps else loss, *args, **kw)

        DeepSpeedEngine.backward = backward


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors of all trained weights in a checkpoint: as they are at stage 0, else the optimiser's, in fp32 and in one."""
    found = {}
    for i, path in enumerate(sorted(checkpoint.rglob("*_states.pt"))):
        stored = torch.load(path, weights_only=False)
        own = stored.get("optimizer_state_dict") or {}
        groups = own.get("single_partition_of_fp32_groups", own.get("fp32_flat_groups", []))
        tensors = stored.get("module") or dict(enumerate(groups))
        found |= {f"{i}/{name}": x for name, x in tensors.items()}
    assert found
    return found


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def skipped(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "skipped").iterdir()) if (output / "skipped").is_dir() else []


@pytest.mark.parametrize("name", kinds("rm-zero2"))
def test_one_bad_update_is_skipped_and_its_batch_is_kept(name, finished, tmp_path):
    """In the third step; with PPO, the first iteration."""
    done, output = finished(name), tmp_path / "run"
    code, said = done.training.run(output, NotFinite(done.training.command, range(3, 4)))
    assert code == 0, said[-3000:]
    rows = read_metrics(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in read_metrics(done.output / "metrics.jsonl")]
    assert sum(row.get("skipped_steps", 0) for row in rows) == 1
    (file,) = skipped(output)
    assert "step-000003-rank-0" in file
    batch = [json.loads(line) for line in (output / "skipped" / file).read_text().splitlines()]
    assert len(batch) == 4 and all(row["prompt"] for row in batch)
    assert all(torch.isfinite(x).all() for path in checkpoints(output) for x in weights(path).values())
    assert not equal(weights(checkpoints(output)[-1]), weights(checkpoints(done.output)[-1]))


@pytest.mark.parametrize("name", kinds("ppo-zero0"))
def test_bad_updates_in_a_row_end_the_run_with_the_weights_from_before(name, finished, tmp_path):
    """From the second checkpoint on: after PPO's second iteration, or the reward model's fourth step."""
    done, output = finished(name), tmp_path / "run"
    before = checkpoints(done.output)[1]
    steps = {"train_ppo": 2 * 4, "train_rm": 4}[done.training.command]
    bad = NotFinite(done.training.command, range(steps + 1, 1000))
    code, said = done.training.run(output, bad, max_skipped_steps=3)
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert "in a row were not finite" in said and str(output / "skipped") in said and "fix:" in said
    assert len(skipped(output)) >= 3
    last = checkpoints(output)[-1]
    assert last.name > before.name and equal(weights(last), weights(before))
    code, said = done.training.run(output, max_skipped_steps=3)
    assert code == 0 and "damaged" not in said, said[-3000:]


@pytest.mark.long
def test_a_reward_model_that_gives_nan_leaves_the_policy_as_it_was(trainings, world, tmp_path):
    broken, output = tmp_path / "rm", tmp_path / "run"
    broken.mkdir()
    for path in world.reward_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["score.weight"][0, 3] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    code, said = trainings["ppo-zero2"].run(output, reward_model=broken)
    assert code == 2 and "Traceback" not in said, said[-3000:]
    assert not (output / "checkpoints").is_dir() or unchanged(checkpoints(output)[-1], world.sft)


def unchanged(checkpoint: Path, model: Path) -> bool:
    """Whether a checkpoint's policy has the weights of a model."""
    module = torch.load(checkpoint / "actor" / "state" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    return all(torch.equal(module[f"model.{name}"], x) for name, x in load_file(model / "model.safetensors").items())


@pytest.mark.long
@pytest.mark.parametrize("name", ["ppo-zero0", "ppo-zero2", "rm-zero0", "rm-zero2"])
def test_a_learning_rate_that_blows_up_ends_with_finite_weights(name, trainings, tmp_path):
    output = tmp_path / "run"
    rates = {"lr": 1e30} if name.startswith("rm") else {"actor_lr": 1e30, "critic_lr": 1e30}
    code, said = trainings[name].run(output, max_skipped_steps=2, **rates)
    assert code == 2 and "in a row were not finite" in said and "Traceback" not in said, said[-3000:]
    assert all(torch.isfinite(x).all() for x in weights(checkpoints(output)[-1]).values())
