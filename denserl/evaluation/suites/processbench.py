"""ProcessBench (arXiv 2412.06559): solutions in steps, and the first of them that is wrong."""

import re

from denserl.data.bad_rows import BadRow
from denserl.evaluation.solutions import NO_ERROR, Solution
from denserl.evaluation.suites.rows import PROMPT_KEYS, field, identity, messages

SIZES = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000, "omnimath": 1000}


def item(row: dict, part: str) -> Solution:
    """A row with `problem` (or `prompt`), `steps` and `label`, the place of the first wrong step from 0, -1 where none is.

    Its subset is what the row calls `subset`, or the split that its file is named after.
    """
    name = next((name for name in ("problem", *PROMPT_KEYS) if row.get(name) is not None), "problem")
    prompt, steps, label = messages(row.get(name), name), field(row, "steps", list), row.get("label")
    if not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise BadRow("'steps' is no list of texts that say something")
    if type(label) is not int or not NO_ERROR <= label < len(steps):
        expected = f"from 0 to {len(steps) - 1}, or {NO_ERROR} where all steps are right"
        raise BadRow(f"'label' is {label!r}; expected the number of the first wrong step, {expected}")
    subset = row["subset"] if isinstance(row.get("subset"), str) else split_of(part) or part
    right = row.get("final_answer_correct")
    return Solution(
        identity(row), subset, prompt, steps, label, identity(row, "generator"), right if isinstance(right, bool) else None
    )


def split_of(part: str) -> str | None:
    """The split that a file's name begins with, as in data/gsm8k-00000-of-00001; None where there is none."""
    first = re.split(r"[^a-z0-9]", part.rpartition("/")[2].lower())[0]
    return first if first in SIZES else None
