"""Hostile text on the report page: in a real browser where one is installed, and as the tags and attributes it adds: none."""

import re
import shutil
import subprocess

import pytest
from demo_runs import RESULTS, make_run, sample
from hostile import PAGE_TEXTS, RUN, TERMINAL_TEXTS, TEXTS, acting
from html_pages import Page

from denserl.evaluation import report
from denserl.evaluation.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOWN = len(TEXTS)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a run whose every text is hostile, and of the same run with tame ones."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "SAMPLES_SHOWN", SHOWN)
        for name, texts in (("hostile", TEXTS), ("tame", [f"text {i}" for i in range(SHOWN)])):
            folder = tmp_path_factory.mktemp(name)
            make_run(folder, [sample(step, text, (text, 1.0, 2.0), true_reward=0.5) for step in (0, 5) for text in texts])
            write_report(folder, RESULTS, folder / "report.html")
            made[name] = (folder / "report.html").read_text(encoding="utf-8")
    return made


def test_hostile_text_adds_no_tag_and_no_attribute(pages):
    hostile, tame = Page(pages["hostile"]), Page(pages["tame"])
    assert hostile.tags == tame.tags and hostile.open == []
    assert [name for name, _ in hostile.attributes] == [name for name, _ in tame.attributes]
    # Alternatives and sizes of pictures differ in no way either: only what lies between tags does.
    assert hostile.values("title") == tame.values("title") and hostile.values("alt") == tame.values("alt")


def test_hostile_text_is_shown_and_does_not_act_on_the_reader(pages):
    page = Page(pages["hostile"])
    assert not acting(pages["hostile"])
    for text in TERMINAL_TEXTS:
        first = next(c for c in text if not c.isprintable() and c != "\u200b")
        assert f"‹U+{ord(first):04X}›" in page.text
    for text in PAGE_TEXTS[:-1]:
        assert page.text.count(text) >= 2 * 3  # two levels, and in each the prompt and both responses


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_in_a_browser_no_hostile_text_runs(pages, tmp_path):
    """Without the page's own policy against scripts, so that the escaping alone must hold."""
    body = "".join(f"<p>{text}</p>" for text in PAGE_TEXTS[3:6] + PAGE_TEXTS[:1])
    raw = dom(tmp_path / "raw.html", f"<!doctype html><html><body>{body}</body></html>")
    assert ran(raw), "the browser ran no script at all, so that this test could not fail"
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    page, count = policy.subn("", pages["hostile"])
    assert count == 1
    shown = dom(tmp_path / "page.html", page)
    assert not ran(shown) and "denserl: demo run" in shown
    assert Page(shown).tags == Page(dom(tmp_path / "tame.html", policy.sub("", pages["tame"]))).tags


def ran(dom: str) -> bool:
    (root,) = re.findall("<html[^>]*>", dom)[:1]
    assert RUN.split("'")[1] == "data-ran"
    return "data-ran" in root


def dom(path, html: str) -> str:
    """What the browser makes of the page after its scripts have run."""
    path.write_text(html, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=1000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()
