"""AlpacaEval's own file for win rates at equal lengths: how hard instructions are, and the baseline made long and short."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from denserl.errors import UserError, require
from denserl.evaluation.policies.answers import Id, Question
from denserl.evaluation.policies.length_control import Gamed

GAMED_FILE = "df_gamed.csv"
_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty")


class LengthFiles(NamedTuple):
    """gamed: judgements of the gamed baseline. difficulties: of each question."""

    gamed: Gamed
    difficulties: dict[Id, float]

    def difficulty(self, ids: Sequence[Id]) -> np.ndarray:
        """Of questions, (n,)."""
        return np.array([self.difficulties[id] for id in ids])


def read_length_files(folder: str, questions: Sequence[Question]) -> LengthFiles:
    """Read the file of the folder, whose rows have the number of a question among all.

    Raises:
        UserError: it is not there, or no such table, or of another number of questions.
    """
    path = Path(folder) / GAMED_FILE
    fix = f"give the folder with {GAMED_FILE} of the hub's tatsu-lab/alpaca_eval"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [[float(row[name]) for name in _COLUMNS] for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"`lc_files`: {path} cannot be read as a table ({type(error).__name__}: {error})", fix) from error
    require(rows, f"`lc_files`: {path} has no rows", fix)
    preference, number, length, difficulty = np.array(rows).T
    known = dict(zip(number.astype(int).tolist(), difficulty.tolist(), strict=True))
    found = f"`lc_files`: {path} is of {len(known)} questions, and there are {len(questions)}"
    require(known.keys() == set(range(len(questions))), found, "give all questions with `questions`, in the published order")
    difficulties = {question.id: known[place] for place, question in enumerate(questions)}
    return LengthFiles(Gamed(length, difficulty, preference), difficulties)
