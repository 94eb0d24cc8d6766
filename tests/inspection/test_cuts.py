"""Where responses are cut: against loops over tokens, and texts whose beginnings are marked by hand."""

import re

import numpy as np
import pytest
from inspected_rows import responses

from denserl.inspection.cuts import (
    SHOWN,
    SHOWN_TOKENS,
    STEP,
    Response,
    beginnings,
    entropies,
    side_by_side,
    threshold_for,
    thresholds,
)


@pytest.mark.parametrize(
    "text",
    [
        "{wls}It{w} hums{}.{ws} It{}\n",
        "{wls}It{}s{}.{ls}\n\n- {w}two{}\n{}\n",
        '{ls}"{w}It hums.{}"{ws} {ws}Why{}?{})*{ws} So',
        "{wls}e{}.{w}g{w} 1{}.{w}5.{w}x",
        "{wls}水{}壶{}。{ws}再{}见",
        "{}  {}",
        "{wls}  Already?!{ws}\tYes…{s} (2){w} one",
    ],
)
def test_what_begins_where(text):
    """w, l, s: a word, a line, a sentence."""
    parts = re.split(r"\{(w?l?s?)\}", text)
    plain, marks = "".join(parts[::2]), parts[1::2]
    places = np.cumsum([len(part) for part in parts[:-1:2]]).tolist()
    found = beginnings(plain, places)
    told = ["".join(name for name, begins in zip("wls", each, strict=True) if begins) for each in zip(*found, strict=True)]
    assert told == marks


def cut(response: Response, threshold: float) -> list[list[int]]:
    """The tokens of each segment: a token above the threshold opens one, and so does the first."""
    segments: list[list[int]] = []
    for token, entropy in enumerate(response.entropy.tolist()):
        if not segments or entropy > threshold:
            segments.append([])
        segments[-1].append(token)
    return segments


@pytest.mark.parametrize("count, longest", [(1, 1), (3, 6), (300, 40)])
def test_segments_at_every_threshold_are_those_of_a_loop(count, longest):
    found = responses(count, longest)
    table = thresholds(found, [0.777])
    top = max(one.entropy.max() for one in found)
    at = [row["threshold"] for row in table]
    assert at[0] == 0 and at[-1] >= top and {1.75, 0.777} <= set(at) and set(np.arange(0, top, STEP)) <= set(at)
    for row in table if count < 300 else table[::4]:
        segments = [(one, segment) for one in found for segment in cut(one, row["threshold"])]
        assert row["segments_per_response"] == pytest.approx(len(segments) / count)
        assert row["tokens_per_segment"] == pytest.approx(sum(len(one.entropy) for one in found) / len(segments))
        assert row["one_token"] == pytest.approx(sum(len(segment) == 1 for _, segment in segments) / len(segments))
        opened = [beginnings(one.text, [[0, *one.ends][segment[0]]]) for one, segment in segments]
        for name in ("word", "line", "sentence"):
            share = sum(getattr(begins, name)[0] for begins in opened) / len(segments)
            assert row[f"at_{name}"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3.5, 8])
def test_the_threshold_of_a_length_is_the_least_that_gives_it(length):
    found = responses(40, 30)
    tokens = sum(len(one.entropy) for one in found)

    def mean(threshold):
        return tokens / sum(len(cut(one, threshold)) for one in found)

    threshold = threshold_for(found, length)
    assert round(threshold, 3) == threshold and mean(threshold) >= length
    # Entropies that lie apart less than what is written are passed together.
    lower = [value for one in found for value in one.entropy.tolist() if value < threshold - 1e-3]
    assert not lower or mean(max(lower)) < length


def test_responses_shorter_than_the_length_have_no_threshold():
    assert threshold_for(responses(5, 4), 5) is None


def test_the_histogram_holds_every_token_once():
    found = responses(20, 30)
    values = [value for one in found for value in one.entropy.tolist()]
    told = entropies(found)
    edges, counts = told["histogram"]["edges"], told["histogram"]["counts"]
    assert told["n"] == len(values) == sum(counts) and edges[0] == 0 and edges[-1] == pytest.approx(max(values))
    assert counts[2] == sum(edges[2] <= value < edges[3] for value in values)


def test_responses_side_by_side_are_the_text_whatever_the_threshold():
    found = [*responses(3, 30), *responses(1, SHOWN_TOKENS, 2), *responses(SHOWN, 3)]
    long = Response("rows:9", "chosen", "so" * 400, list(range(2, 802, 2)), np.full(400, 2.0, np.float32))
    shown = side_by_side([long, *found], [0.0, 1.0, 5.0])
    assert len(shown) == SHOWN and (shown[0]["tokens"], shown[0]["shown_tokens"]) == (400, SHOWN_TOKENS)
    for one, told in zip([long, *found], shown):
        text = one.text[: [0, *one.ends][told["shown_tokens"]]]
        for at in told["cuts"]:
            assert "".join(segment["text"] for segment in at["segments"]) == text
            if one is not long:
                segments = cut(one, at["threshold"])
                assert [segment["tokens"] for segment in at["segments"]] == list(map(len, segments))
                assert [segment["entropy"] for segment in at["segments"]] == [one.entropy[part[0]] for part in segments]
