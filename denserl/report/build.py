"""From folders to their page."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from denserl.errors import UserError
from denserl.files import write_flushed
from denserl.report.demo import lead_of_folder
from denserl.report.page import format_tables, make_page
from denserl.report.reading import is_demo, read_runs

PAGE = "report.html"


class Report(NamedTuple):
    """A page of runs, and what is said of it at the terminal."""

    html: str
    text: str
    kinds: list[str]  # the command of each run


def report_of(folders: Sequence[str], samples: int = 10_000, seeds: str = "apart", watched: bool = False) -> Report:
    """The page of the runs in these folders; of one demo's folder with its own table.

    Args:
        samples: rows of each file of samples. seeds: `apart`, or their `mean`. watched: whether the page asks for what is new.

    Raises:
        UserError: a folder is not there, or holds no run.
    """
    with _uncollected():
        runs = read_runs(folders, samples)
        lead = lead_of_folder(Path(folders[0])) if len(folders) == 1 and is_demo(Path(folders[0])) else {}
        html = make_page(runs, seeds, lead, watched)
    return Report(html, format_tables(runs, seeds), [run.kind for run in runs])


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which goes over millions of numbers again and again, none of them in cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def write_report(target: Path, report: Report) -> None:
    """The page as a file, in a folder that is made where it is not there. UserError where it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(target, report.html)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}", "give a file that can be written with `html`") from error
