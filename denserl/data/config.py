"""Options of the data: where rows come from, and how pairs are cut and what is kept of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from denserl.config import FIRST, RESUMABLE, Config, Only


def has_splits(*sources: list[str] | None) -> bool:
    """Whether one of the sources has splits to choose from: a folder or a hub dataset, not a file."""
    return any(not Path(source).is_file() for part in sources for source in part or [])


@dataclass(kw_only=True)
class DataConfig(Config):
    """Where rows come from."""

    group: ClassVar[str] = "data"

    data: Annotated[list[str], FIRST, RESUMABLE]
    """Files (.json, .jsonl, .jsonl.gz, .parquet), folders, or names of hub datasets (NAME or NAME:CONFIG)."""
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
        }

    def reads_splits(self) -> bool:
        """Whether something that is read has splits."""
        return has_splits(self.data)


@dataclass(kw_only=True)
class ScoredPairsConfig(Config):
    """How pairs are cut to length, and where what the frozen language model says of them is kept."""

    group: ClassVar[str] = "data"

    max_length: Annotated[int, Ge(1)] = 2048
    """Longest sequence, prompt and response together, in tokens."""
    max_prompt_length: Annotated[int, Ge(1)] = 1728
    """A sequence over max_length loses prompt tokens on the left down to this many, then response tokens on the right."""
    score_tokens: Annotated[int, Ge(1), RESUMABLE] = 16384
    """Padded tokens per batch where nothing is trained: reference entropies, scores and evaluation."""
    cache_dir: Annotated[str, RESUMABLE] = "~/.cache/denserl"
    """Where reference entropies are kept between runs."""
