"""Where responses are cut: their entropies, what segments come to at every threshold, and responses cut side by side.

Segments are those of `segmentation.segment_by_entropy`, so that they are cut here as they are in training.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from denserl.data.batching import pad_rows
from denserl.data.characters import ends_of_tokens
from denserl.inspection.measures import spread
from denserl.levels import LEVELS
from denserl.segmentation import Segments, segment_by_entropy, threshold_of_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = 0.25  # nats between the thresholds of the table
DIGITS = 3  # of a threshold that is to be copied
SHOWN = 20  # responses that are cut side by side
SHOWN_TOKENS = 256  # of each of them
_BINS = 40
_TOGETHER = 256  # responses that are cut at a time
_CLOSING = "\"'”’)]}»*_"
_ENDS = ".!?…。！？؟।"


class Response(NamedTuple):
    """A response as the model reads it, without its end of turn, which lies in no segment; T tokens."""

    place: str
    side: str
    text: str
    ends: list[int]  # characters of the text that are whole after each token
    entropy: np.ndarray  # (T,) nats, of what predicts each token


def responses_of(rows: Dataset, sides: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[Response]:
    """The responses of encoded rows with entropies, row by row.

    rows: columns place, SIDE_ids and SIDE_entropy of each side.
    """

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    found = []
    for row in rows:
        for side in sides:
            ids, entropy = row[f"{side}_ids"][:-1], np.array(row[f"{side}_entropy"][:-1], dtype=np.float32)
            text = decode(ids)
            ends = ends_of_tokens(ids, text, [decode([i]) for i in ids], decode)
            found.append(Response(row["place"], side, text, ends, entropy))
    return found


class Beginnings(NamedTuple):
    """(n,) bool each: whether a word, a line, a sentence begins at a place of a text."""

    word: list[bool]
    line: list[bool]
    sentence: list[bool]


def beginnings(text: str, places: Sequence[int]) -> Beginnings:
    """What begins at places of a text, in characters: at what stands there, or behind the blanks that stand there.

    A word begins with a letter or digit behind none; a line behind a line break, and where the text begins; a sentence where a
    line does, and behind blanks after one of .!?… or their like, which closing quotes and brackets may follow (full-width ones
    need no blanks).
    """
    found = [_beginning(text, place) for place in places]
    return Beginnings(*(list(column) for column in zip(*found))) if found else Beginnings([], [], [])


def _beginning(text: str, place: int) -> tuple[bool, bool, bool]:
    there = re.compile(r"\s*").match(text, place).end()
    if there == len(text):
        return False, False, False
    said = text[:there].rstrip()
    gap = text[len(said) : there]
    line = not said or "\n" in gap
    ended = said.rstrip(_CLOSING)[-1:]
    word = text[there].isalnum() and not (not gap and said[-1:].isalnum())
    return word, line, line or (ended in _ENDS and ended != "" and (bool(gap) or ended in "。！？"))


class Batch(NamedTuple):
    """B responses, padded to T tokens."""

    entropy: Tensor  # (B, T) fp32
    mask: Tensor  # (B, T) bool
    begins: Tensor  # (B, T, 3) bool, as `Beginnings`

    @classmethod
    def of(cls, responses: Sequence[Response]) -> "Batch":
        begins = [np.array(beginnings(one.text, [0, *one.ends[:-1]])).T for one in responses]
        mask = pad_rows([np.ones(len(one.entropy)) for one in responses], False, torch.bool)
        return cls(pad_rows([one.entropy for one in responses], 0.0, torch.float32), mask, pad_rows(begins, False, torch.bool))


def entropies(responses: Sequence[Response]) -> dict[str, Any]:
    """How entropies are spread over the tokens of responses: quantiles, and a histogram from 0 to the top."""
    values = np.concatenate([one.entropy for one in responses])
    counts, edges = np.histogram(values, _BINS, (0.0, float(values.max()) or 1.0))
    return {**spread(values), "histogram": {"edges": edges.tolist(), "counts": counts.tolist()}}


def thresholds(responses: Sequence[Response], others: Sequence[float]) -> list[dict[str, float]]:
    """What segments come to at thresholds from 0 to the highest entropy, among them the default one and the others."""
    batches = [Batch.of(responses[first : first + _TOGETHER]) for first in range(0, len(responses), _TOGETHER)]
    top = max(float(one.entropy.max()) for one in responses)
    grid = {round(STEP * number, DIGITS) for number in range(math.ceil(top / STEP) + 1)} | {LEVELS["segment"]}
    return [at_threshold(batches, threshold) for threshold in sorted({*grid, *others})]


def threshold_for(responses: Sequence[Response], length: float) -> float | None:
    """The least threshold, of DIGITS digits, at which segments have at least so many tokens on average.

    None where whole responses are shorter than that.
    """
    if np.mean([len(one.entropy) for one in responses]) < length:
        return None
    # That function is given the end of turn too, and leaves it out.
    found = threshold_of_length([[*one.entropy.tolist(), 0.0] for one in responses], length)
    return math.ceil(found * 10**DIGITS) / 10**DIGITS


def at_threshold(batches: Sequence[Batch], threshold: float) -> dict[str, float]:
    """Segments a response, tokens a segment, and shares of segments: of one token, and that begin at a word, line, sentence."""
    responses, tokens, segments, single, begun = 0, 0, 0, 0, torch.zeros(3, dtype=torch.long)
    for entropy, mask, begins in batches:
        # None of these tokens closes a turn.
        found = segment_by_entropy(entropy, mask, threshold, torch.zeros(len(mask), dtype=torch.bool))
        responses, tokens = responses + len(mask), tokens + int(mask.sum())
        segments, single = segments + int(found.counts.sum()), single + int((found.lengths == 1).sum())
        begun += (begins & _openings(found)[..., None]).sum((0, 1))
    word, line, sentence = (begun / segments).tolist()
    return {
        "threshold": threshold,
        "segments_per_response": segments / responses,
        "tokens_per_segment": tokens / segments,
        "one_token": single / segments,
        "at_word": word,
        "at_line": line,
        "at_sentence": sentence,
    }


def _openings(segments: Segments) -> Tensor:
    """(B, T) bool: the first token of each segment."""
    before = segments.ids.roll(1, 1)
    before[:, 0] = -1
    return (segments.ids >= 0) & (segments.ids != before)


def side_by_side(responses: Sequence[Response], at: Sequence[float]) -> list[dict[str, Any]]:
    """The first SHOWN responses, up to SHOWN_TOKENS, cut at each threshold: text and opening entropy of each segment."""
    return [
        {
            "place": one.place,
            "side": one.side,
            "tokens": len(one.entropy),
            "shown_tokens": min(len(one.entropy), SHOWN_TOKENS),
            "cuts": [{"threshold": threshold, "segments": list(_segments(one, threshold))} for threshold in at],
        }
        for one in responses[:SHOWN]
    ]


def _segments(response: Response, threshold: float) -> Iterator[dict[str, Any]]:
    entropy = response.entropy[:SHOWN_TOKENS]
    alone, mask = torch.from_numpy(entropy)[None], torch.ones(1, len(entropy), dtype=torch.bool)
    opened = _openings(segment_by_entropy(alone, mask, threshold, ~mask[:, 0]))[0].nonzero()[:, 0].tolist()
    starts = [0, *response.ends]
    for first, last in zip(opened, [*opened[1:], len(entropy)]):
        text = response.text[starts[first] : starts[last]]
        yield {"text": text, "tokens": last - first, "entropy": float(entropy[first])}
