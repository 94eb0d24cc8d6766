"""Why judged answers have their scores: what each attribute of a model that rates some adds to them.

As rows of a file, as means over all answers, and as a page whose first items are those that were judged the wrong way round.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from denserl.evaluation.items import Answer, Judged
from denserl.files import write_flushed
from denserl.pages.rendering import render
from denserl.pages.segments import share_of
from denserl.rewards.scorer import Reasons
from denserl.terminal import visible

SHOWN = 100  # items on the page
SIDES = ("better", "worse")


class Reason(NamedTuple):
    """Why one answer has its score, which is the sum of ratings x coefficients."""

    side: str
    number: int  # among the answers of its side
    answer: Answer
    score: float
    ratings: np.ndarray  # (K,)
    coefficients: np.ndarray  # (K,)

    @property
    def parts(self) -> np.ndarray:
        """What each attribute adds to the score: (K,)."""
        return self.ratings * self.coefficients


def by_item(judged: Sequence[Judged], reasons: Reasons) -> Iterator[tuple[Judged, list[Reason]]]:
    """The items with the reasons of their answers, the better ones first; `reasons` is in the order of all answers."""
    rows = zip(reasons.ratings, reasons.coefficients, strict=True)
    for entry in judged:
        answers = [
            (side, number, answer, float(score))
            for side, texts, scores in zip(SIDES, (entry.item.better, entry.item.worse), (entry.better, entry.worse))
            for number, (answer, score) in enumerate(zip(texts, scores, strict=True))
        ]
        yield entry, [Reason(*answer, *row) for answer, row in zip(answers, rows)]


def deciding(found: Sequence[Reason]) -> tuple[Reason, Reason]:
    """Of an item the better answer of the least score, and the worse one of the highest."""
    better, worse = ([reason for reason in found if reason.side == side] for side in SIDES)
    return min(better, key=lambda reason: reason.score), max(worse, key=lambda reason: reason.score)


def attribute_means(judged: Sequence[Judged], reasons: Reasons) -> dict[str, dict[str, float]]:
    """By attribute the means over all answers of rating and coefficient, and over items of what it adds to the margin.

    The margin of an item is between the answers that decide it (`deciding`).
    """
    pairs = [deciding(found) for _, found in by_item(judged, reasons)]
    margins = np.mean([better.parts - worse.parts for better, worse in pairs], 0)
    columns = zip(reasons.names, reasons.ratings.mean(0), reasons.coefficients.mean(0), margins, strict=True)
    return {name: {"rating": float(r), "coefficient": float(c), "margin": float(m)} for name, r, c, m in columns}


def write_reasons(folder: Path, model: str, judged: Sequence[Judged], reasons: Reasons) -> None:
    """`reasons.jsonl`, a row for every judged answer, and `reasons.html`. model: name of the scorer."""
    items = list(by_item(judged, reasons))
    lines = [json.dumps(_row(entry, reason, reasons.names)) for entry, found in items for reason in found]
    write_flushed(folder / "reasons.jsonl", "\n".join(lines) + "\n")
    decided = sorted(((entry, *deciding(found)) for entry, found in items), key=lambda entry: entry[1].score - entry[2].score)
    sizes = [abs(better.parts - worse.parts).max() for _, better, worse in decided[:SHOWN]]
    limit = float(np.quantile(sizes, 0.9)) or 1.0
    page = {
        "model": visible(model),
        "count": len(items),
        "shown": min(SHOWN, len(items)),
        "lost": sum(better.score <= worse.score for _, better, worse in decided),
        "table": _table(attribute_means(judged, reasons)),
        "items": [_item(entry, better, worse, reasons.names, limit) for entry, better, worse in decided[:SHOWN]],
    }
    write_flushed(folder / "reasons.html", render("evaluation/reasons.html", page))


def _row(entry: Judged, reason: Reason, names: Sequence[str]) -> dict[str, Any]:
    columns = zip(names, reason.ratings.tolist(), reason.coefficients.tolist(), reason.parts.tolist(), strict=True)
    return {
        "id": entry.item.id,
        "subset": entry.item.subset,
        "side": reason.side,
        "answer": reason.number,
        "score": reason.score,
        "attributes": {name: {"rating": r, "coefficient": c, "contribution": part} for name, r, c, part in columns},
    }


def _table(means: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = [["attribute", "mean rating", "mean coefficient", "mean share of the margin"]]
    for name, of in sorted(means.items(), key=lambda entry: -entry[1]["margin"]):
        rows.append([visible(name), f"{of['rating']:.3f}", f"{of['coefficient']:+.3f}", f"{of['margin']:+.3f}"])
    return rows


def _item(entry: Judged, better: Reason, worse: Reason, names: Sequence[str], limit: float) -> dict[str, Any]:
    differences, margin = better.parts - worse.parts, better.score - worse.score
    higher = "better" if margin > 0 else "worse"
    return {
        "name": visible(" · ".join(filter(None, (entry.item.id or entry.item.place, entry.item.subset)))),
        "verdict": f"{higher} answer scores higher, by {abs(margin):.3f}" if margin else "a tie",
        "right": margin > 0,
        "prompts": list(dict.fromkeys(_prompt(reason.answer) for reason in (better, worse))),
        "answers": [visible(reason.answer.text.strip()) for reason in (better, worse)],
        "scores": [f"{reason.score:+.3f}" for reason in (better, worse)],
        "margin": f"{margin:+.3f}",
        "rows": [
            {
                "name": visible(names[k]),
                # One figure where both have the prompt in common.
                "coefficients": list(dict.fromkeys(f"{reason.coefficients[k]:+.3f}" for reason in (better, worse))),
                "ratings": [f"{reason.ratings[k]:.3f}" for reason in (better, worse)],
                "parts": [f"{reason.parts[k]:+.3f}" for reason in (better, worse)],
                "difference": f"{differences[k]:+.3f}",
                "share": share_of(differences[k], limit),
            }
            for k in np.argsort(-np.abs(differences)).tolist()
        ],
    }


def _prompt(answer: Answer) -> str:
    return visible("\n\n".join(str(message["content"]) for message in answer.prompt).strip())
