"""The page of judged solutions: their steps with the chance of each in figures and colours, worst misses first."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from denserl.evaluation.solutions import NO_ERROR, JudgedSolution, predictions
from denserl.files import write_flushed
from denserl.pages.rendering import render
from denserl.pages.segments import Step, share_of
from denserl.terminal import visible

SHOWN = 100  # solutions


def write_step_report(target: Path, model: str, judged: Sequence[JudgedSolution], summary: Mapping) -> None:
    """Write the page.

    First come the solutions whose wrong step was not found, by its chance, the highest first; then the right ones that were
    held for wrong; then those that were judged rightly.

    Args:
        model: name of the scorer. summary: of `StepSuite.summarise`.
    """
    threshold = summary["step_threshold"]
    entries = sorted(zip(judged, predictions(judged, threshold).tolist()), key=lambda entry: _rank(*entry))
    page = {
        "model": visible(model),
        "threshold": f"{threshold:.4g}",
        "threshold_from": summary["threshold_from"],
        "count": len(entries),
        "shown": min(SHOWN, len(entries)),
        "verdicts": _verdicts(entries),
        "table": _table(summary),
        "legend_steps": [Step(f"{tenth / 10:.1f}", _share(tenth / 10)) for tenth in range(0, 11, 2)],
        "solutions": [_solution(*entry) for entry in entries[:SHOWN]],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_flushed(target, render("evaluation/steps.html", page))


def _rank(entry: JudgedSolution, prediction: int) -> tuple[int, float]:
    error, chances = entry.item.error, entry.chances
    if prediction == error:
        return 2, 0.0
    return (0, -float(chances[error])) if error != NO_ERROR else (1, float(chances.min()))


def _verdict(entry: JudgedSolution, prediction: int) -> str:
    error, chances = entry.item.error, entry.chances
    if prediction == error:
        return "found" if error != NO_ERROR else "rightly passed"
    if error == NO_ERROR:
        return "held for wrong, though all of it is right"
    if prediction == NO_ERROR or prediction > error:
        return f"missed: step {error + 1} is wrong and passed at {chances[error]:.2f}"
    return f"step {prediction + 1} was held for wrong before step {error + 1}, which is"


def _verdicts(entries: Sequence[tuple[JudgedSolution, int]]) -> list[tuple[str, int]]:
    """How many solutions came out which way."""
    ways = np.array([_rank(*entry)[0] for entry in entries])
    names = ("first wrong step not found", "right, but held for wrong", "judged rightly")
    return [(name, int((ways == way).sum())) for way, name in enumerate(names)]


def _table(summary: Mapping) -> list[list[str]]:
    rows = [["split", "solutions", "wrong found", "right passed", "F1", "95 % interval"]]
    for name, part in summary["subsets"].items():
        numbers = [_number(part[key]) for key in ("acc_error", "acc_correct", "f1")]
        rows.append([visible(name), str(part["n"]), *numbers, _interval(part["interval"])])
    mean = "overall" if summary["overall"] is not None else "macro_f1"
    interval = _interval(summary["intervals"].get(mean))
    return [*rows, ["mean", str(summary["n"]), "", "", _number(summary[mean]), interval]]


def _solution(entry: JudgedSolution, prediction: int) -> dict:
    item = entry.item
    return {
        "name": visible(" · ".join(filter(None, (item.id or item.place, item.subset, item.generator)))),
        "verdict": _verdict(entry, prediction),
        "right": prediction == item.error,
        "prompt": visible("\n\n".join(str(message["content"]) for message in item.prompt).strip()),
        "steps": [
            {
                "text": visible(text.strip()),
                "chance": f"{chance:.2f}",
                "wrong": number == item.error,
                "held": number == prediction,
                "share": _share(chance),
            }
            for number, (text, chance) in enumerate(zip(item.steps, entry.chances.tolist(), strict=True))
        ],
    }


def _share(chance: float) -> float:
    return share_of(2 * chance - 1, 1.0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
