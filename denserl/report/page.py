"""The page of runs: what stands on it, section by section. Numbers are read, formatted and drawn elsewhere in this room."""

from collections.abc import Mapping, Sequence
from typing import Any

from denserl.pages.rendering import CHART_SCRIPTS, data_uri, render
from denserl.pages.segments import legend
from denserl.report import curves, judged, sampled, seeds, settings
from denserl.report.reading import Run
from denserl.terminal import visible

TRAININGS = ("train-ppo", "train-rm", "train-sft")
SCRIPTS = (*CHART_SCRIPTS, "report/samples.js", "report/report.js")
# Of a run of each kind: what its row in the table of runs has, as heading -> name in metrics.jsonl and format.
SHOWN: dict[str, dict[str, tuple[str, str]]] = {
    "train-ppo": {
        "reward": ("reward", ".3f"),
        "true reward": ("true_reward", ".3f"),
        "gold reward": ("gold_reward", ".3f"),
        "KL": ("kl", ".2f"),
        "tokens": ("response_length", ".1f"),
        "entropy": ("entropy", ".2f"),
        "ended": ("ended", ".0%"),
    },
    "train-rm": {
        "accuracy": ("accuracy", ".3f"),
        "by length alone": ("length_accuracy", ".3f"),
        "loss": ("loss", ".3f"),
        "difference": ("reward_difference", ".2f"),
        "step accuracy": ("step_accuracy", ".3f"),
    },
    "train-sft": {"loss": ("loss", ".3f"), "learning rate": ("learning_rate", ".2g")},
}
OPEN = {"train-ppo": 2, "train-rm": 1, "train-sft": 1}  # groups of charts that are open at first
Table = list[list[str]]


def make_page(runs: Sequence[Run], how: str, lead: Mapping[str, Any] | None = None, watched: bool = False) -> str:
    """The page, as HTML.

    Args:
        how: seeds `apart`, or their `mean`.
        lead: what stands before the runs: title, words, table and references of charts, of a demo.
        watched: whether the page asks its server for what is new.
    """
    lead = lead or {}
    groups = seeds.groups_of(runs) if how == "mean" else [[run] for run in runs]
    drawn = []
    for kind in TRAININGS:
        own = [group for group in groups if group[0].kind == kind]
        for place, (heading, charts) in enumerate(curves.sections(own, kind, lead.get("references"))):
            shown = [chart.data() for chart in charts]
            drawn.append({"kind": kind, "heading": heading, "open": place < OPEN[kind], "charts": shown})
    samples = sampled.browser_data(runs)
    parts = [
        *judged.evaluations(_of(runs, "evaluate")),
        *judged.best_of_n(_of(runs, "bon")),
        *judged.answers(_of(runs, "answer")),
        *judged.policies(_of(runs, "judge")),
        *judged.fits([run for run in runs if run.fits]),
    ]
    page = {
        "title": visible(lead.get("title") or title(runs)),
        "words": [visible(line) for line in lead.get("words", ())],
        "lead_table": _cells(lead.get("table", [])),
        "tables": [(kind, _cells(table)) for kind in TRAININGS if len(table := summary(groups, kind)) > 1],
        "remarks": [f"{visible(run.name)}: {visible(remark)}" for run in runs for remark in run.remarks],
        "curves": drawn,
        "parts": [_part(part) for part in parts],
        "distributions": [chart.data() for chart in sampled.charts(runs)],
        "samples": samples if samples["rows"] else None,
        "legend_steps": legend(1.0),
        "settings": settings.tables(runs),
        "commands": settings.commands(runs),
        "several": len(runs) > 1,
        "watched": watched,
    }
    return render("report/report.html", page, SCRIPTS, connects=watched)


def title(runs: Sequence[Run]) -> str:
    """What the page is called."""
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"


def summary(groups: Sequence[Sequence[Run]], kind: str) -> Table:
    """A head, and a row for each training of a kind: its first and last numbers, held-out ones where there are any."""
    own = [group for group in groups if group[0].kind == kind]
    columns = {
        heading: (name, shown)
        for heading, (name, shown) in SHOWN[kind].items()
        if any(curves.curve_of(run, prefix + name).x for group in own for run in group for prefix in ("", curves.HELD_OUT))
    }
    rows = [["run", "last step", *columns, "how it ended"]]
    for group in own:
        cells = [_before_and_after(group, name, shown) for name, shown in columns.values()]
        steps = {f"{step:g}" for run in group if (step := curves.last(run, "step")) is not None}
        outcomes = {str(run.entries[-1].get("outcome") or "not ended") if run.entries else "not known" for run in group}
        rows.append([seeds.name_of(group), ", ".join(sorted(steps)), *cells, "; ".join(sorted(outcomes))])
    return rows


def format_tables(runs: Sequence[Run], how: str) -> str:
    """The tables of trainings, and what could not be read, for the terminal."""
    groups = seeds.groups_of(runs) if how == "mean" else [[run] for run in runs]
    tables = [table for kind in TRAININGS if len(table := summary(groups, kind)) > 1]
    remarks = [f"{run.name}: {remark}" for run in runs for remark in run.remarks]
    return "\n\n".join([*map(in_columns, tables), *(["\n".join(remarks)] if remarks else [])])


def in_columns(rows: Table) -> str:
    """Rows of cells in aligned columns, the head first, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        line[0] = row[0].ljust(widths[0])
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], ["-" * width for width in widths], *lines[1:]])


def _before_and_after(group: Sequence[Run], name: str, shown: str) -> str:
    """The last value of a number, of held-out rows where there are any, and the first in front of it where there are two."""
    prefix = curves.HELD_OUT if any(curves.curve_of(run, curves.HELD_OUT + name).x for run in group) else ""
    curve = seeds.mean_curve([curves.curve_of(run, prefix + name) for run in group])
    values = [value for value in curve.y if value is not None]
    if not values:
        return ""
    bounds = ""
    if curve.low and curve.low[-1] is not None and curve.high and curve.high[-1] is not None:
        bounds = f" [{curve.low[-1]:{shown}}, {curve.high[-1]:{shown}}]"
    return f"{f'{values[0]:{shown}} → ' if len(values) > 1 else ''}{values[-1]:{shown}}{bounds}"


def _of(runs: Sequence[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.kind == kind]


def _part(part: judged.Part) -> dict[str, Any]:
    return {
        "title": visible(part.title),
        "words": [visible(line) for line in part.words],
        "table": _cells(part.table),
        "charts": [chart.data() for chart in part.charts],
        "picture": data_uri(part.picture) if part.picture else None,
    }


def _cells(table: Sequence[Sequence[str]]) -> Table:
    return [[visible(cell, kept="") for cell in row] for row in table]
