"""The page of `denserl score` in a browser: two responses side by side, tables that open, hostile texts."""

import re

import pytest
from hostile import RUN, TEXTS
from looks import fits, unreached

from denserl.scored.page import fragment, page
from denserl.scored.results import ScoredPrompt, ScoredResponse, Segment, SourceInfo, SourceScore
from denserl.scored.words import signed

WORDS = "The garden is small, and the rain falls on it all day. The kettle hums; nobody waits for it any more.".split()
MODEL = SourceInfo("reward_model", "runs/rm", "reward", "segment", "avg", 1.0)
LENGTH = SourceInfo("my_reward.py:length", "my_reward.py:length", "text", "text", "sum", 0.5)


def scored(texts: list[str], name: str, shift: float) -> ScoredResponse:
    segments, start = [], 0
    for k, text in enumerate(texts):
        raw = ((k * 7) % 11 - 5) / 3 + shift
        segments.append(Segment(start, start + len(text), text, raw, raw / 2, raw / (k + 1), raw / (k + 1)))
        start += len(text)
    score = sum(segment.raw for segment in segments) / len(segments)
    whole = Segment(0, start, "".join(texts), 3.0, 3.0, 3.0, 3.0)
    sources = (SourceScore(MODEL, score, score / 2, tuple(segments)), SourceScore(LENGTH, 3.0, 3.0, (whole,)))
    return ScoredResponse(name, "".join(texts), name == "chosen", 0, 0, score / 2 + 1.5, sources)


def prompts(first: list[str], second: list[str], asked: str = "Tell me about the garden.") -> list[ScoredPrompt]:
    pair = (scored(first, "chosen", 0.3), scored(second, "rejected", -0.4))
    return [ScoredPrompt([{"role": "user", "content": asked}], pair), ScoredPrompt([], pair[:1])]


@pytest.fixture
def of_words(tmp_path):
    found = prompts([f" {word}" for word in WORDS], [f" {word}" for word in WORDS[::-2]])
    path = tmp_path / "page.html"
    path.write_text(page(found), encoding="utf-8")
    return found, path


def test_it_fits_and_is_reached_by_keyboard(of_words, visit, view, shoot):
    opened = visit(of_words[1], view)
    assert fits(opened) and unreached(opened) == []
    opened.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert fits(opened) and unreached(opened) == []
    opened.reload()
    opened.locator("summary").nth(0).click()
    opened.locator(".segment").nth(4).focus()
    shoot(opened, f"score-{view[0]}-{view[1]}")


def test_responses_stand_side_by_side_where_there_is_room(of_words, visit):
    for width, beside in ((1400, True), (320, False)):
        sides = visit(of_words[1], (width, "light")).locator(".sides").first.locator("> div")
        boxes = [sides.nth(i).bounding_box() for i in range(2)]
        assert (boxes[0]["y"] == boxes[1]["y"]) == beside


def test_tables_open_by_keyboard_and_hold_the_numbers(of_words, visit):
    (first, _), path = of_words
    opened = visit(path)
    summary = opened.locator("summary").first
    summary.focus()
    opened.keyboard.press("Enter")
    cells = opened.locator("details[open] tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    segments = first.responses[0].sources[0].segments
    assert [row[0] for row in cells] == WORDS
    assert [row[1:] for row in cells] == [[signed(s.raw), signed(s.normalised), signed(s.change)] for s in segments]
    shares = opened.locator(".segment").evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--share')))")
    assert [(share > 0) - (share < 0) for share in shares[: len(WORDS)]] == [(s.raw > 0) - (s.raw < 0) for s in segments]
    adds = opened.locator(".decides").first.locator("tbody tr td:nth-child(2)").all_text_contents()
    assert adds == [signed(part.adds) for part in first.comparisons[0].parts]


def test_a_segment_says_its_numbers_when_focused(of_words, visit):
    opened = visit(of_words[1])
    opened.locator(".segment").nth(1).focus()
    said = opened.evaluate("getComputedStyle(document.activeElement, '::after').content")
    segment = of_words[0][0].responses[0].sources[0].segments[1]
    assert said.startswith(f'"raw {signed(segment.raw)}, normalised {signed(segment.normalised)}')


@pytest.mark.parametrize("make", [page, fragment])
def test_hostile_texts_are_only_text(make, visit, tmp_path):
    """Without the page's own policy, so that it is not what keeps them from running."""
    texts = list(dict.fromkeys(TEXTS))
    html = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", make(prompts(texts, texts[::-1], texts[0])))
    path = tmp_path / "hostile.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{html}', encoding="utf-8")
    opened = visit(path)
    opened.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert RUN.split("'")[1] == "data-ran" and opened.locator("html").get_attribute("data-ran") is None
    assert opened.locator("iframe, img, svg, base, script").count() == 0 and fits(opened)


def test_a_notebook_of_either_colour_shows_readable_segments(of_words, visit, view, tmp_path, shoot):
    """What stands around it is not ours: white on black, or black on white."""
    path = tmp_path / "notebook.html"
    ground = {"light": "background: #fff; color: #000", "dark": "background: #111; color: #ddd"}[view[1]]
    path.write_text(f'<!doctype html><meta charset="utf-8"><body style="{ground}">{fragment(of_words[0])}', encoding="utf-8")
    opened = visit(path, view)
    colours = opened.locator(".segment").first.evaluate("one => getComputedStyle(one).color")
    assert fits(opened) and colours == "rgb(27, 29, 33)"
    shoot(opened, f"score-notebook-{view[0]}-{view[1]}")
