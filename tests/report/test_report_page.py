"""Pages of runs made by hand: the numbers of the page are those of the files, and what was said of them is in words."""

import json
import math
from statistics import mean, stdev

import pytest
from html_pages import Page
from run_folders import (
    BINS,
    FIT,
    PNG,
    answered,
    best_of_n,
    charts_of,
    command,
    evaluation,
    fit,
    judged,
    ppo,
    reward_model,
    sample,
    samples_of,
    series_of,
    write_rows,
)

from denserl.errors import UserError
from denserl.report import sampled
from denserl.report.build import report_of
from denserl.report.judged import r2_in_words

TOKENS = {"end": [1, 2, 4], "kl": [0.5, -0.25, 0.0], "entropy": [1.0, 2.0, 0.5]}


def shown(html: str) -> str:
    return " ".join(Page(html).text.split())


def test_the_curves_are_the_numbers_of_the_file(tmp_path):
    folder = ppo(tmp_path / "a")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    charts = charts_of(report_of([str(folder)]).html)
    for title, name in (
        ("Reward", "reward"),
        ("KL", "kl"),
        ("Learning rates", "actor_lr"),
        ("Seconds by phase", "rollout_seconds"),
    ):
        for label, key in (("training", name), ("held-out", f"eval_{name}")):
            expected = [(row["step"], float(f"{row[key]:.6g}")) for row in rows if key in row]
            assert series_of(charts[title]).get(label, []) == expected or not expected
    # A number that was not finite is a gap; a chart of gaps alone is none.
    assert "Policy loss" not in charts and charts["Reward"]["xlabel"] == "iteration"


def test_rewards_stand_against_their_distance(tmp_path):
    charts = charts_of(report_of([str(ppo(tmp_path / "a"))]).html)
    assert series_of(charts["Held-out true reward for its KL"])["a"] == [(0, -0.5), (1.25, 0.5)]
    assert series_of(charts["Held-out reward for its KL"])["a"] == [(0, 0.125), (1.25, 0.875)]


def test_a_run_is_compared_with_others_line_by_line(tmp_path):
    folders = [str(ppo(tmp_path / name, shift=shift)) for name, shift in (("a", 0.0), ("b", 1.0))]
    report = report_of(folders)
    lines = series_of(charts_of(report.html)["Reward"])
    assert list(lines) == ["a, training", "a, held-out", "b, training", "b, held-out"]
    assert [y - x for (_, x), (_, y) in zip(lines["a, training"], lines["b, training"], strict=True)] == pytest.approx(
        [1.0] * 3, abs=1e-5
    )
    chart = charts_of(report.html)["Reward"]["series"]
    assert [series["colour"] for series in chart] == [0, 0, 1, 1] and [series["dashed"] for series in chart] == [
        False,
        True,
    ] * 2
    assert "0.125 → 0.875" in report.text and "1.125 → 1.875" in report.text and "finished" in report.text


def test_seeds_are_one_line_with_an_interval(tmp_path):
    """Student's t of three runs: 4.302653 at 2 degrees of freedom (tables)."""
    shifts = [0.0, 0.3, 1.2]
    data = {"data": {"x.jsonl": {"path": "x", "sha256": "00"}}}
    folders = [str(ppo(tmp_path / str(k), k, shift, model=f"sft-{k}")) for k, shift in enumerate(shifts)]
    for k in range(3):
        command(tmp_path / str(k), "train-ppo", seed=k, data=[f"copy-{k}"], lr=1, inputs=data)
    report = report_of(folders, seeds="mean")
    (line, held_out) = charts_of(report.html)["Reward"]["series"]
    values = [1.0 + shift for shift in shifts]
    half = 4.302653 * stdev(values) / math.sqrt(3)
    assert line["name"] == "0 (mean of 3 seeds), training" and held_out["name"] == "0 (mean of 3 seeds), held-out"
    assert (line["y"][-1], line["low"][-1], line["high"][-1]) == pytest.approx(
        (mean(values), mean(values) - half, mean(values) + half), rel=1e-5
    )
    assert len(charts_of(report_of(folders).html)["Reward"]["series"]) == 6  # apart, unless asked for


