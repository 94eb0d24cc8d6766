"""Learning rates by step: the schedule as published, in all trainings."""

import math

import pytest
import tiny_models
import torch

from denserl.cli import train_sft
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.schedules import inverse_sqrt, make_scheduler
from denserl.trainer.trackers import read_metrics


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (5, 0.1), (50, 0.5), (99, 0.99), (100, 1.0), (400, 0.5), (10**20, 1e-8)])
def test_the_root_falls_after_a_warm_up_of_a_hundred_steps(step, share):
    assert inverse_sqrt(step, 100) == pytest.approx(share)


def test_a_run_without_warm_up_falls_from_its_second_step_on():
    assert [inverse_sqrt(step, 0) for step in (0, 1, 4)] == [0.1, 1.0, 0.5]


def test_the_warm_up_is_a_share_of_the_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make_scheduler(OptimisationConfig(lr_schedule="inverse_sqrt", warmup_ratio=0.4), optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.2, 0.5, 1.0, 1.5, *(2 * math.sqrt(4 / step) for step in range(4, 10))])


def test_policy_and_critic_go_by_it_and_the_policy_begins_after_the_critic(ppo):
    """Ten steps, one an iteration, of which the policy takes eight; warm-ups of 5 and 4 steps."""
    settings = {"iterations": 10, "warmup_ratio": 0.5, "critic_warmup_iterations": 2, "lr_schedule": "inverse_sqrt"}
    rows = read_metrics(ppo(**settings, max_new_tokens=2) / "metrics.jsonl")
    of_critic = [0.1, 0.2, 0.4, 0.6, 0.8, *(math.sqrt(5 / step) for step in range(5, 10))]
    of_policy = [0.1, 0.1, 0.1, 0.25, 0.5, 0.75, *(math.sqrt(4 / step) for step in range(4, 8))]
    assert [row["critic_lr"] for row in rows] == pytest.approx([1e-3 * share for share in of_critic])
    assert [row["actor_lr"] for row in rows] == pytest.approx([1e-3 * share for share in of_policy])


def test_fine_tuning_goes_by_it_too(world, tmp_path):
    """Six steps, three of them of the warm-up."""
    settings = {"model": world.sft, "data": world.text, "output_dir": tmp_path / "sft", "lr": 1e-3, "epochs": 6}
    settings |= {"batch_size": 1, "micro_batch_size": 1, "warmup_ratio": 0.5, "lr_schedule": "inverse_sqrt", "logging_steps": 1}
    tiny_models.run_command(train_sft, "train-sft", tiny_models.as_argv(settings))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "sft" / "metrics.jsonl") if "learning_rate" in row]
    shares = [0.1, 1 / 3, 2 / 3, 1.0, math.sqrt(3 / 4), math.sqrt(3 / 5)]
    assert rates == pytest.approx([1e-3 * share for share in shares])
