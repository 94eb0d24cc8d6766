"""What the strengths of preferences come to: a summary of pairs, and the parts of judged items.

How they are measured is in rewards/voting.py, what parts are in rewards/strength.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from denserl.data.strength_file import Strength, read_strength, strength_of
from denserl.evaluation.items import Item
from denserl.rewards.strength import DECILE, GROUP, PARTS, agreement, mean_chance, parts, ranks
from denserl.rewards.voting import Votes

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.95, 0.99)
DECILES = 10


def strength_summary(votes: Votes) -> tuple[Strength, dict]:
    """The strength of each pair, and what they come to."""
    found, difference = strength_of(votes.chosen, votes.rejected), votes.chosen - votes.rejected
    part, tenth = parts(found.mean), ranks(found.mean) * DECILES // len(found.mean)
    kinds = {name: _of_rows(found.rows(np.flatnonzero(part == number))) for number, name in enumerate(PARTS)}
    deciles = [_of_rows(found.rows(np.flatnonzero(tenth == number))) for number in range(DECILES)]
    return found, {
        "pairs": len(found.mean),
        "members": len(votes.voters),
        "members_per_pair": float((~np.isnan(difference)).sum(0).mean()),
        "below_zero": float((found.mean < 0).mean()),
        "agreement": agreement(difference),
        "mean_chance": float(mean_chance(difference).mean()),
        "unit": votes.unit,
        **_of_rows(found),
        "quantiles": {f"{q:g}": float(np.quantile(found.mean, q)) for q in QUANTILES},
        "parts": {name: each for name, each in kinds.items() if each["n"]},
        "deciles": [each for each in deciles if each["n"]],
        "each": [_of_member(votes, number, row) for number, row in enumerate(difference)],
    }


def _of_rows(rows: Strength) -> dict:
    """Of some pairs, of which there may be none."""
    if not len(rows.mean):
        return {"n": 0}
    bounds = {"low": float(rows.mean.min()), "high": float(rows.mean.max())}
    return {"n": len(rows.mean), "mean": float(rows.mean.mean()), **bounds, "std": float(rows.std.mean())} | {
        "votes": float(rows.votes.mean())
    }


def _of_member(votes: Votes, number: int, difference: np.ndarray) -> dict:
    own = difference[~np.isnan(difference)]
    return {
        "model": votes.voters[number].path,
        "pairs": len(own),
        "accuracy": float(((own > 0) + 0.5 * (own == 0)).mean()),
        "std": votes.stds[number],
        "std_is_stored": votes.are_stored[number],
    }


def strength_lines(summary: dict) -> list[str]:
    """The summary for the terminal."""
    agree = "" if summary["agreement"] is None else f", two of them agree on {summary['agreement']:.1%}"
    head = [
        f"{summary['pairs']} pairs by {summary['members']} members ({summary['members_per_pair']:.1f} a pair){agree}",
        f"mean difference below 0 in {summary['below_zero']:.1%}: members hold the rejected response for the better one",
    ]
    return head + [f"  {name:10} {_in_words(part)}" for name, part in summary["parts"].items()]


def _in_words(part: dict) -> str:
    mean = f"mean {part['mean']:+.3f} [{part['low']:+.3f}, {part['high']:+.3f}]"
    return f"{part['n']:7}   {mean}   std {part['std']:.3f}   votes for chosen {part['votes']:.3f}"


def strengths_of(path: str, items: Sequence[Item], split: str, on_bad_row: str = "stop") -> dict[str, float]:
    """Place of an item -> the mean difference that a file, or the split of a data set, has for its pair.

    Raises:
        UserError: as of `read_strength`.
    """
    pairs = [
        {"prompt": item.better[0].prompt, "chosen": item.better[0].text, "rejected": item.worse[0].text, "place": item.place}
        for item in items
    ]
    found = read_strength(path, pairs, split, on_bad_row)
    return {item.place: float(mean) for item, mean in zip(items, found.mean, strict=True)}


def by_strength(means: Mapping[str, float], places: Sequence[str]) -> dict[str, list[int]]:
    """Part and decile -> the numbers of the items in them, which are judged, of all that have a strength."""
    if not means:
        return {}
    all_means = np.array(list(means.values()))
    part, tenth = parts(all_means), ranks(all_means) * DECILES // len(all_means)
    names = list(PARTS)
    of_place = {place: (names[part[row]], int(tenth[row])) for row, place in enumerate(means)}
    found: dict[str, list[int]] = {name: [] for name in (*map(_named, names), *(f"{DECILE}{i + 1}" for i in range(DECILES)))}
    for number, place in enumerate(places):
        name, decile = of_place[place]
        found[_named(name)].append(number)
        found[f"{DECILE}{decile + 1}"].append(number)
    return {name: numbers for name, numbers in found.items() if numbers}


def _named(part: str) -> str:
    return f"{GROUP}{part}"