@pytest.mark.parametrize("other", [{"lr": 2, "seed": 1}, {"lr": 1, "seed": 0}], ids=["another setting", "the same seed"])
def test_runs_that_are_no_seeds_of_one_another_stay_apart(tmp_path, other):
    folders = [str(ppo(tmp_path / "a", lr=1)), str(ppo(tmp_path / "b", **other))]
    assert len(charts_of(report_of(folders, seeds="mean").html)["Reward"]["series"]) == 4


def test_samples_stand_on_the_page_as_in_the_file(tmp_path):
    rows = [sample(0, "p", ("a", 0.5), ("bcd", -1.5), reward=0.3333333333, kl=0.25, length=3, tokens=TOKENS, prompt_id="ab12")]
    rows += [sample(3, "p", ("e\x1b[31m", 2.0), true_reward=-1.0, ended=False), sample(3, "q", response="no segments")]
    data = samples_of(report_of([str(ppo(tmp_path / "a", samples=rows))]).html)
    first, second, third = [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]
    assert [data["prompts"][row["prompt"]] for row in (first, second, third)] == ["p", "p", "q"]
    assert first["segments"] == [["a", 0.5, 0.25, 1, 0.5], ["bcd", -1.5, -0.75, -3, -1.5]] and first["response"] is None
    assert first["tokens"] == [TOKENS["end"], TOKENS["kl"], TOKENS["entropy"]] and first["id"] == "ab12"
    numbers = dict(zip((name for name, _ in data["numbers"]), first["numbers"], strict=True))
    assert numbers == {"reward": 0.333333, "true reward": None, "gold reward": None, "KL": 0.25, "length": 3, "entropy": None}
    assert second["segments"][0][0] == "e‹U+001B›[31m" and second["ended"] is False and second["tokens"] is None
    assert third["segments"] == [] and third["response"] == "no segments"
    assert list(sampled.OF_SEGMENTS) == ["paid", "raw", "normalised", "change"]


def test_messages_are_shown_in_the_place_of_the_rendered_prompt(tmp_path):
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    rows = [sample(0, "<s>why?", messages=said[1:]), sample(0, "<s>x", messages=said), sample(0, "<s>old")]
    data = samples_of(report_of([str(ppo(tmp_path / "a", samples=rows))]).html)
    assert [data["prompts"][row[3]] for row in data["rows"]] == ["why?", "system: be brief\n\nuser: why?", "<s>old"]


def test_ends_of_tokens_follow_a_response_that_is_shown_otherwise(tmp_path):
    """Each control character is eight characters long where it is shown."""
    row = sample(0, "p", ("\x07a\x07", 1.0), tokens={"end": [1, 2, 3], "kl": [0.0] * 3, "entropy": [0.0] * 3})
    data = samples_of(report_of([str(ppo(tmp_path / "a", samples=[row]))]).html)
    assert data["rows"][0][-1][0] == [8, 9, 17]


def test_only_so_many_rows_are_shown_and_the_first_step_is_among_them(tmp_path):
    rows = [sample(step, f"p{k}", (f"{step}", 1.0)) for step in range(10) for k in range(3)]
    report = report_of([str(ppo(tmp_path / "a", samples=rows))], samples=9)
    assert [row[2] for row in samples_of(report.html)["rows"]] == [0, 0, 0, 8, 8, 8, 9, 9, 9]
    assert "9 of 30 rows are shown" in report.text
    assert 'id="rows"' not in report_of([str(tmp_path / "a")], samples=0).html


