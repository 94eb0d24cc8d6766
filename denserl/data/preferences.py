"""Preference pairs: loaded from any source and row shape, and tokenised for the reward model.

Row shapes are in schemas.py, reading and blending in readers.py, the chat template in chat.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from denserl.data.chat import check_room, encode_pair
from denserl.data.chat_format import own_marks
from denserl.data.features import IDS, MESSAGES, NUMBER, RESPONSE, TEXT
from denserl.data.order import shuffled
from denserl.data.published import check_pairs
from denserl.data.readers import RowOptions, load_rows, map_rows
from denserl.data.schemas import (
    PAIR_LABELS,
    RATING_KEYS,
    WEIGHT,
    BadRow,
    as_labels,
    as_preference,
    as_text_label,
    unread,
)
from denserl.data.tables import kept
from denserl.streams import Purpose, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

GROUP = "group"
OTHER_SIDE = {"chosen": "rejected", "rejected": "chosen"}


@kept
def load_preferences(
    sources: list[str],
    *,
    rating_keys: Sequence[tuple[str, str]] = RATING_KEYS,
    labels: Sequence[str] = (),
    group: str | None = None,
    **how: "Unpack[RowOptions]",
) -> datasets.Dataset:
    """Pairs: columns prompt (messages), chosen, rejected (a text, or a message), margin (0 without ratings), p_chosen, weight
    (1 where a row has none), labels, place.

    labels: keys of numbers that the rows hold beside the pair; a row without them is bad.
    group: key of a text, or a number, that pairs of one kind have in common, given as column `group`; a row without it is bad.
    columns, columns_needed: names that keys have in the rows, as in `readers.load_rows`.

    Sources are blended as in `readers.blend`, `every` as in `readers.load_rows`. UserError on bad rows, unless `on_bad_row`
    is "skip", and for a published set (published.py) of another size than it should have.
    """
    features = {
        "prompt": MESSAGES,
        "chosen": RESPONSE,
        "rejected": RESPONSE,
        **dict.fromkeys((*PAIR_LABELS, WEIGHT, *labels), NUMBER),
    }
    features |= {} if group is None else {GROUP: TEXT}
    beside = {*labels, *([] if group is None else [group]), *(key for keys in rating_keys for key in keys)}

    def convert(row: Any) -> dict:
        return as_preference(row, rating_keys) | as_labels(row, labels) | group_of(row, group)

    return load_rows(
        sources,
        convert,
        features,
        unread=lambda row: unread(row, as_preference, beside),
        check_size=check_pairs,
        **how,
    )


def group_of(row: Any, key: str | None) -> dict[str, str]:
    """What pairs of one kind have in common, as column `group`; none without a key. BadRow where the row does not say."""
    return {} if key is None else {GROUP: as_text_label(row, key, "what pairs of one kind have in common")}


@kept
def tokenize_preferences(
    dataset: datasets.Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    max_prompt_length: int,
    on_bad_row: str = "stop",
) -> datasets.Dataset:
    """Pairs as ids: prompt_ids, chosen_ids, rejected_ids (end of turn included), cut as in chat.truncate_pair; numbers, group.

    Bad rows: the template refuses the messages, or truncation leaves no content or no difference. UserError when
    `max_prompt_length` leaves a response no room for content.
    """
    check_room(max_length, max_prompt_length)

    def encode(row: dict):
        pair = [row["chosen"], row["rejected"]]
        prompt, (chosen, rejected) = encode_pair(tokenizer, row["prompt"], pair, max_length, max_prompt_length)
        check_differ(chosen, rejected)
        yield {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, **{name: row[name] for name in own}}

    # Numbers of pairs, and those that objectives ask for.
    own = {name: feature for name, feature in dataset.features.items() if feature == NUMBER or name == GROUP}
    features = datasets.Features({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, **own})
    return map_rows(dataset, encode, features, on_bad_row, own_marks(tokenizer))


def check_differ(chosen: list[int], rejected: list[int]) -> None:
    """BadRow where nothing could be learned from two responses as they are read."""
    if chosen == rejected:
        raise BadRow("chosen and rejected have the same tokens, at least after truncation")


def labels_to_turn(rows: int, share: float, seed: int) -> np.ndarray:
    """(rows,) bool: whose labels are turned round to study noise, a share of them.

    The seed says which; a larger share at the same seed takes these and others.
    """
    turned = np.zeros(rows, dtype=bool)
    turned[shuffled(rows, stream(seed, Purpose.FLIPPED_LABELS))[: round(share * rows)]] = True
    return turned


def exchanged(dataset: datasets.Dataset, turned: np.ndarray) -> datasets.Dataset:
    """Tokenised pairs with chosen and rejected exchanged where `turned`, (N,) bool, says so.

    A column of one side is exchanged with the other's of the same name (`chosen_ids`, `rejected_ids`). The margin stays, and
    p_chosen, as those of a rater who has mixed them up would: turned round as well, they would tell the learner which labels
    are wrong.
    """
    if not turned.any():
        return dataset
    names = {name: name.partition("_") for name in dataset.column_names}
    other = {name: f"{OTHER_SIDE[side]}_{rest}" for name, (side, _, rest) in names.items() if side in OTHER_SIDE}
    # Both forms of the data set as they lie there; which one a row is read from is all that is new.
    flipped = dataset.rename_columns(other).select_columns(dataset.column_names)
    both = datasets.concatenate_datasets([dataset, flipped])
    return both.select(np.arange(len(dataset)) + len(dataset) * turned)
