"""The positional arguments of the scripts: what is allowed in each, and what those that stand for several things mean."""

import math
import re
from collections.abc import Collection

from denserl.errors import require
from denserl.levels import LEVELS, level_of


def reward_level(threshold: str) -> str:
    """The level of an entropy threshold C: token, bandit, or between them segment. UserError unless C >= 0."""
    value = _number(threshold)
    ends = f"{LEVELS['token']:g} is the token level, {LEVELS['bandit']:g} bandit"
    fix = f"{ends}, between them segments ({LEVELS['segment']:g} for phi3-instruct, 2 for Llama-3)"
    require(0 <= value < math.inf, f"C is {threshold!r}; it must be an entropy in nats, >= 0", fix)
    return level_of(value)


def one_of(argument: str, value: str, known: Collection[str]) -> None:
    """UserError unless an argument is one of those known."""
    require(value in known, f"{argument} is {value!r}; it must be one of: {', '.join(known)}", f"use {next(iter(known))}")


def positive(argument: str, given: dict[str, str]) -> str:
    """An argument that must be a number above zero, as it was written."""
    require(0 < _number(given[argument]) < math.inf, f"{argument} is {given[argument]!r}; it must be a number > 0", "e.g. 1")
    return given[argument]


def output_dir(experiment: str) -> str:
    """The output folder of an experiment. UserError for a name that would lead elsewhere."""
    plain = re.fullmatch(r"[^/\\]+", experiment) and experiment != "." and ".." not in experiment
    require(bool(plain), f"EXP is {experiment!r}; it names the output folder runs/EXP", "leave out slashes and '..'")
    return f"runs/{experiment}"


def translate_words(experiment: str, threshold: str) -> dict[str, object]:
    """The flags for words with a meaning in an experiment's name, as the paper's release has them.

    UserError for length_norm at C > 0.
    """

    def found(word: str) -> re.Match | None:
        return re.search(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", experiment)

    flags: dict[str, object] = {}
    if found("no_normalization"):
        flags["normalizer"] = "none"
    if found("length_norm"):
        require(
            reward_level(threshold) == "token",
            f"EXP {experiment!r} says length_norm and C is {threshold}; length_norm is defined for the token level only",
            "use C = 0, or take the word out of the name",
        )
        flags["length_norm"] = True
    if penalty := found(r"end_penalty_m(\d+)d(\d+)"):
        flags |= {"penalise_unfinished": True, "penalty": f"{penalty[1]}.{penalty[2]}"}
    if longest := found(r"len_thres_(\d+)"):
        flags["penalise_longer_than"] = longest[1]
    return flags


def _number(text: str) -> float:
    """The number that a text stands for; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
