"""Charts and coloured segments in a browser: what is drawn, read off by keys and shown as tables; on a phone, in dark mode."""

import math
import re

import pytest
from hostile import RUN, TEXTS
from looks import fits, unreached

from denserl.pages import rendering
from denserl.pages.charts import Chart, Reference, Series
from denserl.pages.segments import Segment, legend, share_of
from denserl.terminal import visible

TEMPLATE = """{% extends "pages/page.html" %}
{% from "pages/charts.html" import chart %}{% from "pages/segments.html" import coloured, legend %}
{% block title %}Charts{% endblock %}{% block style %}{% include "pages/charts.css" %}{% endblock %}
{% block body %}<h1>Charts</h1><section class="charts">{% for data in charts %}{{ chart(data) }}{% endfor %}</section>
<section>{{ coloured(parts) }}{{ legend(steps) }}</section>{% endblock %}"""
X = list(range(0, 500, 5))
Y = [math.log(1 + x) + math.sin(x) / 3 for x in X]
WORDS = "The cat sat on the mat and looked at the moon for a very long time before it slept again".split()


def charts() -> list[Chart]:
    banded = Series("seeds", X, Y, low=[y - 0.5 for y in Y], high=[y + 0.5 for y in Y])
    held_out = Series("held-out", X[::10], [*[y + 1 for y in Y[::10]][:-1], math.nan])
    measured = Series("measured", [0.55, 0.75, 0.95], [0.5, 0.8, 0.96], "points", low=[0.4, 0.7, 0.9], high=[0.6, 0.9, 0.99])
    bins = [k / 10 for k in range(-20, 21)]
    cloud = Series("all", [k % 17 for k in range(400)], [math.sin(k) for k in range(400)], "points")
    return [
        Chart("Reward", "rollouts", "reward", [banded, held_out], [Reference("target", 3.0)]),
        Chart("Calibration", "chance", "share", [measured, Series("ideal", [0.5, 1], [0.5, 1], dashed=True)]),
        Chart("Histogram", "reward", "responses", [Series("all", bins, [100 * math.exp(-(b**2)) for b in bins], "bars")]),
        Chart("Scatter", "tokens", "reward", [cloud], table=[["tokens", "mean"], ["0 to 16", "0.0"]]),
        Chart("Nothing", "x", "y", [Series("none", [], [])]),
        Chart("Rates", "step", "rate", [Series("rate", X, [1e-3 * 0.99**x for x in X])], logarithmic=True),
    ]


@pytest.fixture
def page_of(monkeypatch, tmp_path):
    def write(drawn: list[Chart], parts: list[Segment]):
        read = rendering._text
        monkeypatch.setattr(rendering, "_text", lambda name: TEMPLATE if name == "charts.html" else read(name))
        page = {"charts": [chart.data() for chart in drawn], "parts": parts, "steps": legend(2.0)}
        path = tmp_path / "page.html"
        path.write_text(rendering.render("charts.html", page, rendering.CHART_SCRIPTS), encoding="utf-8")
        monkeypatch.setattr(rendering, "_text", read)
        return path

    return write


def segments() -> list[Segment]:
    return [
        Segment(f"{word} ", f"{word}: raw {k}\npaid 0.1", share_of(k - 9, 9), f"{k - 9:+d}") for k, word in enumerate(WORDS)
    ]


def test_charts_fit_and_are_reached_by_keyboard(page_of, visit, view, shoot):
    page = visit(page_of(charts(), segments()), view)
    assert fits(page) and page.locator("canvas").count() == 6
    assert unreached(page) == []
    page.locator(".segment").nth(9).focus()
    shoot(page, f"charts-{view[0]}-{view[1]}")


def test_tables_have_the_numbers_of_the_charts(page_of, visit):
    drawn = charts()
    page = visit(page_of(drawn, []))
    for number, chart in enumerate(drawn):
        figure = page.locator(".chart").nth(number)
        figure.locator("summary").click()
        figure.locator("details table").wait_for(state="attached")
        cells = figure.locator("details tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        if chart.table:
            assert cells == [list(row) for row in chart.table[1:]]
            continue
        columns = [
            column for series in chart.data()["series"] for column in (series["y"], series.get("low"), series.get("high"))
        ]
        for k, column in enumerate(column for column in columns if column is not None):
            shown = [float(row[k + 1]) for row in cells if row[k + 1]]
            assert shown == [value for value in column if value is not None]


def test_keys_read_numbers_magnify_and_hide(page_of, visit):
    page = visit(page_of(charts()[:1], []))
    plot, values = page.locator(".u-wrap"), page.locator(".u-legend .u-value")
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert values.nth(0).text_content() == "5"
    second = Y[1]
    assert values.nth(1).text_content() == f"{second:.4g} ({second - 0.5:.4g} to {second + 0.5:.4g})"
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert values.nth(0).text_content() == "10"
    page.keyboard.press("0")
    name = page.locator(".u-legend [role=button]").first
    name.focus()
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-pressed") == "false"
    page.keyboard.press("Enter")
    assert name.get_attribute("aria-pressed") == "true"


def test_a_scheme_that_changes_is_drawn_anew(page_of, visit):
    page = visit(page_of(charts()[:1], segments()))
    ground = "getComputedStyle(document.querySelector('.segment')).backgroundColor"
    before, light = page.locator("canvas").first.screenshot(), page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.locator("canvas").first.screenshot() != before and page.evaluate(ground) != light


def test_segments_tell_what_they_are_worth_when_focused(page_of, visit, view):
    page = visit(page_of([], segments()), view)
    segment = page.locator(".segment").nth(3)
    segment.focus()
    assert page.evaluate("getComputedStyle(document.activeElement, '::after').content") == '"on: raw 3\\a paid 0.1"'
    assert fits(page)


def test_hostile_texts_are_only_text(page_of, visit):
    """Without the page's own policy, so that it is not what keeps them from running."""
    texts = list(dict.fromkeys(TEXTS))
    hostile = [Chart(text, text, text, [Series(text, [0, 1], [1, 2])], [Reference(text, 1.5)], text) for text in texts]
    path = page_of(hostile, [Segment(text, text, 0.5, text) for text in map(visible, texts)])
    html, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    path.write_text(html, encoding="utf-8")
    page = visit(path)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert count == 1 and RUN.split("'")[1] == "data-ran" and page.locator("html").get_attribute("data-ran") is None
    assert page.locator("iframe, img, svg, base").count() == 0 and page.locator(".chart").count() == len(texts)
    assert page.locator("figcaption").all_text_contents() == [chart.data()["title"] for chart in hostile]
