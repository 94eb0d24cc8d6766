"""Pairs of responses of which nothing is known, and, read apart, what their rows do know of them.

Who trains is given `load_unlabelled` alone. Which response a row calls chosen decides nothing there, not even their order.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np

from denserl.data.chat import encode_prompt, encode_response
from denserl.data.chat_format import own_marks
from denserl.data.features import MESSAGES, NUMBER, RESPONSE, TEXT, with_column
from denserl.data.preferences import GROUP, group_of
from denserl.data.readers import load_rows, map_rows
from denserl.data.schemas import READ_KEYS, BadRow, as_preference, unread
from denserl.data.tables import kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSES = "responses"
TWO = ("first", "second")
FEATURES = {"prompt": MESSAGES, "first": RESPONSE, "second": RESPONSE, "source": NUMBER}


class Withheld(NamedTuple):
    """What the rows of unlabelled pairs know of them, in the order of `load_unlabelled`."""

    labels: np.ndarray  # (n,) the chance that the first is the better; NaN where a row does not say
    turned: np.ndarray  # (n,) bool: the first stands second in its row

    def rows(self, numbers: np.ndarray) -> "Withheld":
        """Of some of them."""
        return Withheld(self.labels[numbers], self.turned[numbers])


@kept
def load_unlabelled(
    sources: list[str],
    *,
    split: str = "train",
    seed: int = 0,
    on_bad_row: str = "stop",
    columns: Mapping[str, str] = {},
    columns_needed: bool = True,
    group: str | None = None,
) -> datasets.Dataset:
    """Pairs: columns prompt (messages), first, second (a text, or a message), source (its number), place; in file order.

    group: key of a text, or a number, given as column `group`, as in `load_preferences`.

    Rows have `prompt` and a list of two `responses`, or are preference rows of any known shape, whose labels and ratings are
    dropped. Which response comes first is a function of `seed` and of the two alone.

    UserError on bad rows, unless `on_bad_row` is "skip".
    """

    def convert(row: Any, number: int) -> dict:
        prompt, responses = _pair(row)
        first, second = sorted(responses, key=lambda response: _rank(response, seed))
        return {"prompt": prompt, "first": first, "second": second, "source": number, **group_of(row, group)}

    features = {**FEATURES, **({} if group is None else {GROUP: TEXT})}
    how: dict[str, Any] = {"split": split, "on_bad_row": on_bad_row, "columns": columns, "columns_needed": columns_needed}
    return _load(sources, convert, features, how)


def load_withheld(sources: list[str], *, seed: int = 0, **how: Any) -> Withheld:
    """What the rows know of the pairs that `load_unlabelled` makes of them with the same arguments."""

    def convert(row: Any, number: int) -> dict:
        _, responses = _pair(row)
        turned = _rank(responses[0], seed) > _rank(responses[1], seed)
        label = np.nan if RESPONSES in row else as_preference(row).get("p_chosen", 1.0)
        return {"label": 1 - label if turned else label, "turned": float(turned)}

    rows = _load(sources, convert, {"label": NUMBER, "turned": NUMBER}, how)
    return Withheld(np.array(rows["label"], dtype=np.float64), np.array(rows["turned"]) > 0)


@kept
def with_lengths(
    rows: datasets.Dataset, sides: Sequence[str], tokenizer: "PreTrainedTokenizerBase", on_bad_row: str
) -> datasets.Dataset:
    """The rows whose messages the chat template writes, with the tokens of each side in a column `<side>_length`.

    A column `row` says which of all each is. sides: columns of responses. UserError on others, unless `on_bad_row` is "skip".
    """
    lengths = [f"{side}_length" for side in sides]
    numbered = with_column(rows, "row", np.arange(len(rows), dtype=np.float64), NUMBER)

    def encode(row: dict) -> Iterator[dict]:
        prompt = encode_prompt(tokenizer, row["prompt"])
        found = [len(encode_response(tokenizer, row["prompt"], row[side], prompt)) for side in sides]
        yield {**row, **dict(zip(lengths, found))}

    features = datasets.Features({**numbered.features, **dict.fromkeys(lengths, NUMBER)})
    return map_rows(numbered, encode, features, on_bad_row, own_marks(tokenizer))


def _load(sources: list[str], convert: Any, features: dict, how: dict[str, Any]) -> datasets.Dataset:
    keys = {*READ_KEYS, RESPONSES}

    def one(number: int, source: str) -> datasets.Dataset:
        # Each for itself: together they would be blended.
        return load_rows(
            [source],
            lambda row: convert(row, number),
            datasets.Features(features),
            read=keys,
            unread=lambda row: unread(row, as_preference, {RESPONSES}),
            **how,
        )

    return datasets.concatenate_datasets([one(*numbered) for numbered in enumerate(sources)])


def _pair(row: Any) -> tuple[list[dict], list[str | dict]]:
    """The prompt of a row and its two responses, in its own order."""
    if isinstance(row, dict) and row.get(RESPONSES) is not None:
        two = row[RESPONSES]
        if not isinstance(two, list) or len(two) != 2:
            raise BadRow(f"{RESPONSES!r} is no list of two", "give the two responses to compare")
        if row.get("chosen") is not None or row.get("rejected") is not None:
            raise BadRow(f"the row has {RESPONSES!r} beside 'chosen' or 'rejected'", "leave one of them out")
        row = {**{name: value for name, value in row.items() if name != RESPONSES}, "chosen": two[0], "rejected": two[1]}
    found = as_preference(row)
    return found["prompt"], [found["chosen"], found["rejected"]]


def _rank(response: str | dict, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {json.dumps(response, sort_keys=True)}".encode()).digest()
