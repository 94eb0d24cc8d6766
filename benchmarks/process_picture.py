"""The picture of docs/process_rewards.md: what each rule pays the steps of a solution that is right, and of one that is not.

python benchmarks/process_picture.py docs/process_credit.png
"""

import sys

import matplotlib.pyplot as plt
import torch

from denserl.ppo_utils.credit import credited, step_rewards

# Chances that the steps are right.
SOLUTIONS = {"every step is right": (0.97, 0.92, 0.95, 0.98), "wrong from the third step on": (0.982, 0.646, 0.269, 0.289)}
RULES = {
    "difference\n(default)": ("difference", "sum"),
    "centred,\n--credit min": ("centred", "min"),
    "centred,\n--credit prefix_min": ("centred", "prefix_min"),
    "centred,\n--credit sum": ("centred", "sum"),
    "prob,\n--credit sum": ("prob", "sum"),
}
PAID, RETURN = "#0072B2", "#D55E00"


def paid(chances: tuple[float, ...], step_reward: str, credit: str) -> torch.Tensor:
    """(K,): what each step of a solution is paid."""
    counts = torch.tensor([len(chances)])
    return credited(step_rewards(torch.tensor([chances]).logit(), counts, step_reward), counts, credit)[0]


def draw(path: str) -> None:
    plt.switch_backend("agg")
    figure, panels = plt.subplots(len(SOLUTIONS), len(RULES) + 1, figsize=(13, 5), sharex=True, layout="constrained")
    for row, (told, chances) in zip(panels, SOLUTIONS.items(), strict=True):
        steps = range(1, len(chances) + 1)
        row[0].plot(steps, chances, color="0.2", marker="o")
        row[0].axhline(0.5, color="0.7", linewidth=0.8)
        row[0].set(ylim=(0, 1.05), ylabel=told, title="p, chance\nthat a step is right")
        for panel, (name, rule) in zip(row[1:], RULES.items(), strict=True):
            rewards = paid(chances, *rule)
            left = rewards.flip(0).cumsum(0).flip(0)
            panel.axhline(0, color="0.7", linewidth=0.8)
            panel.bar(steps, rewards, color=PAID, width=0.6, label="paid at the step's end")
            panel.plot(steps, left, color=RETURN, marker="s", markersize=4, label="return: this and later steps")
            panel.set(ylim=(-1.1, 4.1) if rule[1] == "sum" and rule[0] != "difference" else (-1.6, 1.2))
            panel.set_title(f"{name}\nsum {float(rewards.sum()):+.2f}")
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set_fontsize(9)
    for panel in panels[-1]:
        panel.set(xlabel="step", xticks=list(steps))
    figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1])
