"""Scored texts as a page, and as a part of a notebook. Every number is formatted here and none in the templates."""

from collections.abc import Sequence
from typing import Any

from denserl.data.messages import whole_text
from denserl.pages.rendering import render
from denserl.pages.segments import Segment as Coloured
from denserl.pages.segments import legend, share_of
from denserl.scored import words
from denserl.scored.results import ScoredPrompt, Segment
from denserl.scored.words import Shown
from denserl.terminal import visible

DECIDING = 10  # parts of a difference that are shown at once
LABELLED = 40  # segments of a response that have their numbers beside them


def page(scored: Sequence[ScoredPrompt]) -> str:
    """A self-contained HTML page of all prompts."""
    return render("scored/score.html", _content(scored))


def fragment(scored: Sequence[ScoredPrompt]) -> str:
    """The same as a part of another page, such as a notebook."""
    return render("scored/fragment.html", _content(scored))


def _content(scored: Sequence[ScoredPrompt]) -> dict[str, Any]:
    shown = words.how_shown(scored)
    return {
        "sources": [
            {"said": each.source, "legend": [] if _is_whole_in_all(scored, place) else legend(each.limit)}
            for place, each in enumerate(shown)
        ],
        "prompts": [_prompt(each, shown) for each in scored],
    }


def _prompt(scored: ScoredPrompt, shown: Sequence[Shown]) -> dict[str, Any]:
    names = [response.name for response in scored.responses]
    return {
        "messages": [
            {"role": visible(message["role"], kept=""), "text": visible(whole_text(message).strip())}
            for message in scored.prompt
        ],
        "responses": [
            {
                "about": words.about(response),
                "text": visible(response.text),
                "whole": all(map(words.is_whole, response.sources)),
                "scores": [_score(scored, side, place, each) for place, each in enumerate(shown)],
            }
            for side, response in enumerate(scored.responses)
        ],
        "differences": [
            {
                "said": shown[place].name + words.decided(found, names),
                "parts": _parts(scored, place) if words.can_tell_parts(scored, place) else [],
            }
            for place, found in enumerate(scored.comparisons)
        ],
        "first": visible(names[0], kept=""),
        "second": visible(names[-1], kept=""),
    }


def _is_whole_in_all(scored: Sequence[ScoredPrompt], place: int) -> bool:
    return all(words.is_whole(response.sources[place]) for each in scored for response in each.responses)


def _score(scored: ScoredPrompt, side: int, place: int, shown: Shown) -> dict[str, Any]:
    score = scored.responses[side].sources[place]
    told = [] if words.is_whole(score) else score.segments
    labelled = len(told) <= LABELLED
    parts = scored.comparisons[place].parts if scored.comparisons else ()
    adds = {part.segment: part.adds for part in parts if part.side in (side, None)}
    return {
        "heading": shown.name + words.heading(score),
        "segments": [_coloured(segment, shown, labelled, adds.get(i)) for i, segment in enumerate(told)],
        "columns": shown.columns,
        "rows": [[words.line_of(segment), *(words.number(segment, name) for name in shown.columns)] for segment in told],
    }


def _coloured(segment: Segment, shown: Shown, labelled: bool, adds: float | None) -> Coloured:
    said = ", ".join(f"{name} {words.number(segment, name)}" for name in shown.columns)
    said += f"; adds {words.signed(adds)} to the difference" if adds is not None else ""
    share = share_of(segment.normalised, shown.limit)
    return Coloured(words.text_of(segment, "↵\n"), said, share, words.signed(segment.normalised, 2) if labelled else "")


def _parts(scored: ScoredPrompt, place: int) -> list[dict[str, Any]]:
    """What adds to the difference, the largest first; those that are shown only when asked for are marked."""
    parts = scored.comparisons[place].parts
    limit = abs(parts[0].adds) or 1.0
    return [
        {
            "adds": words.signed(adds),
            "share": share_of(adds, limit),
            "name": name,
            "raw": words.number(segment, "raw"),
            "text": words.line_of(segment),
            "further": rank >= DECIDING,
        }
        for rank, (adds, name, segment) in enumerate(words.deciding(scored, place, len(parts)))
    ]
