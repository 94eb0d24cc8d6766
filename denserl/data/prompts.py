"""Prompts for rollouts: loaded from any source and row shape, and tokenised with the generation prompt."""

from typing import TYPE_CHECKING, Any

import datasets

from denserl.data.chat import bos_id, cut_left, encode_prompt
from denserl.data.chat_format import own_marks
from denserl.data.features import IDS, MESSAGES, TEXT
from denserl.data.readers import RowOptions, load_rows, map_rows
from denserl.data.schemas import as_prompt, as_text_label, unread
from denserl.data.tables import kept
from denserl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

LABEL = "label"


@kept
def load_prompts(
    sources: list[str],
    *,
    label: str | None = None,
    **how: "Unpack[RowOptions]",
) -> datasets.Dataset:
    """Prompts with the columns prompt (messages) and place; an answer that a row also holds is left out.

    label: the key of a text or number that says the right answer, which becomes a column `label` of texts; a row without it is
    bad.

    Sources are blended as in `readers.blend`, columns named as in `readers.load_rows`. UserError on bad rows, unless
    `on_bad_row` is "skip".
    """

    def convert(row: Any) -> dict:
        return as_prompt(row) | ({LABEL: as_text_label(row, label)} if label else {})

    return load_rows(
        sources,
        convert,
        datasets.Features({"prompt": MESSAGES, **({LABEL: TEXT} if label else {})}),
        unread=lambda row: unread(row, as_prompt, [label] if label else []),
        **how,
    )


@kept
def tokenize_prompts(
    dataset: datasets.Dataset, tokenizer: "PreTrainedTokenizerBase", *, max_prompt_length: int, on_bad_row: str = "stop"
) -> datasets.Dataset:
    """Prompts with the columns prompt and prompt_ids, cut by `chat.cut_left` over `max_prompt_length`, and label, if there."""
    if max_prompt_length < 1:
        raise UserError(f"`max_prompt_length` is {max_prompt_length}", "let it be at least 1")

    def encode(row: dict):
        ids = cut_left(encode_prompt(tokenizer, row["prompt"]), max_prompt_length, bos_id(tokenizer))
        yield {"prompt": row["prompt"], "prompt_ids": ids, **{name: row[name] for name in own}}

    own = {LABEL: TEXT} if LABEL in dataset.column_names else {}
    features = datasets.Features({"prompt": MESSAGES, "prompt_ids": IDS, **own})
    return map_rows(dataset, encode, features, on_bad_row, own_marks(tokenizer))
