"""The report in a browser: every control, the keyboard, a phone and a wide window, a watched page, and how fast it opens."""

import json
import random
import re
import threading
import time

import pytest
from looks import fits, unreached
from run_folders import best_of_n, command, evaluation, fit, judged, ppo, reward_model, sample, write_rows

from denserl.report.build import report_of
from denserl.report.watch import Server, state_of

TEXT = "one => [...one.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join('')"
WORDS = "the kettle hums in a small garden while boats drift past and nobody minds the rain".split()
PROMPTS = [f"Prompt {k}: what about {word}?" for k, word in enumerate(WORDS)]


def row(step: int, prompt: str, chance: random.Random, parts: int = 6) -> dict:
    """A sample row as train-ppo logs it, with tokens."""
    texts = [" ".join(chance.choices(WORDS, k=3)) + (".\n" if k == 2 else " ") for k in range(parts)]
    segments = [(text, chance.gauss(step / 50, 1)) for text in texts]
    response, ends = "".join(texts), []
    for found in re.finditer(r"\S+\s*", response):
        ends.append(found.end())
    tokens = {
        "end": ends,
        "kl": [round(chance.gauss(0.1, 0.2), 4) for _ in ends],
        "entropy": [round(chance.random() * 3, 4) for _ in ends],
    }
    messages = [{"role": "user", "content": prompt}]
    numbers = {
        "reward": round(sum(paid for _, paid in segments) / 2, 4),
        "kl": round(sum(tokens["kl"]), 4),
        "length": len(ends),
    }
    more = {
        "messages": messages,
        "prompt_id": f"{hash(prompt) & 0xFFFFFF:x}",
        "tokens": tokens,
        "entropy": 1.5,
        "true_reward": step / 100,
    }
    return sample(step, f"<s>{prompt}", *segments, **numbers, **more) | {"ended": chance.random() > 0.2}


