"""Hostile text on the page of a run: in a real browser where one is installed, and as the tags and attributes it adds: none."""

import json
import re
import shutil
import subprocess

import pytest
from hostile import PAGE_TEXTS, RUN, TERMINAL_TEXTS, TEXTS, acting
from html_pages import Page
from run_folders import FIT, command, fit, ppo, sample, samples_of, write_rows

from denserl.report.build import report_of
from denserl.terminal import visible

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def made(folder, texts: list[str]) -> str:
    """The page of a run and a fit in which everything that a file can say is one of these texts."""
    samples = [sample(step, text, (text, 1.0), prompt_id=text, ended=False) for step in (0, 5) for text in texts]
    run = ppo(folder / "ppo", samples=samples)
    inputs = {text: {text: {"path": text, "sha256": text}} for text in texts}
    command(run, "train-ppo", outcome=texts[0], inputs=inputs, **{f"{text} ": text for text in texts})
    entries = json.loads((run / "command.json").read_text())
    entries[0] |= {"versions": {text: text for text in texts}, "started": texts[1], "ended": texts[2]}
    (run / "command.json").write_text(json.dumps(entries))
    rows = (run / "metrics.jsonl").read_text()
    write_rows(run / "metrics.jsonl", [{"step": step, **{f"{text} ": step for text in texts}} for step in (1, 2)])
    with open(run / "metrics.jsonl", "a") as file:
        file.write(rows)
    return report_of([str(run), str(fit(folder / "fit", **{f"{text} ": FIT for text in texts}))]).html


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run whose every text is hostile, and of the same run with tame ones."""
    texts = list(dict.fromkeys(TEXTS))
    given = {"hostile": texts, "tame": [f"text {i:02}" for i in range(len(texts))]}
    return {name: made(tmp_path_factory.mktemp(name), texts) for name, texts in given.items()}


def test_hostile_text_adds_no_tag_and_no_attribute(pages):
    hostile, tame = Page(pages["hostile"]), Page(pages["tame"])
    assert hostile.tags == tame.tags and hostile.open == []
    assert [name for name, _ in hostile.attributes] == [name for name, _ in tame.attributes]


def test_hostile_text_is_shown_and_does_not_act_on_the_reader(pages):
    page = Page(pages["hostile"])
    scripts = re.compile(r"<script>.*?</script>", re.DOTALL)  # the page's own, which are the same on every page
    assert scripts.findall(pages["hostile"]) == scripts.findall(pages["tame"])
    assert not acting(scripts.sub("", pages["hostile"]))
    for text in TERMINAL_TEXTS:
        first = next(c for c in text if not c.isprintable() and c != "\u200b")
        assert f"‹U+{ord(first):04X}›" in page.text
    for text in PAGE_TEXTS[:-1]:
        assert page.text.count(text) >= 4  # settings, versions and inputs
    rows = samples_of(pages["hostile"])
    assert {segment[0] for row in rows["rows"] for segment in row[8]} == {visible(text) for text in TEXTS}


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_in_a_browser_no_hostile_text_runs(pages, tmp_path):
    """Without the page's own policy against scripts, so that the escaping, and its scripts' care, alone must hold."""
    body = "".join(f"<p>{text}</p>" for text in PAGE_TEXTS[3:6] + PAGE_TEXTS[:1])
    raw = dom(tmp_path / "raw.html", f"<!doctype html><html><body>{body}</body></html>")
    assert ran(raw), "the browser ran no script at all, so that this test could not fail"
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    page, count = policy.subn("", pages["hostile"])
    assert count == 1
    shown = dom(tmp_path / "page.html", page)
    assert not ran(shown) and 'class="segment coloured"' in shown and "u-legend" in shown
    tame = dom(tmp_path / "tame.html", policy.sub("", pages["tame"]))
    assert set(Page(shown).tags) == set(Page(tame).tags)


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
