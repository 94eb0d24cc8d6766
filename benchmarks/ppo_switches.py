"""What each switch of PPO-max does by itself, what all of them do, and estimates without a critic, beside plain PPO.

In the embedded world, at three levels, over three times the iterations that plain PPO takes to its best: true reward against
KL, and whether a policy collapses. Every run is an ordinary command, printed as it is run. Writes RUNS/levels.json and
pictures; what is finished is not run again. docs/ppo_max.md tells what came out.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from harness import ending_well, run_parts
from levels import Arm, compared

Level = Literal["bandit", "segment", "token"]
# What is paid at each level where nothing else is said.
PAID = {"bandit": "mean_last", "segment": "difference_end", "token": "difference_end"}
ITERATIONS = 120
MOMENTS = {"normalizer": "running", "score_clip": 0.8}
IN_GROUPS = {"samples_per_prompt": 4}
WITHOUT_CRITIC = {"critic_lr": None}
SWITCHES: dict[str, dict] = {
    "plain": {},
    "running moments, clipped": MOMENTS,
    "running scale": {"normalizer": "running_scale"},
    "advantages as they are": {"advantage_norm": "off"},
    "advantages clipped": {"advantage_clip": 2.0},
    "critic first": {"critic_warmup_iterations": 5},
    "critic from the reward model": {"critic_init": "reward_model"},
    "inverse square root": {"lr_schedule": "inverse_sqrt"},
    "entropy": {"entropy_coef": 0.01, "entropy_target": 0.5},
    "value loss halved": {"value_coef": 0.5},
    "average over tokens": {"average": "token_mean"},
    "dual clip": {"dual_clip": 3.0},
    # Sizes and rates are those that all runs share, and so is sampling.
    "PPO-max": {"config": "ppo_max.yaml", "temperature": 1.0, "top_p": 1.0},
    "four samples a prompt": IN_GROUPS,
    "RLOO": {"advantage": "rloo", **IN_GROUPS, **WITHOUT_CRITIC},
    "GRPO, KL in the loss": {"advantage": "grpo", "kl_in": "loss", **IN_GROUPS, **WITHOUT_CRITIC},
    "Dr. GRPO": {"advantage": "grpo", "group_std": "off", "average": "constant", **IN_GROUPS, **WITHOUT_CRITIC},
    "GRPO": {"advantage": "grpo", **IN_GROUPS, **WITHOUT_CRITIC},
    "REINFORCE": {"advantage": "reinforce", **WITHOUT_CRITIC},
}


@dataclass
class Options:
    """Compare the switches of PPO in the embedded world."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds of the worlds and of every run in them."""
    parts: list[Level] = field(default_factory=lambda: list(PAID))
    """The levels of reward."""
    switches: list[str] = field(default_factory=lambda: list(SWITCHES))
    """The switches to try, by name."""
    coefficients: list[float] = field(default_factory=lambda: [0.05])
    """Weights of the KL penalty."""
    runs: Path = Path("runs/ppo_switches")
    """Folder for the runs."""


def part(level: Level):
    """What the switches come to at a level."""

    def run(options: Options) -> dict:
        arms = {f"{level}, {name}": Arm(level, PAID[level], flags=SWITCHES[name]) for name in options.switches}
        return compared("short", arms, ITERATIONS, f"{level}, plain")(options)

    return run


PARTS = {level: part(level) for level in PAID}


if __name__ == "__main__":
    options = tyro.cli(Options)
    ending_well(lambda: run_parts(PARTS, options, options.runs / "ppo_switches.json"))
