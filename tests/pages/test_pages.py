"""Pages: what may run on them, what data and colours stand on them; in a browser they are looked at by tests/browser/."""

import base64
import hashlib
import json
import math
import re
from importlib.resources import files

import pytest
from hostile import TEXTS, acting
from html_pages import Page, luminance

from denserl.pages import rendering
from denserl.pages.charts import Chart, Reference, Series
from denserl.pages.rendering import CHART_SCRIPTS, render
from denserl.pages.segments import Segment, Step, legend, limit_of, share_of
from denserl.terminal import visible

CHARTS = """{% extends "pages/page.html" %}{% from "pages/charts.html" import chart %}
{% block style %}{% include "pages/charts.css" %}{% endblock %}{% block body %}{{ chart(drawn) }}{% endblock %}"""
SEGMENTS = """{% extends "pages/page.html" %}{% from "pages/segments.html" import coloured, legend %}
{% block body %}{{ coloured(parts) }}{{ legend(steps, before="low", after="high") }}{% endblock %}"""


@pytest.fixture
def written(monkeypatch):
    """Renders a template that stands in no file."""

    def make(template: str, page: dict, scripts=(), **more) -> str:
        read, own = rendering._text, f"test/{hash(template)}.html"
        monkeypatch.setattr(rendering, "_text", lambda name: template if name == own else read(name))
        return render(own, page, scripts, **more)

    return make


def policy(html: str) -> dict[str, str]:
    (content,) = re.findall('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    return dict(part.strip().split(" ", 1) for part in content.split(";"))


def scripts(html: str) -> list[str]:
    """What a browser would take for scripts to run."""
    return re.findall("<script>(.*?)</script", html, re.DOTALL)


def test_a_page_allows_its_own_scripts_by_their_hashes_and_nothing_else(written):
    chart = Chart("t", "x", "y", [Series("s", [0, 1], [1.0, 2.0])])
    html = written(CHARTS, {"drawn": chart.data()}, CHART_SCRIPTS)
    assert policy(html).keys() == {"default-src", "img-src", "style-src", "script-src"}
    assert policy(html)["default-src"] == "'none'" and policy(html)["img-src"] == "data:"
    shown = scripts(html)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in shown]
    assert len(shown) == 2 and policy(html)["script-src"] == " ".join(f"'sha256-{one}'" for one in hashes)
    bare = written("{% extends 'pages/page.html' %}", {})
    assert "script-src" not in policy(bare) and scripts(bare) == []
    assert policy(written("{% extends 'pages/page.html' %}", {}, connects=True))["connect-src"] == "'self'"


def test_the_library_of_charts_is_npms_with_its_licence():
    """uplot 1.6.32; the sum is of the file in the package that npm names by the integrity sha512-KIMVnG68zvu5...kyTxpiQIw==."""
    folder = files("denserl.pages").joinpath("vendor")
    code = folder.joinpath("uPlot.iife.min.js").read_bytes()
    assert hashlib.sha256(code).hexdigest() == UPLOT and b"(v1.6.32)" in code[:80]
    assert "MIT License" in folder.joinpath("uPlot.LICENSE").read_text()
    assert b"</script" not in code and b"<!--" not in code


UPLOT = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"


def test_hostile_text_ends_no_data_and_adds_no_tag(written):
    def page(texts: list[str]) -> str:
        series = [Series(text, [0, 1], [1.0, 2.0]) for text in texts]
        chart = Chart(texts[0], texts[1], texts[2], series, [Reference(texts[3], 1.0)], note=texts[4], table=[texts, texts])
        return written(CHARTS, {"drawn": chart.data()}, CHART_SCRIPTS)

    html = page(TEXTS)
    hostile, tame = Page(html), Page(page([f"text {i}" for i in range(len(TEXTS))]))
    assert hostile.tags == tame.tags and hostile.open == [] and hostile.attributes == tame.attributes
    assert not acting(html.replace(files("denserl.pages").joinpath("vendor/uPlot.iife.min.js").read_text().strip(), ""))
    (data,) = re.findall('<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert [one["name"] for one in json.loads(data)["series"]] == [visible(text) for text in TEXTS]


def test_segments_are_read_by_pointer_and_keyboard(written):
    parts = [Segment("a<b", 'said "+1"', 0.5, "+1.0"), Segment("c", "t", -1.0)]
    page = Page(written(SEGMENTS, {"parts": parts, "steps": [Step("0", 0.0)]}))
    assert page.values("title") == ['said "+1"', "t"] and page.values("tabindex") == ["0", "0"]
    assert page.values("style") == ["--share: 0.5", "--share: -1.0", "--share: 0.0"]
    assert "a<b+1.0c" in page.text and "(empty)" in Page(written(SEGMENTS, {"parts": [], "steps": []})).text


def schemes() -> list[dict[str, str]]:
    """The colours of the page in light and in dark."""
    css = files("denserl.pages").joinpath("page.html").read_text(encoding="utf-8")
    light, dark = re.split(r"@media screen and \(prefers-color-scheme: dark\)", css)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in (light, dark.split("* { box-sizing")[0])]


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance(colour) + 0.05 for colour in (one, other))
    return high / low


def test_text_is_read_on_every_colour_of_both_schemes():
    """At least 7 : 1 (WCAG AAA) where ink stands on colours of numbers; small print, links and marks at least 4.5, lines 3."""
    for colours in schemes():
        for end in ("low", "high"):
            for tenth in range(11):
                ends = [[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in (end, "middle")]
                mixed = "".join(f"{round(a * tenth / 10 + b * (1 - tenth / 10)):02x}" for a, b in zip(*ends, strict=True))
                assert contrast(colours["ink"], f"#{mixed}") >= 7
        for ground in ("paper", "ground"):
            assert min(contrast(colours[name], colours[ground]) for name in ("soft", "bad", "link")) >= 4.5
            assert contrast(colours["edge"], colours[ground]) >= 3
            assert min(contrast(colours[f"series-{i}"], colours[ground]) for i in range(10)) >= 2.7
    light, dark = schemes()
    assert light.keys() == dark.keys()


def test_shares_end_at_the_limit():
    assert [share_of(value, 2.0) for value in (-5.0, -1.0, 0.0, 0.5, 2.0, 9.0)] == [-1, -0.5, 0, 0.25, 1, 1]
    assert share_of(math.nan, 2.0) == share_of(math.inf, 2.0) == 0


def test_the_colours_end_where_all_but_a_twentieth_of_the_numbers_lie():
    # 0, 1, .., 100 and their negatives, twice as many as one-sided: the 95 % quantile of sizes is 95.
    assert limit_of([*range(101), *(-k for k in range(101)), math.nan]) == pytest.approx(95, abs=0.5)
    assert limit_of([]) == limit_of([0.0, 0.0]) == limit_of([math.nan]) == 1.0
    assert legend(2.0, 5) == [("-2.0", -1.0), ("-1.0", -0.5), ("+0.0", 0.0), ("+1.0", 0.5), ("+2.0", 1.0)]


def test_numbers_of_charts_are_rounded_and_gaps_are_null():
    data = Chart(
        "t", "x", "y", [Series("s", [0, 1, 2], [1 / 3, math.nan, 2.0], low=[None, 0.1, -math.inf], high=[1, 2, 3])]
    ).data()
    (series,) = data["series"]
    assert series["y"] == [0.333333, None, 2] and series["low"] == [None, 0.1, None] and series["x"] == [0, 1, 2]
