"""Options of reward models that label pairs for themselves, in rounds."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Le

from denserl.config import INPUT, MODEL, RESUMABLE, Config, Only
from denserl.rewards.pseudo_labels import Balance

ROUNDS = "rounds.json"  # tells of each round, in the output folder

_WITHOUT_POOL = Only("without `unlabelled_data`", lambda c: c.unlabelled_data)
_OF_TWO = Only("without `input` pairs or pair", lambda c: c.input in ("pairs", "pair"))
_OWN_LABELS = Only(
    "beside pairs that a model labels",
    lambda c: not (c.unlabelled_data or c.pseudo_data),
    of=("flip_frac", "soft_label_scale"),
)
_IN_ROUNDS = Only("beside `unlabelled_data`, whose rounds set it", lambda c: not c.unlabelled_data)

_WHOLE = Only(
    "with `lora_rank`, `disentangle` or `head_type` gated, of which a trained model does not hold all",
    lambda c: not (c.lora_rank or c.disentangle or c.head_type == "gated"),
)


@dataclass(kw_only=True)
class SelfTrainingConfig(Config):
    """What is learned of pairs that a model has labelled."""

    group: ClassVar[str] = "self-training"

    unlabelled_data: Annotated[list[str] | None, INPUT, RESUMABLE, _OF_TWO, _OWN_LABELS] = None
    """Pairs that the model labels for itself, in rounds: rows of `prompt` and two `responses`, or preferences whose labels are
    not looked at."""
    rounds: Annotated[int, Ge(1), RESUMABLE, _WITHOUT_POOL] = 2
    """Rounds of labelling and training anew, at most, after the first training, which is of `data` alone; they end when the
    held-out loss no longer falls."""
    pseudo_confidence: Annotated[
        float,
        Interval(ge=0.5, lt=1),
        _WITHOUT_POOL,
        Only("beside `pseudo_share`", lambda c: not c.pseudo_share),
    ] = 0.8
    """Learn from pairs whose likelier winner has a chance above this."""
    pseudo_share: Annotated[float | None, Gt(0), Le(1), _WITHOUT_POOL] = None
    """Learn from this share of each source's pairs, the surest, in place of those above pseudo_confidence."""
    pseudo_labels: Annotated[Literal["hard", "soft"], _WITHOUT_POOL] = "hard"
    """Learn the likelier winner as sure (hard), or with its chance (soft)."""
    pseudo_balance: Annotated[Balance, _WITHOUT_POOL] = "none"
    """length: keep, the surest first, as many pairs that the longer response wins as that the shorter one does."""
    round_start: Annotated[
        Literal["base", "last"],
        _WITHOUT_POOL,
        _WHOLE,
    ] = "base"
    """Begin each round as the first one, from `model`, or where the round before ended (last)."""
    pseudo_data: Annotated[list[str] | None, INPUT, RESUMABLE, _OF_TWO, _IN_ROUNDS] = None
    """Files of pairs that a model has labelled, as rounds write them, learned from whole beside `data`."""
    start_from: Annotated[
        str | None,
        MODEL,
        RESUMABLE,
        _IN_ROUNDS,
        _WHOLE,
    ] = None
    """Trained reward model to go on from, a folder or hub name, with its head; `model` stays the one that cuts responses."""
