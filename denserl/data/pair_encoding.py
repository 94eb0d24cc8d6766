"""Two responses to one prompt as one text, of which a language model says which is the better one; as token ids.

Training and inference read the same ids, which are made here alone. Whatever is cut is cut of ids, and no text is ever parted
again at what stands between the responses.
"""

import logging
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import datasets

from denserl.data.bad_rows import BadRow
from denserl.data.chat import encode_pieces, encode_prompt, end_of_turn_id
from denserl.data.chat_format import common_start, own_marks
from denserl.data.features import IDS, NUMBER
from denserl.data.messages import whole_text
from denserl.data.readers import map_rows
from denserl.data.tables import kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PairLayout = Literal["denserl", "rlhflow"]
LAYOUTS: tuple[PairLayout, ...] = get_args(PairLayout)
Answer = str | dict  # a response's text, or its whole message


class PairIds(NamedTuple):
    """Two responses in one order, as token ids."""

    prompt_ids: list[int]  # what both orders begin with: all up to the first response, or nearly
    response_ids: list[int]  # the rest, up to the token behind which the label stands
    prompt_cut: int = 0  # tokens that the context lost
    response_cut: int = 0  # tokens that the responses lost


class _Text(NamedTuple):
    """The ids of a pair's text, part by part."""

    head: list[int]  # all before the context
    context: list[int]
    before_first: list[int]
    responses: tuple[list[int], list[int]]
    before_second: list[int]
    tail: list[int]  # up to where the answer starts


def encode_orders(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[dict],
    first: Answer,
    second: Answer,
    layout: PairLayout = "denserl",
    *,
    max_length: int,
    ended: tuple[bool, bool] = (True, True),
) -> tuple[PairIds, PairIds]:
    """Ids of the text of two responses, and of that in which the second one stands first. Both begin with the same prompt_ids.

    The text is the turn of a user. In the layout `denserl` it is encoded piece by piece, so that a response has the same ids in
    either place: each message behind its role, each response behind A or B, and at the end `A or B?`. Each message and response
    is closed by the end-of-turn token, which no text can hold, so that nothing inside of one looks like what stands between.
    `rlhflow` is the layout of published models (arXiv 2405.07863), encoded as one text, as they read it.

    A text of more than `max_length` ids loses context on its left; where the responses are still too long, both keep as much
    as the same largest length allows, from their beginnings on. A response that is cut is not closed.

    Args:
        prompt: messages. first, second: a text, or a message that may hold tool calls and the like, which are written as JSON.
        ended: whether each response came to its end; the layout `rlhflow` does not show it.

    Raises:
        BadRow (a ValueError): the template refuses the text, `max_length` leaves no room for a token of each response, or the
            layout `rlhflow` cannot write the messages.
    """
    if layout == "rlhflow":
        return _published(tokenizer, prompt, (first, second), max_length)
    return _cut_orders(_own_text(tokenizer, prompt, (first, second), ended), max_length)


@kept
def tokenize_orders(
    dataset: datasets.Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    layout: PairLayout = "denserl",
    *,
    max_length: int,
    on_bad_row: str = "stop",
) -> datasets.Dataset:
    """Pairs as ids of one text: prompt_ids, and the rest of it with the chosen response first, chosen_ids, and with the
    rejected one first, rejected_ids; and the pairs' numbers. How many were cut is logged.

    dataset: as `load_preferences` gives it. Bad rows: see `encode_orders`; both responses are the same, at least once cut.
    """
    own = [name for name, feature in dataset.features.items() if feature == NUMBER]
    counts: Counter[str] = Counter()

    def encode(row: dict):
        chosen, rejected = encode_orders(
            tokenizer, row["prompt"], row["chosen"], row["rejected"], layout, max_length=max_length
        )
        if chosen == rejected:
            raise BadRow("chosen and rejected have the same tokens, at least after truncation")
        for what, lost in (("context", chosen.prompt_cut), ("responses", chosen.response_cut)):
            counts.update({what: lost > 0, f"tokens of {what}": lost})
        counts["pairs"] += 1
        ids = {"prompt_ids": chosen.prompt_ids, "chosen_ids": chosen.response_ids, "rejected_ids": rejected.response_ids}
        yield {**ids, **{name: row[name] for name in own}}

    features = {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS, **dict.fromkeys(own, NUMBER)}
    rows = map_rows(dataset, encode, datasets.Features(features), on_bad_row, own_marks(tokenizer), counts)
    if counts["context"]:
        words = "%d of %d pairs are longer than `max_length` %d: their contexts lose their beginnings, %d tokens in all"
        log.warning(words, counts["context"], counts["pairs"], max_length, counts["tokens of context"])
    if counts["responses"]:
        words = "%d of %d pairs have no context left, and lose the ends of responses too, %d tokens in all"
        log.warning(words, counts["responses"], counts["pairs"], counts["tokens of responses"])
    return rows


