"""The page of `denserl inspect` in a browser."""

import json
import sys
from pathlib import Path

import pytest
from looks import fits, unreached

sys.path.append(str(Path(__file__).parent.parent / "inspection"))
from inspected_rows import responses, write_pairs  # noqa: E402

from denserl.inspection.config import InspectConfig  # noqa: E402
from denserl.inspection.cuts import entropies, side_by_side, threshold_for, thresholds  # noqa: E402
from denserl.inspection.inspected import inspected  # noqa: E402
from denserl.inspection.page import write_page  # noqa: E402


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
