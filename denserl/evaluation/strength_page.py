"""Pages on the strength of preferences: of measured pairs with those to look at first, and of accuracy by strength."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from denserl.data.rendering import assistant
from denserl.data.strength_file import Strength
from denserl.evaluation.items import Credit, Judged
from denserl.evaluation.strength import strength_lines
from denserl.files import write_flushed
from denserl.pages.rendering import data_uri, render
from denserl.rewards.strength import GROUP
from denserl.terminal import visible

SHOWN = 25  # pairs of each kind


def write_strength_page(target: Path, pairs: Dataset, strength: Strength, summary: Mapping[str, Any], image: Path) -> None:
    """The page of measured pairs: the weakest, those about which members say nothing, and the strongest."""
    order = np.argsort(strength.mean, kind="stable")
    even = np.argsort(np.abs(strength.mean), kind="stable")
    chosen = {"Lowest means: is the label wrong?": order, "Means nearest 0": even, "Highest means": order[::-1]}

    def pair(number: int) -> dict[str, str]:
        row, (mean, std, votes) = pairs[number], (float(column[number]) for column in strength)
        verdict = f"mean {mean:+.3f}, std {std:.3f}, votes for the chosen one {votes:.2f}"
        return _pair(row["place"], verdict, row["prompt"], row["chosen"], row["rejected"])

    names = {"n": "pairs", "mean": "mean", "low": "lowest", "high": "highest", "std": "std over members", "votes": "votes"}
    table = [["part", *names.values()]]
    table += [[name, *(_figure(part[key]) for key in names)] for name, part in summary["parts"].items()]
    _write(
        target,
        "How strong preferences are",
        strength_lines(dict(summary))[:2],
        (table, image, "how many pairs have which mean, and the spread of each tenth of them"),
        {title: (len(pairs), [pair(number) for number in numbers[:SHOWN].tolist()]) for title, numbers in chosen.items()},
    )


def write_accuracy_page(
    target: Path, model: str, judged: Sequence[Judged], credit: Credit, means: Mapping[str, float], groups: dict, image: Path
) -> None:
    """The page of judged pairs: accuracy by strength, and the pairs in which the model is most at odds with the members.

    Args:
        means: place of an item -> its mean difference. groups: of the results.
    """
    known = sorted(judged, key=lambda entry: -means[entry.item.place])
    lost = [entry for entry in known if means[entry.item.place] > 0 and not credit(entry)]
    won = [entry for entry in reversed(known) if means[entry.item.place] < 0 and credit(entry) == 1]
    own = {name: group for name, group in groups.items() if name.startswith(GROUP)}
    table = [["part", "pairs", "accuracy", "from", "to", "length alone"]]
    for name, group in own.items():
        figures = (group["n"], group["accuracy"], *group["interval"], group["length_accuracy"])
        table.append([name.removeprefix(GROUP), *map(_figure, figures)])
    kinds = {"Judged otherwise than labels and members": lost, "Judged as labelled, against the members": won}
    _write(
        target,
        f"{model}: accuracy by strength of preference",
        ["Accuracy with its 95 % interval on the parts, and the tenths, of pairs by what members of a vote say of them."],
        (table, image, "accuracy of each tenth of the pairs by strength"),
        {title: (len(found), [_judged(entry, means) for entry in found[:SHOWN]]) for title, found in kinds.items()},
    )


def _judged(entry: Judged, means: Mapping[str, float]) -> dict[str, str]:
    (better,), (worse,) = entry.item.better, entry.item.worse
    margin = float(entry.better[0] - entry.worse[0])
    own = "no valid verdict" if np.isnan(margin) else f"the model's difference {margin:+.3f}"
    verdict = f"members' mean {means[entry.item.place]:+.3f}; {own}"
    return _pair(entry.item.id or entry.item.place, verdict, better.prompt, better.text, worse.text)


def _pair(name: str, verdict: str, prompt: Sequence[dict], chosen: Any, rejected: Any) -> dict[str, str]:
    texts = {"chosen": assistant(chosen)["content"], "rejected": assistant(rejected)["content"]}
    texts["prompt"] = "\n\n".join(str(message["content"]) for message in prompt)
    return {"name": visible(name), "verdict": verdict, **{key: visible(text.strip()) for key, text in texts.items()}}


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _write(
    target: Path,
    title: str,
    words: Sequence[str],
    drawn: tuple[list[list[str]], Path, str],
    sections: Mapping[str, tuple[int, list[dict[str, str]]]],
) -> None:
    """sections: title -> how many pairs there are, and those that are shown."""
    table, image, alt = drawn
    shown = [{"title": name, "count": count, "pairs": pairs} for name, (count, pairs) in sections.items()]
    page = {"title": visible(title), "words": words, "table": table, "image": data_uri(image), "alt": alt, "sections": shown}
    write_flushed(target, render("evaluation/strength.html", page))
