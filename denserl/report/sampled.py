"""Sample responses as the page's browser of them reads them (samples.js), and what they say of rewards and lengths.

A row is a list, in the order of COLUMNS, since the page holds tens of thousands of them; prompts, by which rows are joined,
stand once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from denserl.pages.charts import DIGITS, Chart, Series
from denserl.pages.segments import limit_of
from denserl.report.reading import SAMPLES, Run, number, text
from denserl.terminal import visible

COLUMNS = ("run", "file", "step", "prompt", "id", "numbers", "ended", "response", "segments", "tokens")
# Of a response: as the file names them, and what the page calls them, with their units.
NUMBERS = {
    "reward": ("reward", ""),
    "true_reward": ("true reward", ""),
    "gold_reward": ("gold reward", ""),
    "kl": ("KL", "nats"),
    "length": ("length", "tokens"),
    "entropy": ("entropy", "nats a token"),
}
OF_SEGMENTS = {"paid": "paid", "raw": "raw score", "normalised": "normalised score", "change": "change of the score"}
OF_TOKENS = {"kl": "KL by token", "entropy": "entropy by token"}
MOST_TOKENS = 1_500_000  # whose numbers are on the page, of the last rows of each run
MOST_SEGMENTS = 2048  # of a response
MOST_POINTS = 2000  # of a run in the chart of rewards and lengths
BINS = 30
LAST_PART = 0.25  # of the steps, whose responses the charts are of


def browser_data(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page's browser of samples needs, JSON-able."""
    prompts: dict[str, int] = {}
    rows, left = [], MOST_TOKENS
    for place, run in enumerate(runs):
        share = left // (len(runs) - place)
        for file in run.samples:
            own = []
            for row in reversed(run.samples[file]):
                found, count = _row(row, place, file, prompts, share)
                share, left = share - count, left - count
                own.append(found)
            rows += reversed(own)
    return {
        "runs": [visible(run.name) for run in runs],
        "files": list(SAMPLES.values()),
        "prompts": [visible(prompt) for prompt in prompts],
        "columns": list(COLUMNS),
        "numbers": list(NUMBERS.values()),
        "ofSegments": list(OF_SEGMENTS.values()),
        "ofTokens": list(OF_TOKENS.values()),
        "limits": _limits(rows),
        "rows": rows,
    }


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Rewards of the last responses as a histogram, and against their lengths."""
    found = {run.name: rows for run in runs if (rows := last_rewards(run))}
    if not found:
        return []
    every = np.concatenate([[reward for reward, _ in rows] for rows in found.values()])
    edges = np.histogram_bin_edges(every, bins=BINS)
    middles = (edges[:-1] / 2 + edges[1:] / 2).tolist()
    bars = []
    for place, (name, rows) in enumerate(found.items()):
        counts = np.histogram([reward for reward, _ in rows], bins=edges)[0]
        bars.append(Series(name, middles, (counts / len(rows)).tolist(), "bars", colour=place))
    drawn = [Chart("Rewards of the last responses", "reward", "share of responses", bars, note=_counted(found))]
    known = {name: [row for row in rows if row[1] is not None] for name, rows in found.items()}
    points = []
    for place, (name, rows) in enumerate(known.items()):
        shown = rows[:: max(1, -(-len(rows) // MOST_POINTS))]
        lengths, rewards = [length for _, length in shown], [reward for reward, _ in shown]
        points += [Series(name, lengths, rewards, "points", colour=place)] if shown else []
    if points:
        drawn.append(Chart("Reward and length", "tokens", "reward", points, note=_correlations(known), table=_by_length(known)))
    return drawn


def last_rewards(run: Run) -> list[tuple[float, float | None]]:
    """Reward and length of the responses of the last quarter of a run's steps, of the held-out ones where there are any."""
    for file in SAMPLES:
        rows = [row for row in run.samples[file] if number(row.get("reward")) is not None]
        steps = [number(row.get("step")) or 0.0 for row in rows]
        if rows:
            start = max(steps) - LAST_PART * (max(steps) - min(steps))
            return [
                (number(row["reward"]), number(row.get("length")))
                for row, step in zip(rows, steps, strict=True)
                if step >= start
            ]
    return []


