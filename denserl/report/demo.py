"""The demo's page: its table of levels, and its runs as any others, with the lines that are known of a made-up language."""

from pathlib import Path
from typing import Any

from denserl.pages.charts import Reference
from denserl.report.page import in_columns
from denserl.report.reading import RESULTS, read_json

REWARD_PER = {
    "segment": "each segment is paid what it changes in the score",
    "segment-published": "each segment is paid its own reward, as published",
    "token": "each token is paid what it changes in the score",
    "bandit": "one reward per response",
}


def lead_of_folder(folder: Path) -> dict[str, Any]:
    """What stands before the runs of a demo's folder; nothing where its results are missing, or those of another version."""
    try:
        return lead_of(read_json(folder / RESULTS, []))
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def lead_of(results: dict[str, Any]) -> dict[str, Any]:
    """What stands before the runs of a demo, and the lines in its charts. results: what the demo writes to results.json."""
    levels = ", ".join(f"{level} ({REWARD_PER.get(level, 'one of its ways to pay')})" for level in results["levels"])
    best, target = results["best_accuracy"], results["target_true_reward"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return {
        "title": "Dense rewards, from preference pairs to PPO",
        "words": [
            f"The same small language model was trained with PPO at these reward levels: {levels}. Each level has its own "
            "reward model, learned from the same preference pairs. The language is made up and every response in it has a "
            "known true reward, which no model sees: the pairs were drawn from it, so the best reachable pair accuracy "
            f"({best:.3f}) is known, and it judges the policies here on held-out prompts.",
            f"With seed {results['seed']}, everything took {results['minutes']:.1f} minutes. {versions}.",
            "RM accuracy: part of the held-out pairs that the reward model orders as their labels do. Best: the most that any "
            "model could reach on these noisy labels; share: the first over the second. True: mean true reward of responses to "
            "held-out prompts, before and after PPO. KL: from the SFT model at the end, in nats per response. Rollouts: "
            f"sampled until the true reward first reached {target:g}. Each reward model has its own scale, so that rewards "
            "compare within a level.",
        ],
        "table": table_rows(results),
        "references": {
            "true_reward": [Reference(f"target {target:g}", target)],
            "accuracy": [Reference(f"best reachable {best:.3f}", best)],
        },
    }


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """The results as cells: one row of headings, then one row per level."""
    goal = f"rollouts to {results['target_true_reward']:g}"
    rows = [["level", "RM accuracy", "best", "share", "true before", "true after", "KL", goal]]
    for level, got in results["levels"].items():
        rollouts = got["rollouts_to_target"]
        rows.append(
            [
                level,
                f"{got['rm_accuracy']:.3f}",
                f"{results['best_accuracy']:.3f}",
                f"{got['rm_share_of_best']:.0%}",
                f"{got['true_before']:+.2f}",
                f"{got['true_after']:+.2f}",
                f"{got['kl']:.1f}",
                "not reached" if rollouts is None else str(rollouts),
            ]
        )
    return rows


def format_table(results: dict[str, Any]) -> str:
    """The results as plain text in aligned columns, headings first."""
    return in_columns(table_rows(results))
