"""The site of `make docs`, opened as a file: searching finds, and what is found can be opened."""

import pytest
from conftest import ROOT

SITE = ROOT / "runs/site/index.html"


@pytest.mark.parametrize("width", [320, 1400])
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("KL explodes", "docs/troubleshooting.html"),
        ("entropy threshold", "examples/notebooks/1_segments"),
        ("inspect", "docs/inspect.html"),
    ],
)
def test_searching_finds_the_page_that_tells_it(browser, width, words, page):
    context = browser.new_context(viewport={"width": width, "height": 900})
    asked: list[str] = []
    try:
        site = context.new_page()
        site.on("request", lambda request: asked.append(request.url))
        site.goto(SITE.as_uri())
        site.locator("label.md-header__button[for=__search]" if width == 320 else ".md-search__input").click()
        site.locator(".md-search__input").press_sequentially(words)
        first = site.locator(".md-search-result__link").first
        first.wait_for(timeout=20_000)
        first.click()
        site.wait_for_url(f"**/{page}*")
        assert site.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