def _row(row: Mapping[str, Any], run: int, file: str, prompts: dict[str, int], tokens_left: int) -> tuple[list, int]:
    """A row in the order of COLUMNS, and how many tokens' numbers it has."""
    prompt, response = _prompt(row), text(row.get("response"))
    segments = [part for part in _list(row.get("segments"))[:MOST_SEGMENTS] if isinstance(part, dict)]
    cut: list[list[Any]] = [[visible(text(part.get("text"))), *_column([*map(part.get, OF_SEGMENTS)])] for part in segments]
    tokens = _tokens(row.get("tokens"), response) if tokens_left > 0 else None
    shown = visible(response)
    # Ends count the characters of the response as it is: of one that is shown otherwise they would be others.
    if tokens and shown != response:
        tokens = _moved(tokens, response)
    same = "".join(part[0] for part in cut) == shown
    numbers = [_rounded(row.get(name)) for name in NUMBERS]
    ended = row.get("ended") if isinstance(row.get("ended"), bool) else None
    step, place = _rounded(row.get("step")), list(SAMPLES).index(file)
    known = prompts.setdefault(prompt, len(prompts))
    found = [
        run,
        place,
        step,
        known,
        visible(text(row.get("prompt_id"))[:64]),
        numbers,
        ended,
        None if same else shown,
        cut,
        tokens,
    ]
    return found, len(tokens[0]) if tokens else 0


def _prompt(row: Mapping[str, Any]) -> str:
    """A prompt's messages under their roles, of a single one what it says; the rendered text where there are none."""
    messages = [message for message in _list(row.get("messages")) if isinstance(message, dict)]
    said = [(text(message.get("role")), text(message.get("content"))) for message in messages]
    parts = [content for _, content in said] if len(said) == 1 else [f"{role}: {content}" for role, content in said]
    return text("\n\n".join(parts) if parts else row.get("prompt")).strip()


def _tokens(value: Any, response: str) -> list[list] | None:
    """Ends, KL and entropy of tokens, where they are of one length and end one behind the other in the response."""
    if not isinstance(value, dict):
        return None
    ends, columns = _list(value.get("end")), [_list(value.get(name)) for name in OF_TOKENS]
    if set(map(type, ends)) != {int} or any(len(column) != len(ends) for column in columns):
        return None
    if ends[0] < 0 or ends != sorted(ends) or ends[-1] > len(response):
        return None
    return [ends, *map(_column, columns)]


def _moved(tokens: list[list], response: str) -> list[list]:
    """Where tokens end in the response as it is shown, with code points for control characters."""
    ends = [len(visible(response[:end])) for end in tokens[0]] if len(tokens[0]) * len(response) < 10**6 else None
    return [ends, *tokens[1:]] if ends else None


def _limits(rows: Sequence[Sequence[Any]]) -> dict[str, float]:
    """By what is shown, the number at the end of the colours."""

    def of_segments(place: int) -> Iterator[float]:
        return (part[1 + place] for row in rows for part in row[8] if part[1 + place] is not None)

    def of_tokens(place: int) -> Iterator[float]:
        return (value for row in rows if row[9] for value in row[9][1 + place] if value is not None)

    limits = {f"segment-{place}": limit_of(of_segments(place)) for place in range(len(OF_SEGMENTS))}
    limits |= {f"token-{place}": limit_of(of_tokens(place)) for place in range(len(OF_TOKENS))}
    return {name: float(f"{limit:.3g}") for name, limit in limits.items()}


def _counted(found: Mapping[str, Sequence]) -> str:
    counts = ", ".join(f"{len(rows)} of {name}" if len(found) > 1 else f"{len(rows)}" for name, rows in found.items())
    return f"Responses of the last quarter of the steps that stand among the samples: {counts}."


def _correlations(found: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    parts = []
    for name, rows in found.items():
        rewards, lengths = np.array(rows).T if rows else np.zeros((2, 0))
        if len(rows) > 2 and rewards.std() > 0 and lengths.std() > 0:
            shown = f"{float(np.corrcoef(rewards, lengths)[0, 1]):+.2f}"
            parts.append(f"{shown} ({name})" if len(found) > 1 else shown)
    return f"Correlation of reward and length: {', '.join(parts)}." if parts else ""


def _by_length(found: Mapping[str, Sequence[tuple[float, float]]]) -> list[list[str]]:
    """Mean rewards in five bins of length with about as many responses each."""
    rows = [["run", "tokens", "responses", "mean reward"]]
    for name, points in found.items():
        for part in np.array_split(np.array(sorted(points, key=lambda point: point[1])).reshape(-1, 2), 5):
            if len(part):
                span = f"{part[:, 1].min():g} to {part[:, 1].max():g}"
                rows.append([name, span, str(len(part)), f"{part[:, 0].mean():.{DIGITS}g}"])
    return rows


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _column(values: list) -> list[float | int | None]:
    """Numbers as the file has them, looked at all at once: a page has millions."""
    as_they_are = set(map(type, values)) == {float} and all(map(math.isfinite, values))
    return values if as_they_are else list(map(_given, values))


def _given(value: Any) -> float | int | None:
    """A number as the file has it, where runs have rounded it already; of millions of them rounding would take the longest."""
    return value if type(value) is float and math.isfinite(value) else _rounded(value)


def _rounded(value: Any) -> float | int | None:
    """A number with DIGITS digits; whole ones as such, which are shorter."""
    found = number(value)
    if found is None or not math.isfinite(found):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**53 else None
    rounded = float(f"{found:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
