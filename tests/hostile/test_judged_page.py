"""Hostile answers and judges on the page of judged policies: nothing of them is a tag, an attribute or a script."""

import re

import pytest
from hostile import PAGE_TEXTS, TEXTS, acting
from html_pages import Page
from test_page import BROWSER, dom, ran

from denserl.evaluation.policies.answers import Gaps, PolicyAnswer, Question
from denserl.evaluation.policies.outcomes import Game, Judged, Match, Outcome, Played
from denserl.evaluation.policies.page import write_page


def outcome(text: str, first: str) -> Outcome:
    """Whose every text is hostile, also what the judge said."""
    question = Question(text, [{"role": "user", "content": text}], (text,), category=text)
    answers = [PolicyAnswer(text, (text, text[::-1]), truncated=(True, False)) for _ in range(2)]
    worths = (1.0, None)
    games = [
        Played(Game(turn, True), [], first, first, worth, "valid" if worth else "cut") for turn, worth in enumerate(worths, 1)
    ]
    return Outcome(Match(question, *answers), tuple(games), (1.0,))


def written(target, texts: list[str]) -> str:
    first = texts[0]
    policies = [Judged(first, [outcome(text, first) for text in texts], Gaps([], [], []))]
    write_page(target, first, texts[:2], {first: [["a", first], ["b", "c"]]}, policies, first)
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[str, str]:
    folder, texts = tmp_path_factory.mktemp("pages"), list(dict.fromkeys(TEXTS))
    return written(folder / "hostile.html", texts), written(folder / "tame.html", [f"text {i:02}" for i in range(len(texts))])


def test_hostile_answers_add_no_tag_and_no_attribute(pages):
    hostile, tame = map(Page, pages)
    assert hostile.tags == tame.tags and hostile.open == [] and not acting(pages[0])
    assert hostile.attributes == tame.attributes
    assert all(hostile.text.count(text) >= 3 for text in PAGE_TEXTS[:-1])


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_in_a_browser_no_hostile_answer_runs_and_answers_are_filtered(pages, tmp_path):
    """Without the page's own policy against scripts; a script of the test's chooses a category."""
    page, count = re.subn('<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[0])
    assert count == 1 and not ran(dom(tmp_path / "page.html", page))
    choose = """<script>
      document.querySelectorAll('fieldset')[0].querySelectorAll('input')[1].click();
      const shown = [...document.querySelectorAll('.item')].filter(item => getComputedStyle(item).display !== 'none');
      document.documentElement.setAttribute('data-shown', shown.length);
    </script></body>"""
    assert 'data-shown="1"' in dom(tmp_path / "filtered.html", page.replace("</body>", choose))
