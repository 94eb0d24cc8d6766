"""What the runs of the evidence came to: measures, effects against another way of paying, tables and pictures.

Runs come in as lists of held-out evaluations, one list a seed; nothing is run here.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from evidence_settings import ARMS, PLAIN, SICK, WELL, Arm, Part, compared_with, most_tokens
from levels import band, over_seeds, summarise, when

from denserl.evaluation.plots import plot_side_by_side

Run = list[dict]  # of one seed
Runs = dict[str, dict[int, Run]]  # name -> seed -> run
SHARES = (0.5, 0.75, 0.9)
SENTENCE, APT = 5, 32  # tokens of a sentence, and how many serve a prompt


class Column(NamedTuple):
    """A measure of a run, and whether it is told beside that of another run of the same seed."""

    title: str
    measure: Callable[[Run, Arm], float | None]


def best_reachable(arm: Arm) -> float:
    """What a response can be worth: as many sentences as there is room for, or there are, all serving what is asked for."""
    return 1.0 if arm.truth == "mean" else min(most_tokens(arm.length) // SENTENCE, APT)


def nats(arm: Arm) -> float:
    """The KL at which ways of paying are compared: a quarter of a nat for each sentence of the demonstrations."""
    return arm.length / 4


def reaches(share: float) -> Column:
    return Column(
        f"rollouts to {share:.0%}".replace("%", " %"), lambda run, arm: when(run, "true", share * best_reachable(arm))
    )


COLUMNS = (
    Column("true reward at the end", lambda run, arm: run[-1]["true"]),
    Column("highest", lambda run, arm: max(row["true"] for row in run)),
    Column("KL", lambda run, arm: run[-1]["kl"]),
    Column("true reward at n / 4 nats", lambda run, arm: when(run, "kl", nats(arm), "true")),
    *map(reaches, SHARES),
    Column("tokens", lambda run, arm: run[-1]["length"]),
    Column("repeated", lambda run, arm: run[-1]["repeats"]),
)
# Those of rewards that are learned: what the reward model makes of the responses.
LEARNED = (
    Column("accuracy of its model", lambda run, arm: run[-1]["accuracy"]),
    Column("its own reward", lambda run, arm: run[-1]["proxy"]),
)
# What a page leaves to the file of all measures, where it is not of the over-optimised.
DETAILS = ("highest", "repeated", "its own reward")
SHOWN_WHOLE = ("cures",)


def effects(ours: dict[int, Run], theirs: dict[int, Run], arm: Arm) -> dict[str, dict]:
    """Means and intervals, over the seeds that both have, of what is gained against another way of paying."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    at_kl = [tuple(when(run, "kl", nats(arm), "true") for run in pair) for pair in pairs]
    # Where the other way of paying has gone, as far as this one goes there too.
    at_last = [(when(mine, "kl", other[-1]["kl"], "true"), other[-1]["true"]) for mine, other in pairs]
    return {
        "end above": summarise([mine[-1]["true"] - other[-1]["true"] for mine, other in pairs]),
        "above at n / 4 nats": summarise([None if None in pair else pair[0] - pair[1] for pair in at_kl]),
        "above at its last KL": summarise([None if mine is None else mine - other for mine, other in at_last]),
        "share of the rollouts to its best": summarise([share_to_best(*pair) for pair in pairs]),
    }


def share_to_best(mine: Run, other: Run) -> float | None:
    """In which share of the rollouts that another way of paying took to its best this one passed it; None: in none."""
    goal = max(row["true"] for row in other)
    needed, spent = (when(run, "true", goal) for run in (mine, other))
    return needed / spent if needed is not None and spent else None


def closed(ours: dict[int, Run], of_names: Runs, name: str) -> dict[str, dict]:
    """The share of the gap between a sick reward model and the true values that a cure closes, at the end; and the bandit's."""
    panel, bandit = name.rpartition(": ")[0], of_names[f"what is paid: {PLAIN}"]
    sick, well = (of_names[f"{panel}: {arm}"] for arm in (SICK, WELL))
    ends = [[runs[seed][-1]["true"] for runs in (sick, ours, well)] for seed in ours if seed in sick and seed in well]
    of_bandit = [share_to_best(ours[seed], bandit[seed]) for seed in ours if seed in bandit]
    return {
        "of the gap": summarise([(cured - low) / (high - low) if high > low else None for low, cured, high in ends]),
        "share of the bandit's rollouts": summarise(of_bandit),
    }


