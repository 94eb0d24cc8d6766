"""The report of a demo run, from folders made by hand: what is shown, what is escaped, what is asked for when missing."""

import base64
import re

import pytest
from demo_runs import PNG, RESULTS, make_run, sample, write_rows
from html_pages import Page

from denserl.errors import UserError
from denserl.evaluation import plots, report
from denserl.evaluation.plots import Curve, plot_levels
from denserl.evaluation.report import format_table, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></article><b>",
    "\" onmouseover=\"alert(1)' x='",
    "{{ 7 * 7 }}{% raw %}${7*7}",
    "&lt;&amp;&#60;",
    "<!-- --><![CDATA[",
]


def page_of(folder, samples: list[dict]) -> Page:
    make_run(folder, samples)
    write_report(folder, RESULTS, folder / "out/report.html")
    page = Page((folder / "out/report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def shown(page: Page) -> str:
    return " ".join(page.text.split())


def test_table():
    assert format_table(RESULTS).split("\n") == [
        "level              RM accuracy   best  share  true before  true after    KL  rollouts to 0.3",
        "-----------------  -----------  -----  -----  -----------  ----------  ----  ---------------",
        "segment                  0.830  0.850    98%        -0.20       +0.50   9.1             1024",
        "segment-published        0.830  0.850    98%        -0.20       +0.30   7.0             2048",
        "bandit                   0.800  0.850    94%        -0.20       +0.10  12.0      not reached",
    ]


def test_page_is_self_contained(tmp_path):
    page = page_of(tmp_path, [sample(0, "p", ("a", 1.0, 2.0)), sample(5, "p", ("b", 1.0, 2.0))])
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "srcset")]
    images = page.values("src")
    # Four learning curves, one of accuracy, and the segment level's normaliser, as published; the others need none.
    assert [image.split(";")[0] for image in images] == ["data:image/svg+xml"] * 5 + ["data:image/png"]
    assert base64.b64decode(images[-1].split(",")[1]) == PNG
    assert all(b"<svg" in base64.b64decode(image.split(",")[1]) for image in images[:5])
    assert "default-src 'none'" in page.values("content")[-1]
    html = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"url\(|@import|https?:", html)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_page_says_what_was_run(tmp_path):
    text = shown(page_of(tmp_path, [sample(0, "p", ("a", 1.0, 2.0))]))
    assert "segment (each segment is paid what it changes in the score), segment-published (each" in text
    assert "as published), bandit (one reward per response)." in text
    assert "best reachable pair accuracy (0.850)" in text
    assert "PPO sampled up to 320 rollouts" in text  # step 5, 64 rollouts each
    assert "With seed 7, everything took 4.9 minutes. denserl 0.1.0, torch 2.13.0" in text
    for row in format_table(RESULTS).split("\n")[2:]:
        assert " ".join(row.split()) in text


def test_samples_before_and_after(tmp_path):
    """The first and last evaluation side by side, three prompts at most, with rewards, true reward and cut-off marks."""
    samples = [
        sample(
            step, f"prompt{i}", (f"s{step}p{i}", 0.12344, -1.5), (" tail\n", -3.0, 2.0), ended=step < 50, true_reward=step / 100
        )
        for step in (0, 25, 50)
        for i in range(4)
    ]
    page = page_of(tmp_path, samples)
    text = shown(page)
    for paid, times in ((("-3.00", "+4.00"), 2), (("-1.50", "+2.00"), 1)):
        # What a segment changed, or, in the published way alone, its normalised reward.
        before = f"before PPO · true reward +0.00 s0p0 +0.12 {paid[0]} tail↵ -3.00 {paid[1]}"
        after = (
            f"after 3200 rollouts · true reward +0.50 s50p0 +0.12 {paid[0]} tail↵ -3.00 {paid[1]} cut off by the length limit"
        )
        assert text.count(f"prompt0 {before} {after}") == times
    assert text.count("cut off by the length limit") == 9
    assert "prompt2" in text and "prompt3" not in text and "s25p0" not in text
    title = "raw +0.1234, normalised -1.5000; this segment changed the score by -3.0000"
    assert page.values("title").count(title) == 18
    # The 95 % quantile of 3 and 4, twelve times each, and 1.5 and 2, six times each, is 4: the last colour is the second one's.
    assert "paid -4.0 -3.0 -2.0 -1.0 +0.0 +1.0 +2.0 +3.0 +4.0 and beyond" in text
    assert page.values("style").count("--share: 1.0") == 12 + 1


def test_sample_without_segments_or_true_reward(tmp_path):
    text = shown(page_of(tmp_path, [sample(0, "p"), sample(5, "p")]))
    assert text.count("before PPO (empty response) after 320 rollouts (empty response)") == 3