def test_rewards_of_the_last_quarter_are_drawn(tmp_path):
    rows = [sample(step, "p", ("x", 0.0), reward=float(step), length=step + 1) for step in range(101)]
    charts = charts_of(report_of([str(ppo(tmp_path / "a", samples=rows))]).html)
    (bars,) = charts["Rewards of the last responses"]["series"]
    assert "26" in charts["Rewards of the last responses"]["note"] and sum(bars["y"]) == pytest.approx(1, abs=1e-4)
    (points,) = charts["Reward and length"]["series"]
    assert list(zip(points["x"], points["y"], strict=True)) == [(step + 1, step) for step in range(75, 101)]
    assert charts["Reward and length"]["note"] == "Correlation of reward and length: +1.00."


def test_calibration_has_wilsons_intervals(tmp_path):
    """Of 5 right among 10, by the formula in Wilson (1927): 0.2366 to 0.7634."""
    bins = [{**BINS[0], "n": 10}]
    html = report_of([str(evaluation(tmp_path / "e", calibration={"ece": 0.0625, "bins": bins}))]).html
    measured, ideal = charts_of(html)["Calibration"]["series"]
    assert (measured["x"], measured["y"]) == ([0.55], [0.5]) and ideal["y"] == [0.5, 1]
    assert (measured["low"][0], measured["high"][0]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert "overall 0.7500 [0.7000, 0.8000]" in shown(html) and "easy 0.8750 [0.8000, 0.9500] (n 50)" in shown(html)


def test_fits_are_judged_in_words(tmp_path):
    folder = fit(tmp_path / "fit")
    html = report_of([str(folder)]).html
    text = shown(html)
    assert (
        "The line of the mean: R² -0.327, worse than a constant" in text
        and "The line of the std: R² 0.810, explains most" in text
    )
    assert "0.5 ln p -1" in text and "Fitted on 12 pairs, 99 segments, 7 groups." in text
    mean_line, std_line = (series_of(charts_of(html)["Fitted lines"])[name] for name in ("mean", "std"))
    assert mean_line[-1] == (1.0, -1.0) and dict(std_line)[0.5] == pytest.approx(2 + 0.1 * math.log(0.5), abs=1e-5)
    (folder / "normalizer.png").write_bytes(PNG)
    page = Page(report_of([str(folder)]).html)
    assert [src.split(",")[0] for src in page.values("src")] == ["data:image/png;base64"]
    words = [r2_in_words(value) for value in (-1, 0, 0.29, 0.3, 0.5, 0.89, 0.95, 1.0)]
    assert len(set(words)) == 5 and words[0].startswith("worse than a constant") and words[1] == words[2]


def test_the_fit_of_a_reward_model_is_found_where_it_was_put(tmp_path):
    rm = reward_model(tmp_path / "rm")
    (rm / "fits.json").write_text(json.dumps({"peak/avg/1": FIT}))
    command(tmp_path / "fit", "fit-normalizer", reward_model=[str(rm)])
    text = shown(report_of([str(rm), str(tmp_path / "fit")]).html)
    assert text.count("Normaliser: fit, peak/avg/1") == 1 and "Normaliser: rm" not in text


def test_best_of_n_and_judged_policies(tmp_path):
    html = report_of([str(best_of_n(tmp_path / "bon")), str(judged(tmp_path / "judge"))]).html
    line = charts_of(html)["Best of n: gold reward"]["series"][0]
    assert (line["x"], line["y"], line["low"], line["high"]) == ([0, 0.193], [0.1, 0.3], [0, 0.2], [0.2, 0.4])
    assert "mine win_rate 62.5000 [50.0000, 75.0000] 40 38 2" in shown(html) and "mine: few answers" in shown(html)
    assert "Suite: prompts, judged by rule." in shown(html)
    data = samples_of(html)
    assert data["prompts"] == ["a question"] and [row[5][:3] for row in data["rows"]] == [[-0.5, None, 0.25], [0.5, None, 0.25]]
    assert [row[5][4] for row in data["rows"]] == [5, 5] and [row[6] for row in data["rows"]] == [False, True]


def test_answers_of_two_policies_stand_under_their_prompts(tmp_path):
    html = report_of([str(answered(tmp_path / "before")), str(answered(tmp_path / "after", "no"))]).html
    assert "before mtbench m 1 1 2.0, 3.0 3.0, 5.5 50% 0" in shown(html)
    data = samples_of(html)
    found = [(data["runs"][row[0]], data["prompts"][row[3]], row[5][4], row[6], row[7]) for row in data["rows"]]
    asked = "user: a question\n\nassistant: {}\n\nuser: why?"
    assert found == [
        ("before", "a question", 2, True, "yes"),
        ("before", asked.format("yes"), 3, False, "yes indeed"),
        ("after", "a question", 2, True, "no"),
        ("after", asked.format("no"), 3, False, "no indeed"),
    ]


def test_settings_stand_side_by_side_and_what_differs_is_marked(tmp_path):
    inputs = {"data": {"x.jsonl": {"path": "/x.jsonl", "bytes": 1234, "sha256": "abcd"}}}
    for name, lr in (("a", 1e-6), ("b", 2e-6)):
        ppo(tmp_path / name)
        command(tmp_path / name, "train-ppo", lr=lr, epochs=2, inputs=inputs)
    html = report_of([str(tmp_path / "a"), str(tmp_path / "b")]).html
    text = shown(html)
    assert "≠ lr 1e-06 2e-06" in text and " epochs 2 2" in text and "≠ epochs" not in text
    assert "data /x.jsonl; 1,234 bytes; sha256 abcd" in text and "torch 2.13.0 2.13.0" in text
    assert f"denserl train-ppo --output_dir {tmp_path / 'a'}" in text


def test_kinds_are_read_from_files_where_no_command_is_recorded(tmp_path):
    made = [ppo(tmp_path / "x1"), reward_model(tmp_path / "x2"), fit(tmp_path / "x3"), evaluation(tmp_path / "x4")]
    made += [best_of_n(tmp_path / "x5"), answered(tmp_path / "x8"), judged(tmp_path / "x6"), tmp_path / "x7"]
    write_rows(tmp_path / "x7/metrics.jsonl", [{"step": 1, "loss": 2.0}])
    for folder in made[:-1]:
        (folder / "command.json").unlink()
    kinds = ["train-ppo", "train-rm", "fit-normalizer", "evaluate", "bon", "answer", "judge", "train-sft"]
    assert [report_of([str(folder)]).kinds for folder in made] == [[kind] for kind in kinds]
    # And a name says nothing.
    assert report_of([str(reward_model(tmp_path / "ppo-segment"))]).kinds == ["train-rm"]


def test_a_long_run_is_thinned_and_ends_where_it_ends(tmp_path):
    command(tmp_path / "a", "train-rm")
    write_rows(tmp_path / "a/metrics.jsonl", [{"step": k, "loss": k / 7, "accuracy": 0.5} for k in range(1, 4001)])
    points = series_of(charts_of(report_of([str(tmp_path / "a")]).html)["Loss"])["training"]
    assert len(points) <= 1501 and points[0][0] == 1 and points[-1] == (4000, 571.429)
    assert all(y == float(f"{x / 7:.6g}") for x, y in points)


def test_numbers_that_nobody_knows_are_shown_too(tmp_path):
    command(tmp_path / "a", "train-rm")
    write_rows(tmp_path / "a/metrics.jsonl", [{"step": k, "of another version": k} for k in (1, 2)])
    assert series_of(charts_of(report_of([str(tmp_path / "a")]).html)["of another version"])["training"] == [(1, 1), (2, 2)]


def test_what_is_no_run_is_said_with_the_runs_that_are_in_it(tmp_path):
    ppo(tmp_path / "all/one")
    with pytest.raises(UserError, match="holds no run") as error:
        report_of([str(tmp_path / "all")])
    assert error.value.fix == f"denserl report {tmp_path / 'all/one'}"
    with pytest.raises(UserError, match="is no folder"):
        report_of([str(tmp_path / "none")])
    command(tmp_path / "world", "make-world")
    with pytest.raises(UserError, match="a folder of denserl make-world"):
        report_of([str(tmp_path / "world")])
