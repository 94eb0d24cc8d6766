"""Rated responses: converts rows of all known shapes to one record, loads them, and makes ids of them.

A record has `prompt` (messages), `response` (a text, or a message) and `attributes`, a number for each rating that is asked
for, NaN where there is none. A row holds one response as for fine-tuning, or two as a preference, or a list of them. Its keys
say which; the names, columns and ranges of published sets' ratings are in published.py.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.chat import check_room, encode_pair
from denserl.data.chat_format import own_marks
from denserl.data.columns import Rating, parse_ratings
from denserl.data.features import IDS, MESSAGES, NUMBERS, RESPONSE
from denserl.data.messages import is_filled, kind_of, number_of, unicode_of
from denserl.data.published import (
    BEAVERTAILS,
    CODE,
    HELPSTEER,
    JUDGE_LM,
    OVERALL_QUALITY,
    PROMETHEUS,
    ULTRAFEEDBACK,
    check_responses,
)
from denserl.data.readers import RowOptions, load_rows, map_rows
from denserl.data.schemas import (
    CONTEXT,
    INPUT_KEYS,
    PROMPT_KEYS,
    READ_KEYS,
    SIDES,
    as_demonstration,
    missing,
    unread,
    unread_beside,
)
from denserl.data.tables import kept
from denserl.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

ATTRIBUTES = "attributes"
# What stands in place of a number that a judge did not give.
_NO_RATING = ("", "n/a", "na", "none", "null", "nan")
_OF_SIDE = re.compile("(?:(?P<before>chosen|rejected)[-_])?(?P<name>.+?)(?:[-_](?P<after>chosen|rejected))?")
_OF_PROMPTS = (*CONTEXT, *PROMPT_KEYS, *INPUT_KEYS)


class _Response(NamedTuple):
    row: dict  # prompt and response as `as_demonstration` reads them
    ratings: dict  # in which its ratings stand


class _Shape(NamedTuple):
    """Rows that hold all of the keys: their responses, and the published ratings that these may have."""

    keys: tuple[str, ...]
    responses: Callable[[dict], list[_Response]]
    published: tuple[Rating, ...]


@kept
def load_ratings(
    sources: list[str],
    *,
    names: Sequence[str],
    **how: "Unpack[RowOptions]",
) -> datasets.Dataset:
    """Records: columns prompt (messages), response (a text, or a message), attributes (numbers by names, NaN: none), place.

    names: what the ratings are called, and where they stand, as in `parse_ratings`.
    Sources are blended as in `readers.blend`, `every` and columns as in `readers.load_rows`; both count responses, of which a
    row may hold several. UserError on bad rows, unless `on_bad_row` is "skip", and, with columns_needed, for a rating that no
    response has.
    """
    ratings = parse_ratings(names)
    lacking = {rating.name: i for i, rating in enumerate(ratings)}

    def convert(row: Any) -> list[dict]:
        records = as_rated(row, ratings)
        for name in [name for name, i in lacking.items() if any(not math.isnan(record[ATTRIBUTES][i]) for record in records)]:
            del lacking[name]
        return records

    found = load_rows(
        sources,
        convert,
        datasets.Features({"prompt": MESSAGES, "response": RESPONSE, ATTRIBUTES: NUMBERS}),
        read={*READ_KEYS, ATTRIBUTES},
        unread=lambda row: unread_rated(row, ratings),
        check_size=check_responses,
        **how,
    )
    shown = ", ".join(lacking)
    require(
        not (lacking and how.get("columns_needed", True)),
        f"no response has the rating {shown}",
        "say where it stands: `rating_columns` NAME=COLUMN",
    )
    return found


@kept
def tokenize_ratings(
    dataset: datasets.Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    max_prompt_length: int,
    on_bad_row: str = "stop",
) -> datasets.Dataset:
    """Rated responses as ids: prompt_ids, response_ids (end of turn included), cut as in chat.truncate_pair; attributes.

    Bad rows and errors are those of `tokenize_preferences`.
    """
    check_room(max_length, max_prompt_length)

    def encode(row: dict):
        prompt, (response,) = encode_pair(tokenizer, row["prompt"], [row["response"]], max_length, max_prompt_length)
        yield {"prompt_ids": prompt, "response_ids": response, ATTRIBUTES: row[ATTRIBUTES]}

    features = datasets.Features({"prompt_ids": IDS, "response_ids": IDS, ATTRIBUTES: NUMBERS})
    return map_rows(dataset, encode, features, on_bad_row, own_marks(tokenizer))


def as_rated(row: Any, ratings: Sequence[Rating]) -> list[dict]:
    """{prompt, response, attributes} of each rated response in a row of any known shape. BadRow says why a row is bad.

    A response that has none of the ratings is passed over; LeftOut where that is so of all in the row.
    """
    shape = _shape_of(row)
    published = {rating.name: rating for rating in shape.published}
    made = []
    for response in shape.responses(row):
        numbers = [_number(rating, response.ratings, published) for rating in ratings]
        if not all(map(math.isnan, numbers)):
            record = as_demonstration(response.row)
            if not record["prompt"]:
                raise missing(row, "there is no prompt", "prompt=...,response=...")
            made.append({**record, ATTRIBUTES: numbers})
    if not made:
        raise LeftOut(f"no rating is given, of {', '.join(rating.name for rating in ratings)}")
    return made


def lists_ratings(row: Any) -> bool:
    """Whether a row has rated responses in a shape that holds nothing else, as lists of them."""
    return isinstance(row, dict) and _shape_of(row).keys not in ((), SIDES)


def unread_rated(row: Any, ratings: Sequence[Rating]) -> set[str]:
    """The keys of a row, and of the responses in its lists, that say something and that `as_rated` does not read."""
    shape = _shape_of(row)
    published = {rating.name: rating.column or "" for rating in shape.published}
    columns = {rating.column or published.get(rating.name, rating.name) for rating in ratings} | {r.name for r in ratings}
    read = {ATTRIBUTES, *(column.partition(".")[0] for column in columns)}
    if not shape.keys:
        return unread(row, as_demonstration, read)
    found = unread_beside(row, {*shape.keys, *_OF_PROMPTS, *read})
    if shape.keys == SIDES:
        found = {name for name in found if _side_of(name)[1] not in read}
    lists = {key: row[key] for key in shape.keys if isinstance(row[key], list)}
    items = ((key, item) for key, items in lists.items() for item in items if isinstance(item, dict))
    return found | {f"{key}[].{name}" for key, item in items for name, value in item.items() if _says_more(name, value, read)}


def _says_more(name: str, value: object, read: set[str]) -> bool:
    return is_filled(value) and name not in {*read, "response", "role", "content", "from", "value"}


def _shape_of(row: Any) -> _Shape:
    if not isinstance(row, dict):
        raise BadRow(f"the row is not an object but {kind_of(row)}")
    return next(shape for shape in _SHAPES if all(row.get(key) is not None for key in shape.keys))


def _number(rating: Rating, held: dict, published: Mapping[str, Rating]) -> float:
    """A rating of a response, scaled; NaN where it has none. held: what stands beside the response."""
    held = {**held, **held[ATTRIBUTES]} if isinstance(held.get(ATTRIBUTES), dict) else held
    if rating.column is None and rating.name in published and rating.name not in held:
        known = published[rating.name]
        rating = known._replace(range=rating.range or known.range)
    value = _found(held, rating.column or rating.name)
    if value is None or (isinstance(value, str) and value.strip().lower() in _NO_RATING):
        return math.nan
    number = rating.scaled(float(value) if isinstance(value, bool) else number_of(value))
    if math.isnan(number) and isinstance(value, float):
        return math.nan
    if not -1e9 < number < 1e9:
        raise BadRow(f"the rating {rating.name!r} is {value!r}; expected a number")
    if rating.range is not None and not 0 <= number <= 1:
        low, high = sorted(rating.range)
        fix = f"give the range that it has: `rating_columns` {rating.name}={rating.column or rating.name}:LOW..HIGH"
        raise BadRow(f"the rating {rating.name!r} is {value!r}; expected {low:g} to {high:g}", fix)
    return number


def _found(held: dict, path: str) -> object:
    """What stands under a key, or under several with points between them."""
    if path in held:
        return held[path]
    found: object = held
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _one(row: dict) -> list[_Response]:
    """A row of one response, as for fine-tuning."""
    return [_Response(row, row)]


def _sides(row: dict) -> list[_Response]:
    """Both responses of a preference; a rating of one of them stands under `rating_chosen`, `chosen_rating` or the like."""
    prompt = _prompt_of(row)
    named = [(*_side_of(name), value) for name, value in row.items()]
    return [
        _Response({**prompt, "response": row[side]}, {**row, **{name: value for of, name, value in named if of == side}})
        for side in SIDES
    ]


def _side_of(name: object) -> tuple[str | None, str]:
    """Of which side a key tells, and its name without that."""
    parts = _OF_SIDE.fullmatch(str(name))
    if parts is None or name in SIDES:
        return None, str(name)
    return parts["before"] or parts["after"], parts["name"]


def _completions(row: dict) -> list[_Response]:
    """A list of objects, each a `response` with its ratings (UltraFeedback)."""
    return _of_objects(row, "completions")


def _judged_by_model(row: dict) -> list[_Response]:
    """Responses and what they are rated, both by the name of a model, for what `preference` says (CodeUltraFeedback)."""
    given = row["annotations"] if isinstance(row["annotations"], list) else []
    rated = {str(item.get("model")): item.get("rating") for item in given if isinstance(item, dict)}
    aspect = unicode_of(row["preference"], "preference")
    responses = _of_objects(row, "responses")
    return [one._replace(ratings={aspect: rated.get(str(one.ratings.get("model")))}) for one in responses]


def _of_objects(row: dict, key: str) -> list[_Response]:
    if not isinstance(row[key], list) or not all(isinstance(item, dict) for item in row[key]):
        raise BadRow(f"{key!r} is no list of objects, each with a 'response' and its ratings")
    return [_Response({**_prompt_of(row), "response": item.get("response")}, item) for item in row[key]]


def _generations(row: dict) -> list[_Response]:
    """A list of texts; a list of as many numbers has a rating of each."""
    texts = row["generations"]
    if not isinstance(texts, list):
        raise BadRow(f"'generations' is {kind_of(texts)}; expected a list of texts")
    lists = {name: values for name, values in row.items() if isinstance(values, list) and len(values) == len(texts)}
    return [
        _Response({**_prompt_of(row), "response": text}, {name: values[i] for name, values in lists.items()})
        for i, text in enumerate(texts)
    ]


def _evaluated(row: dict) -> list[_Response]:
    """A response under other names, beside the instruction to judge it (Feedback-Collection)."""
    return [_Response({"prompt": row["orig_instruction"], "response": row["orig_response"]}, row)]


def _prompt_of(row: dict) -> dict:
    prompt = {name: row[name] for name in _OF_PROMPTS if row.get(name) is not None}
    if not prompt.keys() & {*PROMPT_KEYS} and "input" in prompt:
        prompt["prompt"] = prompt.pop("input")
    return prompt


# The first whose keys a row holds is its shape.
_SHAPES = (
    _Shape(("completions",), _completions, ULTRAFEEDBACK),
    _Shape(("responses", "annotations", "preference"), _judged_by_model, CODE),
    _Shape(("generations",), _generations, JUDGE_LM),
    _Shape(SIDES, _sides, OVERALL_QUALITY),
    _Shape(("orig_instruction", "orig_response"), _evaluated, PROMETHEUS),
    _Shape((), _one, (*HELPSTEER, *BEAVERTAILS)),
)