def test_hostile_text_is_only_text(tmp_path):
    """Prompts and responses add no tag and no attribute, and are read back as they were."""
    control = "\x1b]0;title\x07\u202e\ud800"
    samples = [sample(step, text + control, (text + control, 1.0, 2.0)) for text in HOSTILE[:3] for step in (0, 5)]
    samples += [sample(step, text, (text, 1.0, 2.0)) for text in HOSTILE[3:] for step in (0, 5)]
    tame = [sample(row["step"], "p", ("a", 1.0, 2.0)) for row in samples]
    pages = {}
    for name, rows in (("hostile", samples), ("tame", tame)):
        (tmp_path / name).mkdir()
        pages[name] = page_of(tmp_path / name, rows)
    assert pages["hostile"].tags == pages["tame"].tags
    assert [name for name, _ in pages["hostile"].attributes] == [name for name, _ in pages["tame"].attributes]
    for text in HOSTILE[:3]:
        # Three ways, and in each the prompt and both responses.
        assert pages["hostile"].text.count(text + "‹U+001B›]0;title‹U+0007›‹U+202E›‹U+D800›") == 3 * 3
    html = (tmp_path / "hostile/out/report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_template_text_is_not_run(tmp_path):
    """Nor is text that is markup already; a page shows three prompts, the other texts are above."""
    page = page_of(tmp_path, [sample(step, text, (text, 1.0, 2.0)) for text in HOSTILE[3:] for step in (0, 5)])
    assert [page.text.count(text) for text in HOSTILE[3:]] == [3 * 3] * 3


def test_learning_curves_hold_the_held_out_numbers(tmp_path, monkeypatch):
    drawn = []

    def record(curves, path, **names):
        drawn.append((curves, names))
        path.write_text("<svg/>")

    monkeypatch.setattr(report, "plot_levels", record)
    make_run(tmp_path, [sample(0, "p", ("a", 1.0, 2.0))])
    rows = [
        {"step": 0, "eval_kl": 0.0, "eval_reward": 0.25, "eval_true_reward": -0.5},
        {"step": 1, "kl": 3.0, "reward": 9.0},
        {"step": 2, "kl": 3.0, "eval_kl": 1.5, "eval_reward": None, "eval_true_reward": 0.5},
    ]
    write_rows(tmp_path / "ppo-segment/metrics.jsonl", rows)
    write_report(tmp_path, RESULTS, tmp_path / "report.html")
    true_reward, kl, reward, frontier, accuracy = drawn
    assert true_reward[0]["segment"] == Curve([0, 128], [-0.5, 0.5])
    assert true_reward[1]["reference"] == frontier[1]["reference"] == (0.3, "target 0.3")
    assert kl[0]["segment"] == Curve([0, 128], [0.0, 1.5])
    assert reward[0]["segment"] == Curve([0], [0.25])
    assert frontier[0]["segment"] == Curve([0.0, 1.5], [-0.5, 0.5])
    assert kl[0]["bandit"] == Curve([0, 320], [0.5, 0.5])
    assert accuracy[0]["bandit"] == Curve([10], [0.7])
    assert accuracy[1]["points"]["bandit"] == Curve([20], [0.8])
    assert accuracy[1]["reference"] == (0.85, "best reachable 0.850")


def test_plot_draws_each_level_its_own_way(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    curves = {"segment": Curve([0, 1], [2.0, 3.0]), "token": Curve([0, 1], [4.0, 5.0]), "bandit": Curve([], [])}
    plot_levels(
        curves, tmp_path / "a.svg", xlabel="x", ylabel="y", reference=(0.5, "goal"), points={"token": Curve([1], [6.0])}
    )
    (panel,) = figures[0].axes
    lines = panel.get_lines()
    assert [line.get_xydata().tolist() for line in lines[:2]] == [[[0, 2], [1, 3]], [[0, 4], [1, 5]]]
    assert len({(line.get_color(), line.get_marker()) for line in lines[:3]}) == 3
    assert lines[3].get_xydata().tolist() == [[1, 6]] and lines[3].get_color() == lines[1].get_color()
    assert set(lines[4].get_ydata()) == {0.5} and [text.get_text() for text in panel.texts] == ["goal"]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["segment", "token", "bandit"]


@pytest.mark.parametrize(
    "name, command",
    [
        ("ppo-bandit/metrics.jsonl", "train-ppo"),
        ("ppo-segment/eval_samples.jsonl", "train-ppo"),
        ("rm-segment/metrics.jsonl", "train-rm"),
        ("fit-segment/normalizer.png", "fit-normalizer"),
    ],
)
def test_missing_file_names_the_command(tmp_path, name, command):
    make_run(tmp_path, [sample(0, "p", ("a", 1.0, 2.0))])
    (tmp_path / name).unlink()
    with pytest.raises(UserError) as error:
        write_report(tmp_path, RESULTS, tmp_path / "report.html")
    assert str(tmp_path / name) in error.value.found
    assert f"`denserl {command} --output_dir {(tmp_path / name).parent}`" in error.value.found
    assert error.value.fix.startswith(f"denserl demo --output_dir {tmp_path} ")
    assert not (tmp_path / "report.html").exists()
