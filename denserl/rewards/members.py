"""What is known of several reward models that one command has trained: their folders, seeds, and what each has not seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge
from pydantic import BaseModel, ValidationError

from denserl.data.folds import folds_of
from denserl.data.responses import Messages
from denserl.errors import UserError, require

MEMBERS_FILE = "members.json"


def member_folder(folder: Path, number: int) -> Path:
    """Where a member is that was trained into the folder."""
    return folder / f"member-{number}"


class Members(NamedTuple):
    """Reward models that were trained by one command, on the same pairs or on all folds of them but one each."""

    folders: list[Path]
    left_out: list[int | None]  # the fold that each has not trained on
    folds: int | None  # into how many prompts are parted
    fold_seed: int

    def may_score(self, prompts: Sequence[Messages]) -> np.ndarray:
        """(M, N) bool: which of the M members have not trained on pairs of each prompt; without folds all are taken."""
        if self.folds is None:
            return np.ones((len(self.folders), len(prompts)), dtype=bool)
        return np.array(self.left_out)[:, None] == folds_of(prompts, self.folds, self.fold_seed)


class _Member(BaseModel):
    seed: int
    left_out: int | None


class _Written(BaseModel):
    """What is read of the file, which holds more."""

    asked: Annotated[int, Ge(2)]
    folds: Annotated[int, Ge(2)] | None
    fold_seed: int
    members: list[_Member]


def read_members(folder: Path | str) -> Members | None:
    """The members that were trained into a folder; None for one that has no members.json.

    Raises:
        UserError: not all of them are trained, or the file is damaged.
    """
    path = Path(folder) / MEMBERS_FILE
    if not path.is_file():
        return None
    try:
        found = _Written.model_validate_json(path.read_bytes())
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", "train the members again") from error
    left_out, many = [one.left_out for one in found.members], len(found.members)
    fix = "go on with the command that trained them, with `resume`"
    require(many == found.asked, f"{path}: {many} of {found.asked} members are trained", fix)
    sound = all(fold is None if found.folds is None else fold in range(found.folds) for fold in left_out)
    require(sound, f"{path}: what each member has left out does not go with folds {found.folds}", "train the members again")
    return Members([member_folder(Path(folder), number) for number in range(many)], left_out, found.folds, found.fold_seed)
