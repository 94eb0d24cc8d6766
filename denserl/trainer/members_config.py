"""Options of several reward models that one command trains on the same pairs, in other orders and from other heads."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from denserl.config import Config, Only
from denserl.errors import require

_OF_TWO = Only("without `input` pairs or pair", lambda c: c.input in ("pairs", "pair"))


@dataclass(kw_only=True)
class MembersConfig(Config):
    """Members of an ensemble, and what each of them does not see."""

    group: ClassVar[str] = "members"

    members: Annotated[
        int | None,
        Ge(2),
        _OF_TWO,
        Only("beside `unlabelled_data`", lambda c: not c.unlabelled_data),
        Only("with `members`, each of which denserl push sends", lambda c: not c.members, of=("push_to_hub",)),
    ] = None
    """Train so many models in one command: seeds `seed`, seed + 1, ..., each in a folder of its own, member-0, member-1, ..."""
    strength_folds: Annotated[
        int | None,
        Ge(2),
        Only("without `members` or `leave_out_fold`", lambda c: c.members or c.leave_out_fold is not None),
        Only("beside `augment`, which puts the responses of one prompt to others", lambda c: not c.augment),
        Only("beside `pseudo_data`", lambda c: not c.pseudo_data),
    ] = None
    """Part the prompts into so many folds, and let member k leave out fold k modulo them, so that each pair can be judged by
    models that have not seen it (docs/noisy_labels.md)."""
    leave_out_fold: Annotated[int | None, Ge(0)] = None
    """One model: train on all folds but this one, the first being 0."""
    data_seed: Annotated[int | None, Interval(ge=0, le=2**32 - 1), _OF_TWO] = None
    """Seed of what is drawn of the data: held-out pairs, blended sources, labels that are turned round, augmentation, folds.
    Default: `seed`; all members have that of the first."""

    def check(self) -> None:
        super().check()
        folds, members, fold = self.strength_folds, self.members, self.leave_out_fold
        if folds and members:
            found = f"`members` {members} is no multiple of `strength_folds` {folds}: pairs would be judged by more or fewer"
            require(members % folds == 0, found, f"let it be {folds}, or a multiple of it")
        if fold is not None:
            require(not members, "`leave_out_fold` beside `members`, of which each leaves one out", "leave one of both out")
            require(folds, f"`leave_out_fold` {fold} without `strength_folds`", "say how many folds there are")
            require(fold < folds, f"`leave_out_fold` {fold} of `strength_folds` {folds}", f"let it be 0 to {folds - 1}")
