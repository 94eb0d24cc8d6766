"""Options of what is done with the strength of pairs, as several reward models have measured it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval

from denserl.config import MODEL, RESUMABLE, Config, Only
from denserl.errors import require
from denserl.rewards.strength_uses import FLIPS, MARGINS, SOFTENS, Use, check_part

_OF_STRENGTH = Only("without `strength_from`", lambda c: c.strength_from)


@dataclass(kw_only=True)
class StrengthConfig(Config):
    """What is done with pairs by how sure several reward models are of them (docs/noisy_labels.md)."""

    group: ClassVar[str] = "preference strength"

    strength_from: Annotated[
        list[str] | None,
        MODEL,
        RESUMABLE,
        Only("without `input` pairs or pair", lambda c: c.input in ("pairs", "pair")),
        Only("beside pairs that a model labels", lambda c: not (c.unlabelled_data or c.pseudo_data)),
    ] = None
    """Strength of the pairs of `data`: a file of denserl strength, or its folder; or reward models, folders or hub names, that
    measure it first (a folder of `members` stands for all of them)."""
    strength_use: Annotated[
        Use | None,
        _OF_STRENGTH,
        Only("beside `strength_use`", lambda c: not c.strength_use, of=("use_margin", "soft_label_scale")),
    ] = None
    """flip: turn round the labels of the low part; margin: take the mean difference for the pair's margin; soft: let labels of
    the low part be right with a chance; votes: learn the share of votes, sigmoid: the chance that the mean difference makes."""
    strength_low: Annotated[
        str,
        Only(f"without `strength_use` {', '.join((*FLIPS, *SOFTENS))}", lambda c: c.strength_use in (*FLIPS, *SOFTENS)),
    ] = "0.2"
    """The part whose labels are taken for wrong: the share with the lowest mean differences; two shares, such as 0.1-0.2 or
    0.9-1; negative: those below 0, or positive, the others; or incorrect, ambiguous, normal, strong."""
    strength_scale: Annotated[
        float,
        Gt(0),
        Only(f"without `strength_use` {', '.join((*MARGINS, 'sigmoid'))}", lambda c: c.strength_use in (*MARGINS, "sigmoid")),
    ] = 1.0
    """What mean differences are multiplied by, as margins or inside the sigmoid."""
    strength_clip: Annotated[
        float | None,
        Gt(0),
        Only(f"without `strength_use` {', '.join(MARGINS)}", lambda c: c.strength_use in MARGINS),
    ] = None
    """Hold margins within this, of either sign."""
    strength_smoothing: Annotated[
        float,
        Interval(ge=0, lt=0.5),
        Only(f"without `strength_use` {', '.join(SOFTENS)}", lambda c: c.strength_use in SOFTENS),
    ] = 0.1
    """Chance that a label of the low part is wrong, where labels are softened."""
    strength_keep: Annotated[list[str] | None, _OF_STRENGTH] = None
    """Train on these parts of the pairs alone, each named as of `strength_low`; 0.2-1 leaves out the lowest fifth."""

    def check(self) -> None:
        super().check()
        idle = "`strength_from` has no effect without `strength_use` or `strength_keep`"
        require(not self.strength_from or self.strength_use or self.strength_keep, idle, "say what is done with strength")
        for option, parts in (("strength_low", [self.strength_low]), ("strength_keep", self.strength_keep or [])):
            for part in parts:
                check_part(option, part)
