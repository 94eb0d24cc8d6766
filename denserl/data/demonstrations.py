"""Demonstrations for supervised fine-tuning: answered conversations, or plain text for language modelling."""

from typing import TYPE_CHECKING

import datasets

from denserl.data.chat import encode_pair, encode_text
from denserl.data.chat_format import own_marks
from denserl.data.features import IDS, MESSAGES, RESPONSE
from denserl.data.readers import RowOptions, load_rows, map_rows
from denserl.data.schemas import BadRow, as_demonstration, unread
from denserl.data.tables import kept
from denserl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack


@kept
def load_demonstrations(
    sources: list[str],
    **how: "Unpack[RowOptions]",
) -> datasets.Dataset:
    """Demonstrations with the columns prompt (messages; empty for plain text), response (a text, or a message) and place.

    Sources are blended as in `readers.blend`, columns named as in `readers.load_rows`. UserError on bad rows, unless
    `on_bad_row` is "skip".
    """
    features = datasets.Features({"prompt": MESSAGES, "response": RESPONSE})

    def not_read(row: object) -> set[str]:
        return unread(row, as_demonstration)

    return load_rows(sources, as_demonstration, features, unread=not_read, **how)


@kept
def tokenize_demonstrations(
    dataset: datasets.Dataset, tokenizer: "PreTrainedTokenizerBase", *, max_length: int, on_bad_row: str = "stop"
) -> datasets.Dataset:
    """Columns input_ids and loss_start, the index of the first token with loss: the response's, or 0 for plain text.

    A conversation over `max_length` loses prompt tokens on its left, down to half of `max_length`, then response tokens
    on its right (`chat.truncate_pair`). Plain text over `max_length` becomes several rows.
    """

    if max_length < 4:
        raise UserError(f"`max_length` is {max_length}; it must be at least 4", "give prompt and response together more tokens")

    def encode(row: dict):
        if not row["prompt"]:
            ids = encode_text(tokenizer, row["response"])
            if len(ids) < 2:
                raise BadRow("the text has fewer than two tokens")
            starts = range(0, len(ids) - 1, max_length)  # a last token alone would have nothing to predict it from
            yield from ({"input_ids": ids[i : i + max_length], "loss_start": 0} for i in starts)
            return
        prompt, (response,) = encode_pair(tokenizer, row["prompt"], [row["response"]], max_length, max_length // 2)
        yield {"input_ids": prompt + response, "loss_start": len(prompt)}

    features = datasets.Features({"input_ids": IDS, "loss_start": datasets.Value("int32")})
    return map_rows(dataset, encode, features, on_bad_row, own_marks(tokenizer))
