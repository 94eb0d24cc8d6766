"""Published sets by their name on the hub: configurations and splits, how many rows there are, and what their ratings are.

How rows are read is in schemas.py and rated_rows.py; what is here holds for these sets alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from denserl.data.columns import Rating
from denserl.errors import UserError

Counts = dict[str, tuple[int, int]]


def _rated(prefix: str, names: Sequence[str], low: float, high: float, column: str = "{}") -> tuple[Rating, ...]:
    return tuple(Rating(f"{prefix}-{name}", column.format(name), (low, high)) for name in names)


# The ratings that ArmoRM is trained on, in its names and order (arXiv 2406.12845), by the shape of rows that hold them.
# HelpSteer's whole numbers from 0 to 4 are (x + .5) / 5 there.
HELPSTEER = _rated("helpsteer", ("helpfulness", "correctness", "coherence", "complexity", "verbosity"), -0.5, 4.5)
_ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
ULTRAFEEDBACK = (
    *_rated("ultrafeedback", ["overall_score"], 1, 10),
    *_rated("ultrafeedback", _ASPECTS, 1, 5, "annotations.{}.Rating"),
)
BEAVERTAILS = _rated("beavertails", ["is_safe"], 0, 1)
PROMETHEUS = _rated("prometheus", ["score"], 1, 5, "orig_score")
OVERALL_QUALITY = _rated("argilla", ["overall_quality"], 1, 5, "rating")
JUDGE_LM = _rated("argilla", ["judge_lm"], 1, 10, "rating")
CODE = _rated("code", ("complexity", "style", "explanation", "instruction-following", "readability"), 1, 5)
ARMO = (*HELPSTEER, *ULTRAFEEDBACK, *BEAVERTAILS, *PROMETHEUS, *OVERALL_QUALITY, *JUDGE_LM, *CODE)


class Published(NamedTuple):
    """A set on the hub, of preferences or of ratings, or both.

    config: the configuration that holds all rows, or None where there is only one.
    splits: the set's own name of a split, where it differs from `train` and `test`.
    pairs: split (the set's own name) -> fewest and most pairs it is known to give, those of equal ratings left out.
    ratings: those that its responses have. responses: as pairs, rated responses.
    """

    config: str | None
    splits: dict[str, str]
    pairs: Counts
    ratings: tuple[Rating, ...] = ()
    responses: Counts = {}


def _exactly(**counts: int) -> Counts:
    return {split: (count, count) for split, count in counts.items()}


_VALIDATION = {"test": "validation"}


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
    # Both responses in one text; some 700 thousand.
    "RLHFlow/pair_preference_model_dataset": Published(None, {}, {}),
    "RLHFlow/pair_data_v2_80K_wsafety": Published(None, {}, {}),
    "RLHFlow/ArmoRM-Multi-Objective-Data-v0.1": Published(None, {}, {}, ARMO),
    "nvidia/HelpSteer": Published(None, _VALIDATION, {}, HELPSTEER, _exactly(train=35_331, validation=1_789)),
    "nvidia/HelpSteer2": Published(None, _VALIDATION, {}, HELPSTEER, _exactly(train=20_324, validation=1_038)),
    # 64 thousand prompts with four responses each.
    "openbmb/UltraFeedback": Published(None, {}, {}, ULTRAFEEDBACK),
    "coseal/CodeUltraFeedback": Published(None, {}, {}, CODE),
    "PKU-Alignment/BeaverTails": Published(
        None,
        {"train": "330k_train", "test": "330k_test"},
        {},
        BEAVERTAILS,
        {
            name: (count, count)
            for name, count in zip(("330k_train", "330k_test", "30k_train", "30k_test"), (300_567, 33_396, 27_186, 3_021))
        },
    ),
    "prometheus-eval/Feedback-Collection": Published(None, {}, {}, PROMETHEUS),
    "argilla/distilabel-capybara-dpo-7k-binarized": Published(
        None, {}, _exactly(train=7_563), OVERALL_QUALITY, _exactly(train=15_126)
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": Published(None, {}, {}, JUDGE_LM),
}


def hub_source(source: str, split: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of a hub data set given as NAME or NAME:CONFIG, those of a published set filled in."""
    name, _, config = source.partition(":")
    known = PUBLISHED.get(name)
    if known is None:
        return name, config or None, split
    return name, config or known.config, known.splits.get(split, split)


def published_ratings(sources: Sequence[str]) -> list[str]:
    """The names of all ratings that published sets among the sources have, in their order."""
    known = [PUBLISHED.get(source.partition(":")[0]) for source in sources]
    return list(dict.fromkeys(rating.name for one in known if one is not None for rating in one.ratings))


def check_pairs(source: str, split: str, pairs: int) -> None:
    """UserError when a published set does not give the pairs it is known to have; any other source passes."""
    _check_count(source, split, pairs, "pairs")


def check_responses(source: str, split: str, responses: int) -> None:
    """The same of rated responses."""
    _check_count(source, split, responses, "responses")


def _check_count(source: str, split: str, count: int, of: str) -> None:
    name, config, split = hub_source(source, split)
    known = PUBLISHED.get(name)
    counts: Counts = getattr(known, of, {})
    if known is None or config != known.config or split not in counts:
        return
    fewest, most = counts[split]
    if not fewest <= count <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise UserError(
            f"{source}[{split}] gives {count} {of}; the published set has {expected}",
            "fetch it again; a part of it can be read from files (`data` FOLDER), or with `limit`",
        )