def long_run(folder, seed: int, samples: int = 60, steps: int = 60):
    chance = random.Random(seed)
    held_out = [row(step, prompt, chance) for step in (0, steps // 2, steps) for prompt in PROMPTS[:10]]
    ppo(folder, seed, samples=held_out)
    rows = []
    for step in range(1, steps + 1):
        known = {
            "reward": step / 20,
            "kl": step / 9,
            "entropy": 1.5,
            "response_length": 18.0,
            "ended": 0.8,
            "capped": 0.2,
            "policy_loss": -0.01,
        }
        speed = {f"{phase}_seconds": 1.0 + k for k, phase in enumerate(("rollout", "scoring", "update"))}
        quantiles = {"reward_q05": step / 20 - 1, "reward_q50": step / 20, "reward_q95": step / 20 + 1}
        noisy = {name: value + chance.gauss(0, 0.1) for name, value in (known | speed | quantiles).items()}
        rows.append({"step": step, **noisy, "actor_lr": 1e-5, "critic_lr": 1e-4})
        if step % 10 == 0:
            rows[-1] |= {"eval_reward": step / 20, "eval_kl": step / 9, "eval_true_reward": step / 100}
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(folder / "samples.jsonl", [row(1 + k % steps, chance.choice(PROMPTS), chance) for k in range(samples)])
    command(
        folder,
        "train-ppo",
        seed=seed,
        lr=1e-5,
        model=f"sft-{seed}",
        inputs={"data": {"x": {"path": "/x", "bytes": 5, "sha256": "00"}}},
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [long_run(root / f"ppo-{seed}", seed) for seed in range(2)]
    return [
        *runs,
        reward_model(root / "rm"),
        fit(root / "fit"),
        evaluation(root / "judged"),
        best_of_n(root / "bon"),
        judged(root / "judge"),
    ]


@pytest.fixture(scope="module")
def page_file(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_of([str(folder) for folder in folders]).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def single_file(folders, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "report.html"
    path.write_text(report_of([str(folders[0])]).html, encoding="utf-8")
    return path


def test_it_fits_and_keys_reach_everything(page_file, visit, view, shoot):
    page = visit(page_file, view)
    assert fits(page)
    shoot(page, f"report-{view[0]}-{view[1]}")
    page.locator("#unfold").click()
    page.evaluate("document.querySelectorAll('#settings details').forEach(one => { one.open = true; })")
    page.wait_for_timeout(300)
    assert fits(page) and unreached(page) == []
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].filter(one => !one.querySelector('canvas')).length")
    assert drawn == 0
    shoot(page, f"report-open-{view[0]}-{view[1]}")


def test_one_run_is_shown(single_file, visit, view, shoot):
    page = visit(single_file, view)
    assert fits(page)
    shoot(page, f"report-single-{view[0]}-{view[1]}")


def choose(page, **values: str) -> None:
    for name, value in values.items():
        page.locator(f"#controls [name={name}]").select_option(value)
    page.wait_for_timeout(250)


def heads(page) -> list[str]:
    return page.locator("#list h5").all_text_contents()


def numbers(page, name: str) -> list[float]:
    return [float(re.search(rf" {name} (\S+)", text)[1]) for text in heads(page)]


def test_samples_are_searched_sorted_and_turned(single_file, visit, folders):
    page = visit(single_file)
    rows = [
        json.loads(line)
        for name in ("eval_samples", "samples")
        for line in (folders[0] / f"{name}.jsonl").read_text().splitlines()
    ]
    choose(page, view="each", file="")
    assert page.locator("#count").text_content() == f"{len(rows)} responses"
    for name, key in (("reward", "reward"), ("KL", "kl"), ("length", "length")):
        page.locator("#controls [name=sort]").select_option(label=name)
        for order, reverse in (("down", True), ("up", False)):
            choose(page, order=order)
            expected = sorted((row[key] for row in rows), reverse=reverse)[:10]
            assert numbers(page, name) == pytest.approx(expected, rel=1e-3)
    page.locator("#next").click()
    assert page.locator("#place").text_content() == f"11 to 20 of {len(rows)}"
    assert numbers(page, "length") == sorted(row["length"] for row in rows)[10:20]
    page.locator("#previous").click()
    assert page.locator("#previous").is_disabled()
    page.locator("#controls [name=search]").fill("KETTLE HUMS")
    page.wait_for_timeout(250)
    found = sum("kettle hums" in f"{row['messages'][0]['content']}\n{row['response']}".lower() for row in rows)
    assert page.locator("#count").text_content().startswith(f"{found} responses")
    page.locator("#controls [name=search]").fill("nothing has this")
    page.wait_for_timeout(250)
    assert page.locator("#place").text_content() == "none" and page.locator("#list article").count() == 0
    page.locator("#controls [name=search]").fill("")
    choose(page, ended="false", file="0", step="last")
    cut = [row for row in rows[:30] if not row["ended"] and row["step"] == 60]
    assert page.locator("#list .cut").count() == len(cut) == page.locator("#list article").count()
    choose(page, ended="", sort="worst", order="up", step="")
    worst = min(min(part["paid"] for part in row["segments"]) for row in rows[:30])
    shown = page.locator("#list article").first.locator(".segment b").all_text_contents()
    assert min(map(float, shown)) == pytest.approx(worst, abs=0.006)


def test_before_and_after_stand_side_by_side(page_file, visit, folders):
    page = visit(page_file)
    choose(page, view="prompts", file="0", run="")
    assert page.locator("#count").text_content().startswith("10 prompts")
    article = page.locator("#list article").first
    texts = article.locator("h5 b").all_text_contents()
    assert texts == [
        "ppo-0 · held-out · step 0",
        "ppo-0 · held-out · step 60",
        "ppo-1 · held-out · step 0",
        "ppo-1 · held-out · step 60",
    ]
    prompt = article.locator(".prompt").text_content()
    for run, name in enumerate(("ppo-0", "ppo-1")):
        rows = [json.loads(line) for line in (folders[run] / "eval_samples.jsonl").read_text().splitlines()]
        own = [row for row in rows if row["messages"][0]["content"] == prompt and row["step"] in (0, 60)]
        assert own and name
        for place, row in enumerate(sorted(own, key=lambda row: row["step"])):
            box = article.locator(".segments").nth(2 * run + place)
            # Without the numbers behind it.
            text = "".join(box.locator(".segment").evaluate_all(f"all => all.map({TEXT})"))
            assert text.replace("↵\n", "\n") == row["response"]
            labels = [float(label) for label in box.locator("b").all_text_contents()]
            assert labels == pytest.approx([part["paid"] for part in row["segments"]], abs=0.006)


def test_colours_are_of_segments_or_of_tokens(single_file, visit, folders):
    page = visit(single_file)
    choose(page, view="each", file="0")
    first = json.loads((folders[0] / "eval_samples.jsonl").read_text().splitlines()[-1])
    box = page.locator("#list .segments").first
    title = box.locator(".segment").first.get_attribute("title")
    part = first["segments"][0]
    names = {"paid": "paid", "raw": "raw score", "normalised": "normalised score", "change": "change of the score"}
    assert title == ", ".join(f"{shown} {part[name]:+.4f}" for name, shown in names.items())
    for kind in ("token-0", "token-1"):
        choose(page, colour=kind)
        tokens = first["tokens"]
        assert box.locator(".segment").count() == len(tokens["end"])
        assert box.locator(".segment").nth(1).get_attribute("title").startswith(f"KL {tokens['kl'][1]:+.4f} nats, entropy ")
        text = box.locator(".segment").nth(0).evaluate("one => one.firstChild.data")
        assert text == first["response"][: tokens["end"][0]]
    grounds = set(box.locator(".segment").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)"))
    assert len(grounds) > 3 and page.locator("#legend").is_visible()
    choose(page, colour="none")
    assert not page.locator("#legend").is_visible() and box.locator("b").count() == 0


def test_arrows_go_from_part_to_part(single_file, visit):
    page = visit(single_file)
    page.locator("#list .segment").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.activeElement.parentElement.children].indexOf(document.activeElement)") == 2
    page.keyboard.press("ArrowLeft")
    shown = page.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert shown.startswith('"paid ')


def test_settings_that_differ_are_shown_alone(page_file, visit):
    page = visit(page_file)
    rows = page.locator(".settings").first.locator("tbody tr")
    everything = rows.count()
    page.locator("#differing").check()
    visible = [row for row in rows.all() if row.is_visible()]
    assert 0 < len(visible) < everything and all("≠" in row.text_content() for row in visible)
    page.locator("#differing").uncheck()
    assert all(row.is_visible() for row in rows.all())


def test_groups_of_charts_are_opened_and_closed(page_file, visit):
    page = visit(page_file)
    everything = page.locator("#curves .group").count()
    page.locator("#unfold").click()
    assert page.locator("#curves .group[open]").count() == everything
    page.locator("#unfold").click()
    assert page.locator("#curves .group[open]").count() == 0
    page.locator("#curves summary").nth(0).focus()
    page.keyboard.press("Enter")
    assert page.locator("#curves .group[open]").count() == 1
    for link in page.locator("nav a").all():
        link.click()
        assert page.evaluate("location.hash") == link.get_attribute("href")


@pytest.fixture
def server(tmp_path):
    folder = long_run(tmp_path / "run", 0)
    started = Server(0, lambda: report_of([str(folder)], watched=True).html, lambda: state_of([str(folder)]))
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, started
    started.shutdown()
    started.server_close()
    thread.join(10)


def test_a_watched_page_brings_what_is_new_and_keeps_its_place(server, visit):
    folder, started = server
    page = visit(f"http://127.0.0.1:{started.server_address[1]}/")
    choose(page, view="each", file="1")
    page.locator("#controls [name=sort]").select_option(label="KL")
    page.locator("#controls [name=search]").fill("kettle")
    page.wait_for_timeout(250)
    page.locator("#curves .chart details summary").first.click()
    page.locator("#settings").scroll_into_view_if_needed()
    place, last = page.evaluate("scrollY"), page.locator("#curves .chart details tbody tr th").last
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 61, "reward": 99.0, "kl": 3.0, "another number": 1.0}) + "\n")
    with open(folder / "samples.jsonl", "a") as file:
        file.write(json.dumps(row(61, "Prompt of a kettle", random.Random(5)) | {"kl": 1000.0}) + "\n")
    page.locator("#list h5", has_text="KL 1000").first.wait_for(timeout=20_000)
    assert last.text_content() == "61" and page.locator("#controls [name=search]").input_value() == "kettle"
    assert abs(page.evaluate("scrollY") - place) < 60
    assert page.locator("#results tbody tr").first.locator("td").first.text_content() == "61"
    assert "As of" in page.locator("#watched").text_content()


