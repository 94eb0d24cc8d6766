"""What trainings say at their end: the numbers of their files, intervals by hand, remarks, and commands that may come next."""

import importlib
import json
import logging
import math
import shlex

import pytest
import tiny_models

from denserl.cli import train_rm, train_sft
from denserl.cli.options import parse
from denserl.trainer.summaries import in_words, policy_lines, reward_model_lines, reward_model_remarks
from denserl.trainer.trackers import read_metrics

EVALUATED = {
    "eval_accuracy": 0.75,
    "eval_length_accuracy": 0.5,
    "eval_length_correlation": -0.25,
    "eval_score_mean": 0.1,
    "eval_score_std": 1.5,
    "eval_chosen_reward": 0.5,
    "eval_rejected_reward": -0.3,
    "eval_segments_per_response": 4.0,
    "eval_segment_length": 6.0,
}


@pytest.mark.parametrize(
    "seconds, said", [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (200.4, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, said):
    assert in_words(seconds) == said


def test_an_accuracy_has_its_interval():
    # Wilson's, at 1.96: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 3/4, n = 400.
    z, p, n = 1.959964, 0.75, 400
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    (first, second) = reward_model_lines(EVALUATED, 400)
    assert f"accuracy 0.750, 95% interval [{low:.3f}, {high:.3f}], on 400 pairs" in first
    assert "4.0 segments a response, of 6.0 tokens" in second
    assert reward_model_remarks(EVALUATED, 400) == []


@pytest.mark.parametrize(
    "change, pairs, said",
    [
        ({"eval_accuracy": 1.0}, 2, "accuracy 1.000 is of 2 pairs only: 95% interval [0.342, 1.000]"),
        ({"eval_chosen_reward": 1.2e6}, 400, "scores reach 1.2e+06 in magnitude"),
        ({"eval_rejected_reward": -1.2e6}, 400, "scores reach 1.2e+06 in magnitude"),
        ({"eval_score_std": 1.2e6}, 400, "scores reach 1.2e+06 in magnitude"),
        ({"eval_score_std": 0.0}, 400, "all scores are the same"),
    ],
)
def test_what_is_doubtful_is_remarked_on(change, pairs, said):
    (remark,) = reward_model_remarks(EVALUATED | change, pairs)
    assert remark.startswith(said)


def test_a_policy_is_summed_up_by_its_held_out_rewards():
    rows = [
        {"step": 0, "eval_reward": 0.5, "eval_reward_std": 2.0, "eval_kl": 0.0, "eval_response_length": 9.0, "eval_ended": 0.5},
        {"step": 1, "reward": 9.0},
        {"step": 2, "eval_reward": 1.5, "eval_reward_std": 2.0, "eval_true_reward": 0.25, "eval_true_reward_std": None}
        | {"eval_kl": 3.0, "eval_response_length": 8.0, "eval_ended": 1.0},
    ]
    # 1.96 x 2 / sqrt(64) = 0.49
    assert policy_lines(rows, 16, 64) == [
        "reward 1.5 +- 0.49 (95%, 64 held-out prompts), 0.5 at first",
        "true reward 0.25 +- nan (95%, 64 held-out prompts), nan at first",
        "KL 3 nats a response, 8.0 tokens, 100% of them ended",
    ]
    rows[-1] |= {"eval_judge_win_rate": 0.625, "eval_judge_win_rate_low": 0.5, "eval_judge_win_rate_high": 0.75}
    judged = "win rate 0.625 [0.500, 0.750] against the reference model (95%, 64 held-out prompts)"
    assert policy_lines(rows, 16, 64)[2] == judged
    trained = [{"step": 1, "reward": 2.0, "reward_std": 4.0, "kl": 1.0, "response_length": 8.0, "ended": 0.5}]
    assert policy_lines(trained, 16, 0)[0] == "reward 2 +- 2 (95%, 16 samples)"
    assert policy_lines([], 16, 0) == []


def ended_with(caplog, command: str) -> tuple[str, list[str]]:
    """What was logged, and the commands among it that may come next, each of which must be understood."""
    lines = [line.removeprefix("  next: denserl ") for line in caplog.messages if line.startswith("  next: ")]
    for line in lines:
        name, *argv = shlex.split(line)
        parse(importlib.import_module(f"denserl.cli.{name.replace('-', '_')}").Options, name, argv)
    return "\n".join(caplog.messages), [line.split()[0] for line in lines]


def test_a_reward_model_ends_with_its_accuracy_and_what_comes_next(world, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.boat_pairs(4)))
    options = {"model": world.sft, "data": rows, "eval_data": rows, "batch_size": 2, "micro_batch_size": 2, "lr": 1e3}
    options |= {"output_dir": tmp_path / "rm", "cache_dir": tmp_path / "cache", "save_steps": 0, "entropy_threshold": 5.3}
    metrics = tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(options))
    said, following = ended_with(caplog, "train-rm")
    assert (
        f"{tmp_path / 'rm'}: trained to step 2, " in said and f"accuracy {metrics['eval_accuracy']:.3f}, 95% interval" in said
    )
    assert "is of 4 pairs only" in said and "tokens at entropy threshold 5.3; of about" in said
    assert following == ["evaluate", "train-ppo"]


def test_fine_tuning_ends_with_its_loss_and_what_comes_next(world, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = {"model": world.sft, "data": world.text, "eval_data": world.text, "batch_size": 1, "micro_batch_size": 1}
    options |= {"output_dir": tmp_path / "sft", "save_steps": 0, "logging_steps": 1}
    metrics = tiny_models.run_command(train_sft, "train-sft", tiny_models.as_argv(options))
    said, following = ended_with(caplog, "train-sft")
    (logged,) = (row["loss"] for row in read_metrics(tmp_path / "sft/metrics.jsonl") if "loss" in row)
    assert f"loss {logged:.4f} nats a token at last, {logged:.4f} at first" in said
    assert (
        "trained to step 1 on 1 rows, " in said and f"loss {metrics['eval_loss']:.4f} nats a token on 1 held-out rows" in said
    )
    assert following == ["train-rm"]


def test_ppo_ends_with_rewards_and_their_spread(world, ppo, caplog):
    caplog.set_level(logging.INFO)
    folder = ppo(eval_prompts=world.prompts, eval_every=1, true_reward="tiny_models:letters", samples_logged=8)
    said, following = ended_with(caplog, "train-ppo")
    *_, last = read_metrics(folder / "metrics.jsonl")
    samples = [json.loads(line) for line in (folder / "eval_samples.jsonl").read_text().splitlines()]
    worth = [sample["true_reward"] for sample in samples if sample["step"] == 1]
    mean = sum(worth) / len(worth)
    spread = (sum((value - mean) ** 2 for value in worth) / len(worth)) ** 0.5
    assert len(worth) == 5 and last["eval_true_reward_std"] == pytest.approx(spread, rel=1e-3)
    half = 1.959964 * spread / 5**0.5
    assert f"true reward {mean:.3g} +- {half:.2g} (95%, 5 held-out prompts)" in said
    assert "trained to iteration 1 of 8 responses each" in said and f"policy in {folder}, beside it critic/" in said
    assert following == ["bon"]
