"""Drawn rows as token ids: how long they are, and what is cut of them where they are trained on."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np

from denserl.data.bad_rows import BadRow, BadRows
from denserl.data.chat import bos_id, check_room, cut_left, cut_pair, encode_prompt, encode_text, encode_whole
from denserl.data.chat_format import own_marks
from denserl.data.features import IDS, MESSAGES, RESPONSE, TEXT, array_of, build_dataset, list_lengths
from denserl.data.preferences import check_differ
from denserl.data.readers import map_rows
from denserl.inspection.config import InspectConfig
from denserl.inspection.kinds import Kind
from denserl.inspection.measures import share, spread
from denserl.inspection.reading import Drawn
from denserl.inspection.tally import PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COUNT = datasets.Value("int32")


class Encoded(NamedTuple):
    """Drawn rows as ids, cut as they are trained on, in the order in which they were drawn.

    rows: columns place, prompt_ids and SIDE_ids of each side, and how many tokens each part has uncut, PART_tokens.
    refused: rows that no ids could be made of, or nothing be learned from.
    """

    rows: datasets.Dataset
    refused: BadRows


def encoded(drawn: Sequence[Drawn], kind: Kind, tokenizer: "PreTrainedTokenizerBase", config: InspectConfig) -> Encoded:
    """The drawn rows as ids. UserError where the lengths leave no room for a response, or no row is left."""
    longest = {"max_length": config.max_length, "max_prompt_length": config.prompt_length(kind.name)}
    if kind.sides:
        check_room(**longest)
    rows = build_dataset(
        (
            {"prompt": record.prompt, **dict(zip(kind.sides, record.responses, strict=True)), "place": place}
            for place, record in drawn
        ),
        datasets.Features({"prompt": MESSAGES, **dict.fromkeys(kind.sides, RESPONSE), "place": TEXT}),
    )
    parts = (PROMPT, *kind.sides)
    features = {"place": TEXT, **{f"{part}_ids": IDS for part in parts}, **{f"{part}_tokens": _COUNT for part in parts}}
    # What processes count comes back to this one.
    counts: Counter[Any] = Counter()

    def encode(row: dict) -> Iterator[dict]:
        try:
            yield {"place": row["place"], **_ids(row, kind, tokenizer, longest)}
        except BadRow as error:
            counts[row["place"], str(error), error.fix] += 1
            raise

    made = map_rows(rows, encode, datasets.Features(features), "skip", own_marks(tokenizer), counts)
    refused = BadRows("skip")
    for reason in counts.elements():
        refused.add(*reason)
    return Encoded(made, refused)


def _ids(row: dict, kind: Kind, tokenizer: "PreTrainedTokenizerBase", longest: Mapping[str, int]) -> dict[str, Any]:
    """The ids of a row's parts, as they are cut, and how many there are."""
    if not kind.sides:
        whole = [encode_prompt(tokenizer, row["prompt"])]
        cut = [cut_left(whole[0], longest["max_prompt_length"], bos_id(tokenizer))]
    elif not row["prompt"]:
        whole = cut = [[], *(encode_text(tokenizer, row[side]) for side in kind.sides)]
    else:
        prompt, responses = encode_whole(tokenizer, row["prompt"], [row[side] for side in kind.sides])
        whole = [prompt, *responses]
        prompt, responses = cut_pair(tokenizer, prompt, responses, **longest)
        if len(responses) == 2:
            check_differ(*responses)
        cut = [prompt, *responses]
    parts = (PROMPT, *kind.sides)
    ids = {f"{part}_ids": ids for part, ids in zip(parts, cut, strict=True)}
    return {**ids, **{f"{part}_tokens": len(ids) for part, ids in zip(parts, whole, strict=True)}}


def lengths_in_tokens(rows: datasets.Dataset, kind: Kind, config: InspectConfig, every: bool) -> dict[str, Any]:
    """How long the parts of encoded rows are, and how many of them are cut; of plain texts, how many are split.

    every: whether all rows were drawn; of others shares have intervals of what holds of all.
    """
    has_prompt = array_of(rows, f"{PROMPT}_tokens") > 0
    whole = {part: array_of(rows, f"{part}_tokens") for part in (PROMPT, *kind.sides)}
    lost = {part: whole[part] > list_lengths(rows, f"{part}_ids") for part in whole}
    cut = {part: share(int(lost[part][has_prompt].sum()), int(has_prompt.sum())) for part in whole if has_prompt.any()}
    if every:
        cut = {part: {**found, "interval": None} for part, found in cut.items()}
    plain = {part: tokens[~has_prompt] for part, tokens in whole.items() if part != PROMPT}
    return {
        "rows": len(rows),
        "every": every,
        "max_length": config.max_length if kind.sides else None,
        "max_prompt_length": config.prompt_length(kind.name),
        "lengths": {part: spread(tokens[has_prompt] if part == PROMPT else tokens) for part, tokens in whole.items()},
        "together": spread(_together(rows, kind)[has_prompt]) if kind.sides else None,
        "cut": cut,
        "plain": int((~has_prompt).sum()),
        "split": sum(int((tokens > config.max_length).sum()) for tokens in plain.values()),
    }


def _together(rows: datasets.Dataset, kind: Kind) -> np.ndarray:
    """(n,) tokens of a row's prompt with its longest response."""
    responses = [array_of(rows, f"{side}_tokens") for side in kind.sides]
    return array_of(rows, f"{PROMPT}_tokens") + np.max(responses, axis=0)
