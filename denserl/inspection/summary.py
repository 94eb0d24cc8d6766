"""The sections of what was found as the terminal shows them: aligned, without colours."""

import re
from collections.abc import Iterable, Sequence

from denserl.inspection.sections import Section, Table

_NUMBER = re.compile(r"[-+\d.,%e]*")


def format_sections(sections: Iterable[Section]) -> str:
    """Each section's title, sentences and table below one another, a blank line between sections."""
    return "\n\n".join("\n".join([section.title, *(f"  {line}" for line in _lines(section))]) for section in sections)


def _lines(section: Section) -> list[str]:
    return [*section.words, *_aligned(section.table)]


def _aligned(table: Table) -> list[str]:
    """Rows with columns of one width: numbers on the right, texts on the left."""
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    are_numbers = [all(_NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    return [_line(row, widths, are_numbers) for row in table]


def _line(row: Sequence[str], widths: Sequence[int], are_numbers: Sequence[bool]) -> str:
    cells = (cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, widths, are_numbers, strict=True))
    return "  ".join(cells).rstrip()
