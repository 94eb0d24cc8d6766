"""Options of looking at data."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from denserl.config import FIRST, INPUT, MODEL, Only, RunConfig
from denserl.data.columns import Rating, parse_columns, parse_ratings
from denserl.data.config import RatedDataConfig, ScoredPairsConfig, StepDataConfig, has_splits
from denserl.errors import require
from denserl.rollouts.config import DecodingConfig

# What only a model has a use for.
OF_MODEL = (
    *("sample", "token_rows", "tokens_per_segment", "seed"),
    *("max_length", "max_prompt_length", "score_tokens", "cache_dir"),
    *("device", "dtype", "attention", "trust_remote_code", "chat_template", "system_prompt", "template_date"),
)


@dataclass(kw_only=True)
class InspectConfig(RatedDataConfig, StepDataConfig, ScoredPairsConfig, RunConfig):
    """Look at data before anything is trained: rows refused, lengths, duplicates, labels, and segments at every threshold."""

    group: ClassVar[str] = "data"

    data: Annotated[list[str], INPUT, FIRST]
    """Files (.json, .jsonl, .csv, .tsv, each also .gz, .parquet, .txt), folders of such or of `save_to_disk`, or names of hub
    datasets (NAME or NAME:CONFIG)."""
    model: Annotated[str | None, MODEL, FIRST, Only("without `model`", lambda c: c.model, of=OF_MODEL)] = None
    """Language model that is to be trained, a folder or hub name: for lengths in tokens, and its entropies."""
    output_dir: Annotated[str, FIRST] = "runs/inspect"
    """Folder for inspect.json and inspect.html."""
    kind: Annotated[
        Literal["pairs", "demonstrations", "prompts", "ratings", "steps"] | None,
        FIRST,
        Only("on prompts, which have no responses", lambda c: c.kind != "prompts", of=("sample", "tokens_per_segment")),
    ] = None
    """What the rows are; default: what the first of them hold, and ratings where rating_columns are named."""
    tokens_per_segment: Annotated[float, FIRST, Ge(1), Only("with `sample` 0", lambda c: c.sample)] = 8.0
    """Mean length of segments for which a threshold is looked for."""
    sample: Annotated[int, FIRST, Ge(0)] = 500
    """Rows, drawn by seed, whose responses the model reads; 0: none."""
    token_rows: Annotated[int, Ge(1)] = 5000
    """Rows, drawn by seed, whose lengths are counted in tokens; those of sample are among them."""
    split: Annotated[
        str,
        Only("where there are no splits: folders and hub datasets have some, files do not", lambda c: has_splits(c.data)),
    ] = "train"
    """Split of hub datasets and folders."""
    columns: str | None = None
    """Names of columns in the rows, e.g. prompt=question,chosen=response_j; KEY= leaves a key unread."""
    limit: Annotated[int | None, Ge(1)] = None
    """Look at the first so many rows of each source; lines that are no rows are not counted."""
    max_prompt_length: Annotated[int | None, Ge(1)] = None
    """Tokens down to which a prompt may be cut; default: those of the command that trains on such rows: 1728 in train-rm, half
    of max_length in train-sft, 1024 in train-ppo."""

    def reads_ratings(self) -> bool:
        return self.kind in (None, "ratings")

    def reads_steps(self) -> bool:
        return self.kind == "steps"

    def ratings(self) -> list[Rating]:
        """The ratings that are looked at. UserError where none are named."""
        return parse_ratings(self.rating_words(self.data))

    def prompt_length(self, kind: str) -> int:
        """Tokens that prompts of rows of a kind are cut down to, as the command cuts them that trains on such rows."""
        if kind == "demonstrations":
            return self.max_length // 2
        trained = DecodingConfig.max_prompt_length if kind == "prompts" else ScoredPairsConfig.max_prompt_length
        return self.max_prompt_length or trained

    def check(self) -> None:
        require(self.data, "no data source is given", "name a file, a folder or a hub dataset")
        super().check()
        parse_columns(self.columns)
