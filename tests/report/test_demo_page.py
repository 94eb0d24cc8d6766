"""The demo's page: its table, and its runs with the lines that are known of a made-up language."""

import json

from html_pages import Page
from run_folders import charts_of, command, fit, ppo, reward_model

from denserl.report.build import report_of
from denserl.report.demo import format_table

RESULTS = {
    "best_accuracy": 0.85,
    "seed": 7,
    "target_true_reward": 0.3,
    "rollout_batch_size": 64,
    "versions": {"denserl": "0.1.0", "torch": "2.13.0"},
    "minutes": 4.94,
    "levels": {
        "segment": {"rm_accuracy": 0.83, "rm_share_of_best": 0.976, "true_after": 0.5, "kl": 9.14, "rollouts_to_target": 1024},
        "bandit": {"rm_accuracy": 0.8, "rm_share_of_best": 0.941, "true_after": 0.1, "kl": 12.0, "rollouts_to_target": None},
    },
}
for level in RESULTS["levels"].values():
    level["true_before"] = -0.2


def made(folder):
    for name in RESULTS["levels"]:
        ppo(folder / f"ppo-{name}")
        reward_model(folder / f"rm-{name}")
    fit(folder / "fit-segment")
    command(folder / "world", "make-world")
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


def test_table():
    assert format_table(RESULTS).split("\n") == [
        "level    RM accuracy   best  share  true before  true after    KL  rollouts to 0.3",
        "-------  -----------  -----  -----  -----------  ----------  ----  ---------------",
        "segment        0.830  0.850    98%        -0.20       +0.50   9.1             1024",
        "bandit         0.800  0.850    94%        -0.20       +0.10  12.0      not reached",
    ]


def test_a_demo_is_shown_with_its_runs_and_what_is_known_of_its_language(tmp_path):
    report = report_of([str(made(tmp_path))])
    assert report.kinds == ["train-ppo"] * 2 + ["train-rm"] * 2 + ["fit-normalizer"]
    text = " ".join(Page(report.html).text.split())
    for row in format_table(RESULTS).split("\n")[2:]:
        assert " ".join(row.split()) in text
    assert "best reachable pair accuracy (0.850)" in text and "With seed 7, everything took 4.9 minutes. denserl 0.1.0" in text
    charts = charts_of(report.html)
    assert charts["True reward"]["references"] == [{"name": "target 0.3", "y": 0.3}]
    assert charts["Accuracy"]["references"] == [{"name": "best reachable 0.850", "y": 0.85}]


def test_results_of_another_version_leave_the_runs(tmp_path):
    (made(tmp_path) / "results.json").write_text(json.dumps({"levels": {"segment": 3}}))
    report = report_of([str(tmp_path)])
    assert len(report.kinds) == 5 and "5 runs compared" in report.html