def gaps(of_models: Runs) -> dict[str, dict[str, dict]]:
    """What is lost where a reward model pays in the place of the true values, credited alike, by its pairs and its level."""
    found = {}
    for name, arm in ARMS["models"].items():
        known = of_models.get("true values: difference" if name.endswith("difference") else "true values: at the end", {})
        both = [seed for seed in of_models.get(name, {}) if seed in known]
        if arm.model and both:
            ends = [(of_models[name][seed][-1]["true"], known[seed][-1]["true"]) for seed in both]
            found[name] = {
                "true reward at the end": summarise([ours for ours, _ in ends]),
                "by true values": summarise([true for _, true in ends]),
                "lost": summarise([true - ours for ours, true in ends]),
                "left of it": summarise([ours / true for ours, true in ends]),
            }
    return found


def measured(runs: dict[Part, Runs]) -> dict[Part, dict[str, dict[str, dict]]]:
    """Every measure and effect of every arm that has runs: part -> name -> measure -> mean, interval and values by seed."""
    found: dict[Part, dict[str, dict[str, dict]]] = {}
    for part, of_names in runs.items():
        for name, of_seeds in of_names.items():
            if of_seeds:
                arm = ARMS[part][name]
                columns = COLUMNS if arm.model is None else (*COLUMNS, *LEARNED)
                other = compared_with(part, name)
                found.setdefault(part, {})[name] = {
                    **{title: summarise([measure(run, arm) for run in of_seeds.values()]) for title, measure in columns},
                    **(effects(of_seeds, of_names[other], arm) if other else {}),
                    **(closed(of_seeds, of_names, name) if part == "cures" else {}),
                }
    return found


def table(of_names: dict[str, dict[str, dict]], left_out: Collection[str] = ()) -> str:
    """A part's arms and what was measured of them, as Markdown."""
    # In the order of the arms that have the most.
    rows = sorted(of_names.values(), key=len, reverse=True)
    titles = [title for title in dict.fromkeys(title for measures in rows for title in measures) if title not in left_out]
    lines = [["", *titles], ["---"] * (len(titles) + 1)]
    for name, measures in of_names.items():
        lines.append([name, *(cell(measures[title]) if title in measures else "" for title in titles)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def cell(summary: dict) -> str:
    """A mean with its interval, and how many of the seeds have a value where some have none."""
    mean, half, n, of = summary["mean"], summary["half_width"], summary["n"], len(summary["values"])
    if not n:
        return "-"
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2
    return f"{mean:.{digits}f}{f' +- {half:.{digits}f}' * (n > 1)}{f' ({n} of {of})' * (n < of)}"


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its marks, <!-- table NAME --> and <!-- end -->."""

    def fill(found: re.Match) -> str:
        return f"{found[1]}\n{tables.get(found[2], found[3])}{found[4]}"

    return re.sub(r"(<!-- table (.+?) -->)\n(.*?)(<!-- end -->)", fill, page, flags=re.DOTALL)


def draw(runs: dict[Part, Runs], folder: Path) -> None:
    """True reward against rollouts, and against KL, of every part, a panel for each kind of world or model."""
    for part, of_names in runs.items():
        for column, label, scale in (("rollouts", "rollouts", "linear"), ("kl", "KL of held-out rollouts (nats)", "roots")):
            panels: dict[str, dict] = {}
            for name, of_seeds in of_names.items():
                if of_seeds:
                    panel, _, line = name.rpartition(": ")
                    x = [point["mean"] for point in over_seeds(list(of_seeds.values()), column)]
                    curves = panels.setdefault(f"true reward{', ' * bool(panel)}{panel}", {})
                    curves[line] = band(x, over_seeds(list(of_seeds.values()), "true"))
            if panels:
                plot_side_by_side(panels, folder / f"{part}-{column}.png", xlabel=label, scale=scale)
