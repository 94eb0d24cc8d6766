"""The page of `denserl inspect` in a browser."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import RUN, TEXTS
from looks import fits, unreached

sys.path.append(str(Path(__file__).parent.parent / "inspection"))
from inspected_rows import responses, write_pairs  # noqa: E402

from denserl.inspection.config import InspectConfig  # noqa: E402
from denserl.inspection.cuts import Response, entropies, side_by_side, threshold_for, thresholds  # noqa: E402
from denserl.inspection.inspected import inspected  # noqa: E402
from denserl.inspection.page import write_page  # noqa: E402
from denserl.terminal import visible  # noqa: E402


@pytest.fixture(scope="module")
def inspection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    data, cut = [str(write_pairs(folder / "pairs.jsonl"))], responses(60, 120)
    at = [threshold_for(cut, length) for length in (2, 4, 8)]
    figures = {
        **inspected(InspectConfig(data=data)),
        "options": {"data": data, "model": "models/sft"},
        "entropies": {"responses": len(cut), **entropies(cut)},
        "thresholds": thresholds(cut, at),
        "wished": {"tokens_per_segment": 4, "threshold": at[1]},
        "cut_at": at,
        "responses": side_by_side(cut, at),
    }
    write_page(folder / "inspect.html", figures)
    return folder / "inspect.html", figures


def test_an_inspection_fits_and_is_reached_by_keyboard(inspection, visit, view, shoot):
    page = visit(inspection[0], view)
    shoot(page, f"inspect-{view[0]}-{view[1]}")
    assert fits(page) and page.locator("canvas").count() == 4
    assert unreached(page) == []


def test_hostile_rows_and_responses_are_only_text(visit, tmp_path):
    """Without the page's own policy, so that it is not what keeps them from running."""
    texts = list(dict.fromkeys(TEXTS))
    rows = [{"prompt": "Tell me.", "chosen": "Yes.", "rejected": "No.", text: 1} for text in texts if text.isprintable()]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": texts[0], texts[1]: 1}]))
    cut = [Response(text, text, text, [len(text)], np.ones(1, np.float32)) for text in map(valid, texts[:20])]
    figures = {
        **inspected(InspectConfig(data=[str(data)], kind="pairs")),
        "options": {"data": [texts[1]], "model": texts[0]},
        "thresholds": thresholds(cut, []),
        "wished": {"tokens_per_segment": 4, "threshold": None},
        "cut_at": [0.5],
        "responses": side_by_side(cut, [0.5]),
    }
    write_page(tmp_path / "inspect.html", figures)
    html, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", (tmp_path / "inspect.html").read_text())
    (tmp_path / "inspect.html").write_text(html)
    page = visit(tmp_path / "inspect.html")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert count == 1 and RUN.split("'")[1] == "data-ran" and page.locator("html").get_attribute("data-ran") is None
    assert page.locator("iframe, img, svg, base").count() == 0
    assert page.locator(".segment").all_text_contents() == [visible(one.text) for one in cut]


def valid(text: str) -> str:
    """Without halves of characters, which no decoder gives."""
    return text.encode("utf-8", "ignore").decode()


def test_responses_unfold_and_their_segments_tell_what_they_are(inspection, visit):
    path, figures = inspection
    page = visit(path)
    folded = page.locator("details.response").nth(5)
    assert not folded.locator(".segment").first.is_visible()
    folded.locator("summary").press("Enter")
    columns = folded.locator(".segments").all_text_contents()
    cuts = figures["responses"][5]["cuts"]
    assert columns == ["".join(segment["text"] for segment in cut["segments"]) for cut in cuts]
    first = cuts[1]["segments"][0]
    titles = folded.locator(".segments").nth(1).locator(".segment").first.get_attribute("title")
    assert f"{first['tokens']} token" in titles and f"entropy {first['entropy']:.2f}" in titles


def test_the_numbers_drawn_are_those_of_the_file(inspection, visit):
    path, figures = inspection
    page = visit(path)
    drawn = [json.loads(text) for text in page.locator("script[type='application/json']").all_text_contents()]
    bars = {chart["title"]: chart["series"][0]["y"] for chart in drawn}
    assert bars["Entropies of tokens"] == figures["entropies"]["histogram"]["counts"]
    assert bars["margin"] == figures["numbers"]["margin"]["histogram"]["counts"]
