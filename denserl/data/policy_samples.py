"""Several responses to each prompt, of which nothing is known but that a policy gave them: loaded, and as ids.

A row is one sample, as `denserl bon` writes them, or holds a prompt and a list of `responses`. Rows of one prompt belong
together wherever they stand.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import datasets

from denserl.data.chat_format import own_marks
from denserl.data.features import IDS, MESSAGES, RESPONSE, build_dataset
from denserl.data.messages import as_messages, response_of, unicode_of
from denserl.data.readers import RowOptions, load_rows, map_rows
from denserl.data.responses import encode
from denserl.data.schemas import READ_KEYS, BadRow, as_prompt, check_length, missing, unread
from denserl.data.tables import kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

SIDE = "response"
RESPONSES, ENDED, GROUP = "responses", "ended", "group"
# What samples hold beside: their number, and ids as their own tokenizer wrote them.
_OF_SAMPLES = ("id", "sample", "prompt_ids", "response_ids")


@kept
def load_samples(sources: list[str], **how: "Unpack[RowOptions]") -> datasets.Dataset:
    """One row a response: prompt (messages), response (a text, which may be empty, or a message), ended, group, place.

    ended: false of a response that was cut off at its longest length. group: the same number in all rows of one prompt.
    UserError on bad rows, unless `on_bad_row` is "skip".
    """
    read: Collection[str] = {*READ_KEYS, RESPONSES, ENDED}
    features = datasets.Features({"prompt": MESSAGES, SIDE: RESPONSE, ENDED: datasets.Value("bool")})

    def not_read(row: Any) -> set[str]:
        return unread(row, as_prompt, {*read, *_OF_SAMPLES})

    rows = load_rows(sources, as_samples, features, read=read, unread=not_read, **how)
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(json.dumps(prompt, sort_keys=True), len(numbers)) for prompt in rows["prompt"]]
    return rows.add_column(GROUP, groups)


@kept
def tokenize_samples(
    dataset: datasets.Dataset, tokenizer: "PreTrainedTokenizerBase", *, many: int, max_length: int, on_bad_row: str = "stop"
) -> datasets.Dataset:
    """Samples as ids, as they are scored (`responses.encode`): prompt_ids, response_ids, ended, group; a group stands together.

    Bad rows: the template refuses the messages, or their prompt has fewer than `many` responses.
    """
    count = Counter(dataset[GROUP])
    order = sorted(range(len(dataset)), key=dataset[GROUP].__getitem__)

    def encode_row(row: dict) -> Iterator[dict]:
        if count[row[GROUP]] < many:
            found = f"its prompt has {count[row[GROUP]]} responses, of which {many} are to be compared"
            raise BadRow(found, "sample more, or lower `meta_samples`")
        found = encode(tokenizer, row["prompt"], row[SIDE], max_length, row[ENDED])
        ids = {"prompt_ids": found.prompt_ids, f"{SIDE}_ids": found.response_ids}
        yield {**ids, ENDED: found.ended, GROUP: row[GROUP]}

    of_rows = {ENDED: datasets.Value("bool"), GROUP: datasets.Value("int64")}
    features = datasets.Features({"prompt_ids": IDS, f"{SIDE}_ids": IDS, **of_rows})
    found = map_rows(dataset.select(order), encode_row, features, on_bad_row, own_marks(tokenizer))
    left = Counter(found[GROUP])
    # Where some of a prompt's rows were bad.
    return build_dataset((row for row in found if left[row[GROUP]] >= many), features)


def as_samples(row: Any) -> list[dict]:
    """{prompt, response, ended} of each response in a row. BadRow says why a row is bad."""
    if not isinstance(row, dict) or (SIDE in row) == (RESPONSES in row):
        both = f"both {SIDE!r} and {RESPONSES!r}" if isinstance(row, dict) and SIDE in row else f"no {SIDE!r} or {RESPONSES!r}"
        raise missing(row if isinstance(row, dict) else {}, f"there is {both}", f"prompt=...,{SIDE}=...")
    listed = row.get(RESPONSES, [row.get(SIDE)])
    if not isinstance(listed, list) or not listed:
        raise BadRow(f"{RESPONSES!r} is no list of responses")
    ended = row.get(ENDED, True)
    if not isinstance(ended, bool):
        raise BadRow(f"{ENDED!r} is {ended!r}; expected true or false")
    prompt = as_prompt({name: value for name, value in row.items() if name not in (SIDE, RESPONSES)})["prompt"]
    responses = [_response(value) for value in listed]
    check_length(prompt, *responses)
    return [{"prompt": prompt, SIDE: response, ENDED: ended} for response in responses]


def _response(value: Any) -> str | dict:
    """A text, or a message of the assistant as its text or, where it holds more, whole."""
    if not isinstance(value, dict):
        return unicode_of(value, SIDE)
    (message,) = as_messages([value], SIDE)
    if message["role"] != "assistant":
        raise BadRow(f"{SIDE!r} is a message of the {message['role']}; expected one of the assistant")
    return response_of(message)
