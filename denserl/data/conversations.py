"""Prompts with one response or several, of rows of any shape that has answers: what is scored and looked at."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets

from denserl.data.bad_rows import BadRow
from denserl.data.features import MESSAGES, TEXT, TEXTS, JsonText
from denserl.data.pair_rows import two_sided
from denserl.data.policy_samples import ENDED, RESPONSES, SIDE, as_samples
from denserl.data.prompts import LABEL
from denserl.data.readers import RowOptions, load_rows
from denserl.data.responses import Messages
from denserl.data.schemas import READ_KEYS, SIDES, as_demonstration, as_preference, as_text_label

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Conversation(NamedTuple):
    """A prompt, and responses to it."""

    prompt: Messages  # may be empty
    responses: list[str | dict]  # each a text, or a message of which a template reads more
    names: list[str]  # of the responses
    ended: list[bool]  # false of one that was cut off
    label: str | None = None  # the right answer, where it is told


def load_conversations(sources: list[str], *, label: str | None = None, **how: "Unpack[RowOptions]") -> list[Conversation]:
    """The rows of files, folders and hub data sets, each with its responses: `response` or `responses` as policies sample them,
    the sides of a preference, or the last answer of a chat.

    label: the key of a text or number that says the right answer. UserError on bad rows, unless `on_bad_row` is "skip".
    """
    own = {LABEL: TEXT} if label else {}
    features = {"prompt": MESSAGES, "responses": JsonText(), "names": TEXTS, "ended": datasets.List(datasets.Value("bool"))}
    read: Collection[str] = {*READ_KEYS, RESPONSES, ENDED, *([label] if label else [])}

    def convert(row: Any) -> dict:
        found = as_conversation(row)._asdict()
        return {**found, LABEL: as_text_label(row, label)} if label else {k: v for k, v in found.items() if k != LABEL}

    rows = load_rows(sources, convert, datasets.Features({**features, **own}), read=read, **how)
    return [Conversation(*(row[name] for name in (*features, *own))) for row in rows]


def as_conversation(row: Any) -> Conversation:
    """A row of any shape. BadRow says why one is bad."""
    row = two_sided(row)
    if isinstance(row, dict) and (row.get("rejected") is not None or row.get("conv_A") is not None):
        pair = as_preference(row, as_is=True)
        return Conversation(pair["prompt"], [pair[side] for side in SIDES], list(SIDES), [True, True])
    if isinstance(row, dict) and (SIDE in row or RESPONSES in row):
        samples = as_samples(row)
        return of_responses(samples[0]["prompt"], [each[SIDE] for each in samples], [each[ENDED] for each in samples])
    found = as_demonstration(row)
    return of_responses(found["prompt"], [found["response"]])


def of_responses(
    prompt: Messages, responses: list[str | dict], ended: list[bool] | None = None, label: str | None = None
) -> Conversation:
    """The conversation, its responses named by their numbers. BadRow where there is none."""
    if not responses:
        raise BadRow("there is no response")
    names = [f"response {number}" for number in range(1, len(responses) + 1)] if len(responses) > 1 else ["response"]
    return Conversation(prompt, responses, names, ended or [True] * len(responses), label)
