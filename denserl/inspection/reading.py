"""One pass over the rows: what is read, refused and counted, and the rows that are drawn to be looked at more closely."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from denserl import distributed
from denserl.data.bad_rows import BadRow, BadRows, LeftOut, finish
from denserl.data.columns import Columns, parse_columns
from denserl.data.readers import read_rows
from denserl.inspection.config import InspectConfig
from denserl.inspection.kinds import Kind, Record, kind_of_rows
from denserl.inspection.tally import Tally
from denserl.streams import Purpose, stream

LOOKED_AT = 100  # rows by which their kind is told
_SHOWN_AFTER = 5  # seconds of work, from which on its progress is shown


class Drawn(NamedTuple):
    """A record that was drawn, and where it stands."""

    place: str
    record: Record


class Read(NamedTuple):
    """What a pass over the rows found. sources: of each, its figures. drawn: in the order in which they were drawn."""

    kind: Kind
    tally: Tally
    sources: list[dict[str, Any]]
    drawn: list[Drawn]


def read(config: InspectConfig) -> Read:
    """Read all rows once; where a model is named, `token_rows` records of them are drawn.

    UserError as of `readers.read_rows`, for rows of no known kind, and for a source without a usable row.
    """
    names, kind, tally = parse_columns(config.columns), None, None
    draw = Draw(max(config.token_rows, config.sample) if config.model else 0, config.seed)
    sources = []
    for source in config.data:
        bad_rows = BadRows("skip")
        rows: Iterable = itertools.islice(read_rows(source, config.split, bad_rows), config.limit)
        if kind is None:
            first = list(itertools.islice(rows, LOOKED_AT))
            if not first:
                finish(bad_rows, source, 0)
            plain = Columns(names)
            kind = kind_of_rows([(place, plain(row)) for place, row in first], config)
            tally, renamed = Tally(kind), Columns(names, kind.known)
            rows = itertools.chain(first, rows)
        bar = tqdm(rows, source, unit=" rows", delay=_SHOWN_AFTER, disable=distributed.rank() > 0)
        sources.append({"source": source, **_count(bar, kind, renamed, bad_rows, tally, draw)})
        if not sources[-1]["used"]:
            finish(bad_rows, source, 0, sources[-1]["left_out"])
    renamed.check()
    return Read(kind, tally, sources, draw.taken())


def _count(
    rows: Iterable[tuple[str, Any]],
    kind: Kind,
    renamed: Columns,
    bad_rows: BadRows,
    tally: Tally,
    draw: "Draw",
) -> dict[str, Any]:
    """Count the rows of a source; returns what became of them, and why."""
    left_out: Counter[str] = Counter()
    unread: set[str] = set()
    used, before = 0, tally.records
    for place, row in rows:
        row = renamed(row)
        try:
            records = kind.convert(row)
        except BadRow as error:
            bad_rows.add(place, str(error), error.fix)
        except LeftOut as reason:
            left_out[str(reason)] += 1
        else:
            used += 1
            unread |= kind.unread(row)
            for record in records:
                tally.add(record)
                draw.offer(place, record)
    return {
        "read": used + bad_rows.total + left_out.total(),
        "used": used,
        "refused": bad_rows.total,
        "left_out": left_out.total(),
        "records": tally.records - before,
        "not_read": sorted(unread),
        "reasons": reasons_of(bad_rows),
        "left_out_reasons": [{"reason": reason, "count": count} for reason, count in left_out.most_common()],
    }


def reasons_of(bad_rows: BadRows) -> list[dict[str, Any]]:
    """Why rows are refused, how many, and the places of the first ones; the commonest reasons first."""
    return [
        {"reason": reason, "count": count, "places": bad_rows.places[reason]}
        for reason, count in bad_rows.reasons.most_common()
    ]


class Draw:
    """So many records of a stream of any length, each subset as likely: those of the least of random numbers.

    However many are drawn, fewer are the first of them.
    """

    def __init__(self, most: int, seed: int):
        self.most = most
        self._random = np.random.default_rng(stream(seed, Purpose.INSPECTION))
        self._kept: list[tuple[float, int, Drawn]] = []  # a heap, the greatest number (as a negative one) on top
        self._offered = 0

    def offer(self, place: str, record: Record) -> None:
        if not self.most:
            return
        number = -self._random.random()
        self._offered += 1
        if len(self._kept) < self.most:
            heapq.heappush(self._kept, (number, self._offered, Drawn(place, record)))
        elif number > self._kept[0][0]:
            heapq.heapreplace(self._kept, (number, self._offered, Drawn(place, record)))

    def taken(self) -> list[Drawn]:
        """The records that are drawn, in that order."""
        return [drawn for *_, drawn in sorted(self._kept, key=lambda kept: -kept[0])]
