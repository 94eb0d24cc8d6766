"""The ways of paying that the demo compares: their settings, and what a run of each came to. demo.py runs them."""

from pathlib import Path
from typing import NamedTuple

from denserl.levels import LEVELS

TARGET_TRUE_REWARD = 0.4
ITERATIONS = 30
# For a 2-layer model; those of the reward model, the fit and PPO are the model type `tiny` of model_types.yaml.
SFT = {
    "epochs": 2,
    "batch_size": 16,
    "micro_batch_size": 16,
    "lr": 4e-3,
    "warmup_ratio": 0.05,
    "save_steps": 0,
    "max_length": 256,
    "device": "cpu",
}


class Way(NamedTuple):
    """A level, and how its rewards are paid."""

    level: str
    assignment: str


WAYS = {
    "segment": Way("segment", "difference_end"),
    "segment-published": Way("segment", "even"),
    "token": Way("token", "difference_end"),
    "bandit": Way("bandit", "mean_last"),
}


def threshold_of(level: str, world: dict) -> float:
    """The entropy threshold of a level in this world, whose segments have one of their own."""
    return world["threshold"] if level == "segment" else round(LEVELS[level])


def outcome(ppo: Path, reward_model: Path, rollout_batch: int, best: float) -> dict:
    """What a run came to, from the metrics in its folder and the reward model's. best: the highest accuracy there can be."""
    from denserl.trainer.trackers import read_metrics

    accuracy = read_metrics(reward_model / "metrics.jsonl")[-1]["eval_accuracy"]
    held_out = [row for row in read_metrics(ppo / "metrics.jsonl") if "eval_true_reward" in row]
    reached = [row["step"] for row in held_out if row["eval_true_reward"] >= TARGET_TRUE_REWARD]
    return {
        "rm_accuracy": accuracy,
        "rm_share_of_best": accuracy / best,
        "true_before": held_out[0]["eval_true_reward"],
        "true_after": held_out[-1]["eval_true_reward"],
        "kl": held_out[-1]["eval_kl"],
        "rollouts_to_target": reached[0] * rollout_batch if reached else None,
    }
