"""Published preference sets by their name on the hub: the configuration and splits they keep pairs in, and how many there are.

How rows are read is in schemas.py; what is here holds for these sets alone.
"""

from typing import NamedTuple

from denserl.errors import UserError


class Published(NamedTuple):
    """A preference set on the hub.

    config: the configuration that holds all rows, or None where there is only one.
    splits: the set's own name of a split, where it differs from `train` and `test`.
    pairs: split (the set's own name) -> fewest and most pairs it is known to give, those of equal ratings left out.
    """

    config: str | None
    splits: dict[str, str]
    pairs: dict[str, tuple[int, int]]


PUBLISHED = {
    # Follows from the published step counts of a pass over every 20th pair; the card counts 893 thousand with equal ratings.
    "llm-blender/Unified-Feedback": Published("all", {"test": "val"}, {"train": (848_600, 849_000)}),
    "hendrydong/preference_700K": Published(None, {}, {"train": (700_000, 700_000)}),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": Published(None, {}, {"train": (76_500, 77_500)}),
    "argilla/ultrafeedback-binarized-preferences-cleaned": Published(None, {}, {"train": (60_917, 60_917)}),
    "HuggingFaceH4/ultrafeedback_binarized": Published(
        None,
        {"train": "train_prefs", "test": "test_prefs"},
        {"train_prefs": (61_135, 61_135), "test_prefs": (2_000, 2_000)},
    ),
}


def hub_source(source: str, split: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of a hub data set given as NAME or NAME:CONFIG, those of a published set filled in."""
    name, _, config = source.partition(":")
    known = PUBLISHED.get(name)
    if known is None:
        return name, config or None, split
    return name, config or known.config, known.splits.get(split, split)


def check_pairs(source: str, split: str, pairs: int) -> None:
    """UserError when a published set does not give the pairs it is known to have; any other source passes."""
    name, config, split = hub_source(source, split)
    known = PUBLISHED.get(name)
    if known is None or config != known.config or split not in known.pairs:
        return
    fewest, most = known.pairs[split]
    if not fewest <= pairs <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise UserError(
            f"{source}[{split}] gives {pairs} pairs; the published set has {expected}",
            "fetch it again; a part of it can be read from files (`data` FOLDER), or with `limit`",
        )
