"""Options of the report."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from denserl.config import FIRST, Config, Only

WATCHED = Only("without `watch`", lambda c: c.watch)


@dataclass(kw_only=True)
class ReportConfig(Config):
    """Show runs, alone or compared, as one page that opens offline."""

    group: ClassVar[str] = "report"

    runs: list[str]
    html: Annotated[str | None, FIRST, Only("with `watch`, which writes no file", lambda c: not c.watch)] = None
    """File to write; default: report.html in the first folder."""
    seeds: Annotated[Literal["apart", "mean"], FIRST] = "apart"
    """Runs that differ in seed and paths alone: each by itself (apart), or their mean with its 95 % t interval (mean)."""
    samples: Annotated[int, Ge(0), FIRST] = 10_000
    """Sample responses of each file of a run that are on the page at most: those of its first step, and its last ones."""
    watch: Annotated[bool, FIRST] = False
    """Serve the page on this machine alone, and bring it up to date while a training goes on; Ctrl-C ends it."""
    port: Annotated[int, Interval(ge=0, le=65535), FIRST, WATCHED] = 8765
    """Port of 127.0.0.1 at which the page is served; 0 for a free one."""