def _own_text(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict], responses: tuple[Answer, Answer], ended: tuple[bool, bool]
) -> _Text:
    context = [piece for message in prompt for piece in (f"{message['role']}\n", whole_text(message))]
    one, other = map(whole_text, responses)
    head, *middle, a, first, b, second, tail = encode_pieces(tokenizer, ["", *context, "A\n", one, "B\n", other, "A or B?"])
    end = [end_of_turn_id(tokenizer)]
    opened = [i for role, text in zip(middle[::2], middle[1::2], strict=True) for i in (*role, *text, *end)]
    closed = [ids + end if whole else ids for ids, whole in zip((first, second), ended, strict=True)]
    return _Text(head, opened, a, (closed[0], closed[1]), b, tail)


def _cut_orders(text: _Text, max_length: int) -> tuple[PairIds, PairIds]:
    """Both orders of a text, cut to `max_length`."""
    room = max_length - len(text.head) - len(text.before_first) - len(text.before_second) - len(text.tail)
    lengths = [len(ids) for ids in text.responses]
    longest = max(room // 2, room - min(lengths))
    if room < sum(min(length, 1) for length in lengths):
        raise BadRow(f"`max_length` {max_length} leaves no room for two responses", "let `max_length` be larger")
    first, second = (ids[:longest] for ids in text.responses)
    left = max(room - len(first) - len(second), 0)
    context = text.context[max(len(text.context) - left, 0) :]
    start = [*text.head, *context, *text.before_first]
    cut = len(text.context) - len(context), sum(lengths) - len(first) - len(second)

    def order(one: list[int], other: list[int]) -> PairIds:
        return PairIds(start, [*one, *text.before_second, *other, *text.tail], *cut)

    return order(first, second), order(second, first)


def _published(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict], responses: tuple[Answer, Answer], max_length: int
) -> tuple[PairIds, PairIds]:
    """Both orders in the layout of published models, which is encoded as a whole where it need not be cut."""
    one, other = (_only_text(response) for response in responses)
    before = ["[CONTEXT] ", _flat_context(prompt), " [RESPONSE A] "]

    def encoded(text: str) -> list[int]:
        return encode_prompt(tokenizer, [{"role": "user", "content": text}])

    first, second = (
        encoded("".join([*before, first, " [RESPONSE B] ", second, " \n"])) for first, second in ((one, other), (other, one))
    )
    if max(len(first), len(second)) > max_length:
        head, context, a, *both, tail = encode_pieces(tokenizer, [*before, one, " [RESPONSE B] ", other, " \n"])
        return _cut_orders(_Text(head, context, a, (both[0], both[2]), both[1], tail), max_length)
    # The space before a response is mostly of its first token.
    start = len(common_start([encoded("".join(before).rstrip()), first, second]))
    return PairIds(first[:start], first[start:]), PairIds(second[:start], second[start:])


def _flat_context(prompt: list[dict]) -> str:
    """The messages as published models were shown them: as transformers writes their template.

    Of that template's line breaks jinja drops those behind its blocks and the last one (`trim_blocks`).
    """
    roles = ["user", "assistant"] * (len(prompt) // 2) + ["user"]
    if [message["role"] for message in prompt] != roles:
        raise BadRow("the layout rlhflow has turns of user and assistant by turns, the user's first and last")
    return "\n" + "".join(f"\n<turn> {message['role']}\n {_only_text(message)}" for message in prompt) + "\n"


def _only_text(message: Answer) -> str:
    """A text that is not empty."""
    others = {*message} - {"role", "content"} if isinstance(message, dict) else ()
    if others:
        raise BadRow(f"the layout rlhflow has no place for {sorted(others)[0]!r} of a message")
    text = message if isinstance(message, str) else message["content"]
    if not text.strip():
        raise BadRow("the layout rlhflow has no empty messages")
    return text
