"""Options of `score`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from denserl.config import FIRST, INPUT, MODEL, Config, Only
from denserl.data.columns import parse_columns
from denserl.data.config import has_splits
from denserl.errors import require
from denserl.ppo_utils.config import RUNNING, PaidConfig
from denserl.rewards.config import ScorerConfig

WITHOUT_DATA = Only("without `data`", lambda c: c.data)
# What is of token ids.
OF_TOKENS = (
    *("max_length", "score_tokens", "chat_template", "system_prompt", "template_date"),
    *("device", "dtype", "attention", "trust_remote_code"),
)


@dataclass(kw_only=True)
class TextsConfig(Config):
    """What is scored."""

    group: ClassVar[str] = "texts"

    response: Annotated[list[str] | None, FIRST] = None
    """The response to score; two are set side by side. Without it and without `data` it is read from standard input."""
    prompt: Annotated[str | None, FIRST, Only("beside `data`", lambda c: not c.data, of=("response", "prompt", "label"))] = None
    """What was said before it: a user's turn, or messages as JSON. Default: none; a response that is a chat, as JSON, has its
    own."""
    label: str | None = None
    """The right answer, which functions are given as a third argument and servers as `labels`."""
    data: Annotated[list[str] | None, INPUT, FIRST] = None
    """Chats in files, folders or hub data sets instead, of any shape that is read elsewhere: messages, prompt and response or
    responses, chosen and rejected; several responses to a prompt are set side by side."""
    columns: Annotated[str | None, WITHOUT_DATA] = None
    """Names of columns in the rows, e.g. prompt=question,chosen=response_j; KEY= leaves a key unread."""
    split: Annotated[
        str, Only("where there are no splits, as folders and hub data sets have", lambda c: has_splits(c.data))
    ] = "train"
    """Split of hub data sets and folders."""
    limit: Annotated[int, WITHOUT_DATA, Ge(1)] = 20
    """Score at most this many rows."""
    label_column: Annotated[str | None, WITHOUT_DATA] = None
    """Column that says the right answer, as `label` does of a text."""

    def check(self) -> None:
        super().check()
        parse_columns(self.columns)
        count = len(self.response or [])
        require(count <= 2, f"`response` has {count} texts; at most two are set side by side", "put more in rows of `data`")


@dataclass(kw_only=True)
class OutputConfig(Config):
    """Where scored texts go."""

    jsonl: Annotated[str | None, FIRST] = None
    """File for the numbers, a JSON line for each prompt; - is standard output, in the place of the coloured text."""
    html: Annotated[str | None, FIRST] = None
    """File for a page of the same, which loads nothing from elsewhere."""
    colour: Annotated[Literal["auto", "always", "never"], Only("with `jsonl` -", lambda c: c.jsonl != "-")] = "auto"
    """Colours at the terminal; auto: where standard output is one, and NO_COLOR is not set."""


@dataclass(kw_only=True)
class ScoreConfig(PaidConfig, ScorerConfig):
    """What scores, and how: the options by which train-ppo is paid."""

    group: ClassVar[str] = "reward"

    sft_model: Annotated[
        str | None,
        MODEL,
        Only("without a model or a server", lambda c: c.reward_model or c.implicit_reward or c.reward_url),
        Only("where no model reads texts", lambda c: c.reward_model or c.implicit_reward or c.sft_model, of=OF_TOKENS),
    ] = None
    """Model whose entropies cut the responses; default: the one in the reward model's config. Without a model, its chat
    template writes what a server is asked."""
    implicit_reference: Annotated[str | None, MODEL, Only("without `implicit_reward`", lambda c: c.implicit_reward)] = None
    """The model that the training of implicit_reward started from; default: `sft_model`."""

    def check(self) -> None:
        super().check()
        found = f"`normalizer` {self.normalizer} is of what a run has paid so far, and there is none here"
        require(self.normalizer not in RUNNING, found, "use `normalizer` scalar, location or none, or leave it out")
