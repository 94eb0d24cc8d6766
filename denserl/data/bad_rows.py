"""Collects rows that cannot be used: where they are and why, and whether they stop the run or are dropped and counted."""

import logging
from collections import Counter

from denserl.errors import UserError
from denserl.terminal import visible

logger = logging.getLogger(__name__)

_LISTED = 10  # bad rows, and reasons, that a message lists
_PLACES = 3  # of the rows that are bad for one reason, that are kept
_LONGEST_REASON = 300  # characters; a reason may quote the row


class BadRow(ValueError):
    """Why a row of the data cannot be used. fix: what mends it where all rows are like that; empty: they must be corrected."""

    def __init__(self, reason: str, fix: str = ""):
        super().__init__(reason)
        self.fix = fix


class LeftOut(Exception):
    """Why a valid row is not used."""


class BadRows:
    """Collects bad rows. Policy "stop": `check` raises UserError with the first few; "skip": they are only counted."""

    def __init__(self, policy: str = "stop"):
        if policy not in ("stop", "skip"):
            raise UserError(f"`on_bad_row` is {policy!r}", "use 'stop' or 'skip'")
        self.policy = policy
        self.first: list[tuple[str, str]] = []  # place and reason
        self.reasons: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}  # the first ones of each reason
        self.fix = ""  # of the first that has one

    def add(self, place: str, reason: str, fix: str = "") -> None:
        reason = visible(reason[:_LONGEST_REASON], kept="") + ("..." if len(reason) > _LONGEST_REASON else "")
        if len(self.first) < _LISTED:
            self.first.append((place, reason))
        self.fix = self.fix or fix
        self.reasons[reason] += 1
        if self.reasons[reason] <= _PLACES:
            self.places.setdefault(reason, []).append(place)

    def take(self, later: "BadRows") -> None:
        """Those of rows that come after these."""
        self.first = [*self.first, *later.first][:_LISTED]
        self.fix = self.fix or later.fix
        self.reasons.update(later.reasons)
        for reason, places in later.places.items():
            self.places[reason] = [*self.places.get(reason, []), *places][:_PLACES]

    @property
    def total(self) -> int:
        return sum(self.reasons.values())

    def summary(self) -> str:
        """The number of bad rows, and the most frequent reasons."""
        counts = ", ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(_LISTED))
        counts += f", and {len(self.reasons) - _LISTED} other reasons" if len(self.reasons) > _LISTED else ""
        return f"{self.total} bad rows" + (f": {counts}" if counts else "")

    def check(self, good: int | None = None) -> None:
        """UserError with the first few, their places and reasons, and the count, if any is bad and the policy stop.

        good: how many rows are not bad, where that is known. Where none is, and all are bad for one reason, that is said once,
        under either policy: nothing would be left by skipping them.
        """
        if good == 0 and len(self.reasons) == 1:
            (place, reason), count = self.first[0], self.total
            shared = f", and so it is with all {count} rows" if count > 1 else ""
            raise UserError(f"{place}: {reason}{shared}", self.fix or "correct the data, or choose another")
        if self.policy == "stop" and self.total:
            listed = "\n".join(f"  {place}: {reason}" for place, reason in self.first)
            shown = f", the first {len(self.first)}" if self.total > len(self.first) else ""
            raise UserError(
                f"{self.total} bad row{'s' if self.total > 1 else ''}{shown}:\n{listed}",
                "correct them"
                + (", or drop and count them with `on_bad_row` skip" if good != 0 else "")
                + (f"; or {self.fix}" if self.fix else ""),
            )


def finish(bad_rows: BadRows, source: str, kept: int, left_out: int = 0) -> None:
    """Stop on bad rows if the policy says so, log what was dropped, and refuse a source without usable rows."""
    bad_rows.check(kept + left_out)
    if bad_rows.total:
        logger.warning("%s: %d rows kept, %s", source, kept, bad_rows.summary())
    if not kept:
        left = f"{left_out} rows are left out" if left_out else "it is empty"
        found = bad_rows.summary() if bad_rows.total else left
        raise UserError(f"{source}: no usable row ({found})", "check the source and its split")