def test_a_watched_page_shows_parts_that_come_later(tmp_path, visit):
    folder = command(tmp_path / "run", "train-ppo", outcome=None)
    started = Server(0, lambda: report_of([str(folder)], watched=True).html, lambda: state_of([str(folder)]))
    thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        page = visit(f"http://127.0.0.1:{started.server_address[1]}/")
        assert page.locator("#curves").count() == 0 and "missing or empty" in page.locator(".remarks").text_content()
        long_run(folder, 0)
        page.locator("#curves canvas").first.wait_for(timeout=20_000)
        assert page.locator("#list article").count() == 10
    finally:
        started.shutdown()
        started.server_close()
        thread.join(10)


def test_it_opens_in_a_second_or_two_from_thirty_thousand_samples(tmp_path, visit):
    """Loosely, for a machine that has other work; the times are printed."""
    folders = [long_run(tmp_path / f"run-{seed}", seed, samples=10_000) for seed in range(3)]
    began = time.perf_counter()
    path = tmp_path / "report.html"
    path.write_text(report_of([str(folder) for folder in folders]).html, encoding="utf-8")
    making = time.perf_counter() - began
    began = time.perf_counter()
    page = visit(path)
    page.locator("#list article").first.wait_for()
    opening = time.perf_counter() - began
    began = time.perf_counter()
    page.locator("#controls [name=file]").select_option("1")
    page.locator("#controls [name=view]").select_option("each")
    page.locator("#controls [name=search]").fill("kettle hums in")
    page.locator("#count", has_text="of 30").wait_for()
    searching = time.perf_counter() - began
    size = path.stat().st_size / 2**20
    print(f"\n{size:.1f} MiB: made in {making:.1f} s, opened in {opening:.1f} s, searched in {searching:.1f} s")
    assert making < 60 and opening < 10 and searching < 5
