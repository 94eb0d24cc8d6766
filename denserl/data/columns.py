"""The names that columns have in a user's rows, where they are not those that are read; and the columns of ratings."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from denserl.errors import UserError, require


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,chosen=response_j` as read key -> name in the rows; an empty name leaves the key unread."""
    names: dict[str, str] = {}
    for part in text.split(",") if text else []:
        key, sign, name = (word.strip() for word in part.partition("="))
        require(
            key and sign and key not in names,
            f"`columns` has {part.strip()!r}" + (" for a key that it names before" if key in names else ""),
            "write it as prompt=question,chosen=response_j: what is read, and its name in the rows",
        )
        names[key] = name
    return names


_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_RATING = re.compile(rf"(?P<name>[^=:\s]+)(=(?P<column>[^:\s]+))?(:(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER}))?")


class Rating(NamedTuple):
    """A rating of responses: what it is called, where it stands, and the range that becomes 0 to 1; None: it stays as it is.

    column: a key, or several with points between them, of objects in objects; None: the name.
    """

    name: str
    column: str | None = None
    range: tuple[float, float] | None = None

    def scaled(self, value: float) -> float:
        """The number on the scale that is learned."""
        if self.range is None:
            return value
        low, high = self.range
        return (value - low) / (high - low)


def parse_ratings(words: Sequence[str]) -> list[Rating]:
    """Each word, NAME, NAME=COLUMN or either with :LOW..HIGH behind it, as a rating. UserError for others, and names twice."""
    found: dict[str, Rating] = {}
    for word in words:
        parts = _RATING.fullmatch(word)
        written = "write it as NAME, NAME=COLUMN or NAME=COLUMN:LOW..HIGH, as in helpfulness=scores.helpfulness:1..5"
        require(parts is not None and parts["name"] not in found, f"`rating_columns` has {word!r}", written)
        low, high = parts["low"], parts["high"]
        require(low is None or float(low) != float(high), f"`rating_columns` has {word!r}, a range of one number", written)
        found[parts["name"]] = Rating(parts["name"], parts["column"], None if low is None else (float(low), float(high)))
    return list(found.values())


class Columns:
    """Rows with their columns under the names that are read.

    Args:
        names: read key -> name in the rows; a row without that name stays as it is. known: the keys that are read; None: any.
    """

    def __init__(self, names: Mapping[str, str], known: Collection[str] | None = None):
        for key, name in names.items():
            require(
                known is None or not name or key in known,
                f"`columns` sets {key!r}, which is not read",
                "put what is read first, then its name in the rows, as in prompt=question",
            )
        self.names = names
        self._unseen = {name or key for key, name in names.items()}
        self._there: list[str] = []  # keys of a row

    def __call__(self, row: Any) -> Any:
        if not self.names or not isinstance(row, dict):
            return row
        self._unseen -= row.keys()
        self._there = self._there or list(map(str, row))
        taken = {*self.names.values(), *(key for key, name in self.names.items() if not name)}
        found = {key: row[name] for key, name in self.names.items() if name in row}
        return {key: value for key, value in row.items() if key not in taken} | found

    def check(self) -> None:
        """UserError for a name that no row had, after they were read."""
        if self._unseen and self._there:
            unseen, there = ", ".join(sorted(self._unseen)), ", ".join(self._there)
            raise UserError(f"`columns` names {unseen}, which no row has; the rows have {there}", "correct `columns`")
