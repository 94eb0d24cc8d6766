"""The kinds of rows that are looked at, each made records of one shape; and of which kind rows are."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.messages import kind_of
from denserl.data.rated_rows import ATTRIBUTES, as_rated, lists_ratings, unread_rated
from denserl.data.schemas import (
    MARGIN,
    P_CHOSEN,
    READ_KEYS,
    SIDES,
    WEIGHT,
    as_demonstration,
    as_preference,
    as_prompt,
    unread,
)
from denserl.data.step_records import READ_KEYS as STEP_KEYS
from denserl.data.step_records import StepReading, as_steps, unread_steps
from denserl.errors import UserError
from denserl.inspection.config import InspectConfig
from denserl.steps import SEPARATOR

# What a row says of a pair, and what it says where it says nothing.
LABELS = {MARGIN: 0.0, P_CHOSEN: 1.0, WEIGHT: 1.0}
STEPS, RIGHT, SOLUTION = "steps", "steps that are right", "solution"


class Record(NamedTuple):
    """What is looked at of a row, or of one response in it."""

    prompt: list[dict]  # messages; none of plain text
    responses: tuple[str | dict, ...]
    numbers: tuple[float, ...]  # NaN: the row has none


class Kind(NamedTuple):
    """A kind of rows.

    sides, numbers: what its responses and its numbers are called. convert: row -> records; BadRow and LeftOut say why there are
    none. known: the keys that are read. unread: row -> its keys that are not.
    """

    name: str
    sides: tuple[str, ...]
    numbers: tuple[str, ...]
    convert: Callable[[Any], list[Record]]
    known: Collection[str]
    unread: Callable[[Any], set[str]]


def kind_of_rows(rows: Sequence[tuple[str, Any]], config: InspectConfig) -> Kind:
    """The kind that the options name, or the first that one of the rows, at least one, each with its place, is of.

    UserError where none is, or where ratings are not named.
    """
    if config.kind or config.rating_columns:
        return _kind(config.kind or "ratings", config)
    if any(lists_ratings(row) for _, row in rows):
        return _kind("ratings", config)
    tests = {"pairs": _as_pair, "steps": _as_solutions(config), "demonstrations": as_demonstration, "prompts": as_prompt}
    name = next((name for name, convert in tests.items() if any(_is_one(row, convert) for _, row in rows)), None)
    if name is None:
        raise _unknown(rows)
    return _kind(name, config)


def _kind(name: str, config: InspectConfig) -> Kind:
    if name == "pairs":
        return Kind(name, SIDES, tuple(LABELS), _pairs, READ_KEYS, lambda row: unread(row, as_preference))
    if name == "demonstrations":
        return Kind(name, ("response",), (), _demonstrations, READ_KEYS, lambda row: unread(row, as_demonstration))
    if name == "prompts":
        return Kind(name, (), (), _prompts, READ_KEYS, lambda row: unread(row, as_prompt))
    if name == "steps":
        return Kind(name, (SOLUTION,), (STEPS, RIGHT), _solutions(config), STEP_KEYS, unread_steps)
    ratings = config.ratings()

    def rated(row: Any) -> list[Record]:
        return [Record(r["prompt"], (r["response"],), tuple(r[ATTRIBUTES])) for r in as_rated(row, ratings)]

    names = tuple(rating.name for rating in ratings)
    return Kind(name, ("response",), names, rated, {*READ_KEYS, ATTRIBUTES}, lambda row: unread_rated(row, ratings))


def _is_one(row: Any, convert: Callable[[Any], Any]) -> bool:
    try:
        convert(row)
    except BadRow:
        return False
    except LeftOut:
        return True
    return True


def _as_pair(row: Any) -> dict:
    return as_preference(row, as_is=True)


def _as_solutions(config: InspectConfig) -> Callable[[Any], list[dict]]:
    reading = StepReading(config.neutral, config.step_marker, config.first_step)
    return lambda row: as_steps(row, reading)


def _pairs(row: Any) -> list[Record]:
    found = as_preference(row)
    return [Record(found["prompt"], (found["chosen"], found["rejected"]), tuple(found[name] for name in LABELS))]


def _demonstrations(row: Any) -> list[Record]:
    found = as_demonstration(row)
    return [Record(found["prompt"], (found["response"],), ())]


def _prompts(row: Any) -> list[Record]:
    return [Record(as_prompt(row)["prompt"], (), ())]


def _solutions(config: InspectConfig) -> Callable[[Any], list[Record]]:
    convert = _as_solutions(config)

    def solutions(row: Any) -> list[Record]:
        return [
            Record(found["prompt"], (SEPARATOR.join(found["steps"]),), (len(found["steps"]), _mean(found["labels"])))
            for found in convert(row)
        ]

    return solutions


def _mean(labels: Sequence[float]) -> float:
    known = [label for label in labels if not math.isnan(label)]
    return sum(known) / len(known) if known else math.nan


def _unknown(rows: Sequence[tuple[str, Any]]) -> UserError:
    place, row = rows[0]
    there = f"has {', '.join(map(str, row))}" if isinstance(row, dict) else f"is {kind_of(row)}"
    return UserError(
        f"{place}: the row {there}; none of the first {len(rows)} rows is a preference, demonstration, prompt, rated response "
        "or solution with labelled steps",
        "name the columns that are meant with `columns`, or say with `kind` what the rows are",
    )
