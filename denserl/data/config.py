"""Options of the data: where rows come from, and how pairs are cut and what is kept of them."""

import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from denserl.config import FIRST, INPUT, MODEL, RESUMABLE, Config, Only
from denserl.data.columns import parse_columns, parse_ratings
from denserl.data.published import published_ratings
from denserl.errors import UserError, require

_ONLY_STEPS = Only("where no steps are read", lambda c: c.reads_steps())


def is_saved(folder: Path) -> bool:
    """Whether a folder holds one data set as `Dataset.save_to_disk` writes it, which has no splits."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def has_splits(*sources: list[str] | None) -> bool:
    """Whether one of the sources has splits to choose from: a folder or a hub dataset, no file, no saved data set."""
    paths = [Path(source) for part in sources for source in part or []]
    return any(not path.is_file() and not is_saved(path) for path in paths)


@dataclass(kw_only=True)
class CacheConfig(Config):
    """Where what is made of the data is kept."""

    group: ClassVar[str] = "data"

    cache_dir: Annotated[str, RESUMABLE] = "~/.cache/denserl"
    """Where rows are kept between runs, as they were read and tokenised, and what the frozen language model says of them
    (docs/data.md)."""


@dataclass(kw_only=True)
class DataConfig(CacheConfig):
    """Where rows come from."""

    group: ClassVar[str] = "data"

    data: Annotated[list[str], INPUT, FIRST, RESUMABLE]
    """Files (.json, .jsonl, .csv, .tsv, each also .gz, .parquet, .txt), folders of such or of `save_to_disk`, or names of hub
    datasets (NAME or NAME:CONFIG)."""
    columns: str | None = None
    """Names of columns in the rows, e.g. prompt=question,chosen=response_j; KEY= leaves a key unread."""
    data_weights: list[float] | None = None
    """Blend several sources in these proportions; default: all rows of each."""
    split: Annotated[
        str,
        Only("where there are no splits: folders and hub datasets have some, files do not", lambda c: c.reads_splits()),
    ] = "train"
    """Split of hub datasets and folders."""
    every: Annotated[int, Ge(1)] = 1
    """Use only every so many-th row of each source, after rows that its data set leaves out."""
    limit: Annotated[int | None, Ge(1)] = None
    """Use at most this many rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is dropped and counted."""

    def source(self) -> dict[str, Any]:
        """The arguments that every loader of rows takes."""
        return {
            "sources": self.data,
            "weights": self.data_weights,
            "split": self.split,
            "limit": self.limit,
            "every": self.every,
            "on_bad_row": self.on_bad_row,
            "columns": parse_columns(self.columns),
            "cache_dir": self.cache_dir,
        }

    def source_beside(self) -> dict[str, Any]:
        """The arguments of a loader of rows that are read beside `data`, and may have their columns under other names."""
        columns = {"columns": parse_columns(self.columns), "columns_needed": False}
        return {"on_bad_row": self.on_bad_row, **columns, "cache_dir": self.cache_dir}

    def check(self) -> None:
        super().check()
        parse_columns(self.columns)

    def reads_splits(self) -> bool:
        """Whether something that is read has splits."""
        return has_splits(self.data)


@dataclass(kw_only=True)
class ScoredPairsConfig(CacheConfig):
    """How pairs are cut to length."""

    group: ClassVar[str] = "data"

    max_length: Annotated[int, Ge(1)] = 2048
    """Longest sequence, prompt and response together, in tokens."""
    max_prompt_length: Annotated[int, Ge(1)] = 1728
    """A sequence over max_length loses prompt tokens on the left down to this many, then response tokens on the right."""
    score_tokens: Annotated[int, Ge(1), RESUMABLE] = 16384
    """Padded tokens per batch where nothing is trained: reference entropies, scores and evaluation."""


AUGMENTED = Only("without `augment`", lambda c: c.augment)


@dataclass(kw_only=True)
class AugmentConfig(Config):
    """Pairs that are made of several (docs/preference_models.md)."""

    group: ClassVar[str] = "augmentation"

    augment: Annotated[
        Literal["rrm"] | None,
        Only("beside `augment`", lambda c: not c.augment, of=("soft_label_scale", "flip_frac")),
        Only("on labelled steps", lambda c: not c.reads_steps()),
    ] = None
    """rrm: train also on pairs across prompts, in which what wins whatever the prompt stands on both sides alike."""
    augment_ratio: Annotated[float, Interval(gt=0, le=1), AUGMENTED] = 1.0
    """Share of the 14 pairs that each pair makes with two others; without neutral ones there are 8."""
    augment_neutrals: bool = True
    """Make pairs of two responses to other prompts too, neither of which is the better one."""
    augment_group: Annotated[str | None, AUGMENTED] = None
    """Column whose texts say which pairs are of one kind, and not to be mixed; default: those of one prompt."""
    augment_filter: Annotated[str | None, MODEL, RESUMABLE, AUGMENTED] = None
    """Reward model, a folder or hub name, that has learned of the pairs alone: half of those that are made are drawn, and only
    those are kept that it does not know."""
    augment_threshold: Annotated[float, Interval(gt=0, le=1), Only("without `augment_filter`", lambda c: c.augment_filter)] = (
        0.2
    )
    """A pair is kept where its chance, as that model says it, is as far as this from what it should be, 1 or a half."""

    @abstractmethod
    def reads_steps(self) -> bool:
        """Whether the rows are of steps."""

    def check(self) -> None:
        super().check()
        found = "`augment_neutrals`, turned off, has no effect without `augment`"
        require(self.augment or self.augment_neutrals, found, "leave it out, or give `augment`")


@dataclass(kw_only=True)
class RatedDataConfig(Config):
    """How ratings of responses are read (docs/preference_models.md)."""

    group: ClassVar[str] = "ratings"

    rating_columns: Annotated[list[str] | None, Only("where no ratings are read", lambda c: c.reads_ratings())] = None
    """What ratings are called, in order, and where they stand: NAME, NAME=COLUMN or NAME=COLUMN:LOW..HIGH, the range that
    becomes 0..1, e.g. helpfulness=scores.helpfulness:1..5. Without COLUMN under NAME, in the row or in its `attributes`.
    Default: all those of published sets that are given by their hub names."""

    def reads_ratings(self) -> bool:
        """Whether the rows are of ratings."""
        return True

    def rating_words(self, sources: list[str]) -> list[str]:
        """`rating_columns`, or what the published sets among the sources have. UserError where neither is given."""
        words = self.rating_columns or published_ratings(sources)
        require(words, "it is not said which ratings are learned", "name them: `rating_columns` helpfulness verbosity")
        return words

    def rating_names(self, sources: list[str]) -> list[str]:
        """What the ratings are called, in their order."""
        return [rating.name for rating in parse_ratings(self.rating_words(sources))]

    def check(self) -> None:
        super().check()
        parse_ratings(self.rating_columns or [])


@dataclass(kw_only=True)
class StepDataConfig(Config):
    """How rows of solutions with labelled steps are read (docs/step_rows.md)."""

    group: ClassVar[str] = "data"

    neutral: Annotated[Literal["good", "bad", "drop"], _ONLY_STEPS] = "bad"
    """What the rating 0 says of a step: good, bad, or nothing (drop)."""
    step_marker: Annotated[str, _ONLY_STEPS] = "ки"
    """The text after each step, where question and steps are one text (Math-Shepherd)."""
    first_step: Annotated[str, _ONLY_STEPS] = "[Ss]tep 1:"
    """A regular expression, at whose first match the steps begin in a text that opens with the question."""

    def reads_steps(self) -> bool:
        """Whether the rows are of steps."""
        return True

    def check(self) -> None:
        super().check()
        require(self.step_marker, "`step_marker` is empty", "give the text that stands after each step")
        try:
            re.compile(self.first_step)
        except re.error as error:
            raise UserError(f"`first_step` {self.first_step!r} is no regular expression: {error}", "correct it") from error
