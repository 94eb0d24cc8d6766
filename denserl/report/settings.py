"""How runs came about: settings side by side, versions, inputs with their fingerprints, commands."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from denserl.report.reading import Run, text
from denserl.terminal import visible

LONGEST = 300  # characters of a cell
ABSENT = "–"


class Rows(NamedTuple):
    """A table with a column for each run."""

    title: str
    head: list[str]
    rows: list[tuple[list[str], bool]]  # cells, and whether they differ between runs


class Command(NamedTuple):
    """One entry of a command.json."""

    run: str
    command: str
    when: str
    outcome: str


def tables(runs: Sequence[Run]) -> list[Rows]:
    """Settings of the last command of each run and its inputs, those of one command together; and versions of all."""
    kinds = {kind: [run for run in runs if run.kind == kind] for kind in dict.fromkeys(run.kind for run in runs)}
    found = []
    for kind, own in kinds.items():
        found.append(_side_by_side(f"{kind}: settings", own, [run.settings for run in own]))
        found.append(_side_by_side(f"{kind}: inputs", own, [_inputs(run) for run in own]))
    found.append(_side_by_side("Versions", runs, [_mapping(run, "versions") for run in runs]))
    return [table for table in found if table.rows]


def commands(runs: Sequence[Run]) -> list[Command]:
    """All commands, run by run."""
    return [
        Command(
            visible(run.name),
            _cell(entry.get("command"), 4000),
            " to ".join(_cell(entry.get(key)) for key in ("started", "ended") if entry.get(key)),
            _cell(entry.get("outcome") or "has not ended, or was killed"),
        )
        for run in runs
        for entry in run.entries
    ]


def _side_by_side(title: str, runs: Sequence[Run], columns: Sequence[Mapping[str, Any]]) -> Rows:
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        values = [column.get(name, ABSENT) for column in columns]
        differ = len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1
        rows.append(([_cell(name), *(value if value is ABSENT else _cell(value) for value in values)], differ))
    return Rows(title, ["", *(visible(run.name) for run in runs)], rows)


def _inputs(run: Run) -> dict[str, str]:
    """Option and number of an input -> where it is, its size, and the hash of what is in it."""
    found = {}
    for option, files in _mapping(run, "inputs").items():
        for place, (named, about) in enumerate(files.items() if isinstance(files, dict) else ()):
            about = about if isinstance(about, dict) else {}
            digest = next(
                (f"{key} {text(about[key])}" for key in ("fingerprint", "sha256", "revision", "unreadable") if key in about), ""
            )
            size = f"{about['bytes']:,} bytes" if isinstance(about.get("bytes"), int) else ""
            found[f"{option} {place + 1}" if len(files) > 1 else option] = "; ".join(
                filter(None, (text(about.get("path", named)), size, digest))
            )
    return found


def _mapping(run: Run, name: str) -> dict[str, Any]:
    found = run.entries[-1].get(name) if run.entries else None
    return found if isinstance(found, dict) else {}


def _cell(value: Any, longest: int = LONGEST) -> str:
    """A value as JSON writes it, without the marks around a text, and cut."""
    shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return visible(shown if len(shown) <= longest else f"{shown[:longest]}…")
