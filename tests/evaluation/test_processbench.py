"""First wrong steps: the published vector, the hub's shapes of rows, thresholds and intervals against brute force."""

import csv
import json
import math
import random
import re

import numpy as np
import pytest
import suite_files
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from suite_files import write_json, write_lines, write_parquet

from denserl.data.bad_rows import BadRows
from denserl.errors import UserError
from denserl.evaluation.baselines import BaselineScorer
from denserl.evaluation.solutions import JudgedSolution, Solution, best_threshold, f1, predictions
from denserl.evaluation.step_report import write_step_report
from denserl.evaluation.suites.registry import account, find_suite, read_items

LABELS, PREDICTIONS = [-1, -1, 2, 0, 1, 3, -1], [-1, 1, 2, 0, 2, -1, -1]


class Knows:
    """A model of steps that knows a wrong one by its words, and says so with the chance that stands in it."""

    is_model = True

    def encode_steps(self, prompt, steps):
        return [float(step.split()[-1]) for step in steps]

    def step_scores(self, encoded):
        return [np.log(chances) - np.log1p(-np.array(chances)) for chances in encoded]


def solution(error: int, chances: list[float], prompt: str = "Q", subset: str = "all", generator: str = "") -> JudgedSolution:
    turns = [{"role": "user", "content": prompt}]
    item = Solution("0", subset, turns, [f"step {chance}" for chance in chances], error, generator)
    return JudgedSolution(item, np.array(chances))


def predicting(error: int, prediction: int, **about) -> JudgedSolution:
    return solution(error, [0.2 if step == prediction else 0.9 for step in range(4)], **about)


def summary(judged, resamples=200, **fields):
    return find_suite("processbench", **fields).summarise(judged, Knows(), resamples, 0)


def test_the_published_vector():
    judged = [predicting(*both, prompt=str(n)) for n, both in enumerate(zip(LABELS, PREDICTIONS))]
    assert predictions(judged, 0.5).tolist() == PREDICTIONS
    found = summary(judged)["subsets"]["all"]
    assert found["acc_error"] == 0.5 and found["acc_correct"] == pytest.approx(0.66666667, abs=1e-8)
    assert found["f1"] == pytest.approx(0.57142857, abs=1e-8) and (found["n"], found["questions"]) == (7, 7)


def test_a_step_at_the_threshold_is_not_below_it():
    assert predictions([solution(0, [0.5, 0.4])], 0.5).tolist() == [1]


def test_f1_of_nothing_found_is_nothing():
    assert f1(0.0, 0.0) == 0 and f1(np.array([0.0, 1.0]), np.array([0.0, 1.0])).tolist() == [0, 1]


@given(st.lists(st.tuples(st.integers(-1, 2), st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3)), max_size=8))
def test_the_chosen_threshold_is_the_best_of_all(rows):
    judged = [solution(*row) for row in rows]
    sides = {error == -1 for error, _ in rows}
    if len(sides) < 2:
        if rows:
            assert best_threshold(judged) is None
        return

    def score(threshold: float) -> float:
        right: dict[bool, list[bool]] = {True: [], False: []}
        for error, chances in rows:
            prediction = next((k for k, chance in enumerate(chances) if chance < threshold), -1)
            right[error == -1].append(prediction == error)
        e, c = (sum(each) / len(each) for each in right.values())
        return 2 * e * c / (e + c) if e + c else 0.0

    every = sorted({chance for _, chances in rows for chance in chances})
    tried = [0.5, every[0] / 2, (every[-1] + 1) / 2, *((a + b) / 2 for a, b in zip(every, every[1:]))]
    found = best_threshold(judged)
    assert 0 < found < 1 and score(found) == pytest.approx(max(map(score, tried)))


def test_a_threshold_is_chosen_on_one_split():
    """On gsm8k steps at .7 are wrong and at .8 right; elsewhere the usual threshold would have been better."""
    own = [solution(0, [0.7]), solution(-1, [0.8])]
    others = [solution(0, [0.3], subset="math"), solution(-1, [0.6], subset="math")]
    judged = [JudgedSolution(entry.item._replace(subset="gsm8k"), entry.chances) for entry in own] + others
    found = summary(judged, threshold_from="gsm8k")
    assert found["step_threshold"] == pytest.approx(0.75) and found["threshold_from"] == "gsm8k"
    assert (found["gsm8k"], found["math"]) == (1, 0) and summary(judged)["math"] == 1
    assert "below 0.75 are held for wrong, chosen on gsm8k" in find_suite("processbench", threshold_from="gsm8k").format(found)
    with pytest.raises(UserError, match="`threshold_from` names omnimath; the subsets are gsm8k, math"):
        summary(judged, threshold_from="omnimath")
    with pytest.raises(UserError, match="has wrong or right solutions alone"):
        summary(judged[:1], threshold_from="gsm8k")


def test_intervals_are_those_of_a_brute_force_bootstrap_of_problems():
    """Problems with up to six solutions, which go together; all of them hold right and wrong ones."""
    generator, judged = random.Random(0), []
    for prompt in range(40):
        easy = generator.random()
        for error in [-1, 1, *(generator.choice((-1, 0, 1)) for _ in range(generator.randint(0, 4)))]:
            right = generator.random() < easy
            judged.append(predicting(error, error if right else 2, prompt=str(prompt)))
    found = summary(judged, 3000)
    by_problem: dict[str, list] = {}
    for entry, prediction in zip(judged, predictions(judged, 0.5)):
        own = by_problem.setdefault(entry.item.prompt[0]["content"], [])
        own.append((entry.item.error, prediction == entry.item.error))
    draws = []
    for _ in range(3000):
        drawn = [pair for own in generator.choices([*by_problem.values()], k=40) for pair in own]
        e, c = (np.mean([right for error, right in drawn if (error == -1) == side]) for side in (False, True))
        draws.append(2 * e * c / (e + c))
    bounds = np.quantile(draws, [0.025, 0.975]).tolist()
    # Two quantiles of 3000 draws differ by less than 0.3 standard deviations.
    assert found["intervals"]["macro_f1"] == pytest.approx(bounds, abs=0.3 * np.std(draws))
    apart = [JudgedSolution(e.item._replace(prompt=[{"content": str(i)}]), e.chances) for i, e in enumerate(judged)]
    low, high = summary(apart, 3000)["intervals"]["macro_f1"]
    assert high - low < 0.9 * (bounds[1] - bounds[0])


def rows_of(split: str) -> list[dict]:
    """A right solution, one whose error is found and one whose error is not; the last of another generator."""
    shared = {"problem": f"A problem of {split}", "final_answer_correct": True}
    return [
        {"id": f"{split}-0", "generator": "a", "steps": ["one 0.9", "two 0.8"], "label": -1, **shared},
        {"id": f"{split}-1", "generator": "a", "steps": ["one 0.9", "wrong 0.1"], "label": 1, **shared},
        {"id": f"{split}-2", "generator": "b", "steps": ["wrong 0.7", "two 0.1"], "label": 0, **shared},
    ]


def judged_from(path, split=None, policy="stop"):
    suite, bad_rows = find_suite("processbench"), BadRows(policy)
    items, left_out = read_items(suite, str(path), split, bad_rows, None)
    judged = suite.judge(items, Knows(), bad_rows)
    return judged, {**suite.summarise(judged, Knows(), 50, 0), **account(suite, items, left_out)}, suite


def test_a_folder_in_the_hubs_shape_is_read(tmp_path):
    for split in ("gsm8k", "math", "olympiadbench"):
        write_json(tmp_path / f"{split}.json", rows_of(split))
    write_parquet(tmp_path / "data/omnimath-00000-of-00001.parquet", rows_of("omnimath"))
    write_lines(tmp_path / "notes.jsonl", [{"a": 1}])
    judged, found, suite = judged_from(tmp_path)
    assert [entry.item.subset for entry in judged[::3]] == ["omnimath", "gsm8k", "math", "olympiadbench"]
    # Of the two errors one is found; of the right one nothing is held for wrong: 2 (1/2) / (3/2).
    assert all(found[split] == pytest.approx(2 / 3) for split in ("gsm8k", "math", "olympiadbench", "omnimath"))
    assert found["overall"] == found["macro_f1"] == pytest.approx(2 / 3) and found["n"] == 12 and found["questions"] == 4
    assert found["complete"] is False and found["partial"]["omnimath"] == [3, 1000]
    assert found["generators"]["a"]["f1"] == 1 and found["generators"]["b"]["f1"] is None
    suite.write(tmp_path / "out", "knows", judged, Knows(), found)
    rows = [json.loads(line) for line in (tmp_path / "out/knows_steps.jsonl").read_text().splitlines()]
    assert rows[5]["prediction"] == 1 and rows[5]["label"] == 0 and rows[5]["chances"] == pytest.approx([0.7, 0.1])
    with open(tmp_path / "out/results.csv", encoding="utf-8", newline="") as file:
        table = {(row["kind"], row["name"]): row for row in csv.DictReader(file)}
    assert float(table["subset", "math"]["acc_error"]) == 0.5 and table["generator", "b"]["f1"] == ""
    assert float(table["headline", "overall"]["f1"]) == pytest.approx(2 / 3)
    assert "overall" in suite.format(found) and "0.6667" in suite.format(found)


def test_one_split_or_ones_own_rows_are_read(tmp_path):
    path = write_lines(tmp_path / "math.jsonl", rows_of("math"))
    _, found, suite = judged_from(path)
    assert found["math"] == pytest.approx(2 / 3) and found["gsm8k"] is None and found["overall"] is None
    assert "macro_f1" in suite.format(found)
    own = [{"prompt": row["problem"], "steps": row["steps"], "label": row["label"]} for row in rows_of("own")]
    _, found, _ = judged_from(write_lines(tmp_path / "sums.jsonl", own))
    assert list(found["subsets"]) == ["sums"] and found["macro_f1"] == pytest.approx(2 / 3)
    assert list(found["generators"]) == ["unknown"] and "F1 is of 1 problems only" in found["remarks"]


def test_a_split_without_errors_has_no_f1(tmp_path):
    _, found, suite = judged_from(write_lines(tmp_path / "math.jsonl", rows_of("math")[:1]))
    assert found["math"] is None and found["macro_f1"] is None and found["intervals"] == {}
    assert found["subsets"]["math"]["acc_correct"] == 1
    assert "math has no solution with a wrong step: it has no F1" in found["remarks"] and suite.format(found)


def test_the_page_shows_the_worst_misses_first_and_nothing_acts(tmp_path):
    hostile = '</span><script>alert(1)</script>{{ 7 * 7 }}" onmouseover="x'
    judged = [
        solution(-1, [0.9, 0.8], prompt="passed"),
        solution(-1, [0.9, 0.2], prompt="held though right"),
        solution(1, [0.9, 0.6], prompt="missed at .6"),
        solution(0, [0.95, 0.1], prompt="missed at .95", generator=hostile),
        solution(1, [0.3, 0.2], prompt="held before"),
        solution(1, [0.7, 0.4], prompt="found" + hostile + "\x1b[31m"),
    ]
    judged[0].item.steps[0] = hostile
    found = summary(judged)
    write_step_report(tmp_path / "out/steps.html", hostile, judged, found)
    html = (tmp_path / "out/steps.html").read_text(encoding="utf-8")
    page = Page(html)
    shown = " ".join(page.text.split())
    assert page.open == [] and "<script" not in html and "49" not in shown and "‹U+001B›[31m" in shown
    assert 'onmouseover="' not in html and html.count("&lt;script&gt;") == 5  # twice as the model, and in three texts
    order = ["missed at .95", "missed at .6", "held before", "held though right", "passed", "found"]
    places = [re.search(rf'dir="auto">{re.escape(prompt)}', html).start() for prompt in order]
    assert places == sorted(places)
    for line in (
        "missed: step 1 is wrong and passed at 0.95",
        "missed: step 2 is wrong and passed at 0.60",
        "step 1 was held for wrong before step 2, which is",
        "held for wrong, though all of it is right",
        "3 first wrong step not found, 1 right, but held for wrong, 2 judged rightly.",
        "1 0.95 first wrong step step 0.95 2 0.10 held for wrong step 0.1",
        "1 0.70 step 0.7 2 0.40 first wrong step held for wrong step 0.4",
    ):
        assert line in shown
    assert f"{f1(0.25, 0.5):.3f}" in shown  # one of four wrong steps, one of two right solutions


@pytest.mark.parametrize(
    "change, said",
    [
        ({"label": 2}, "'label' is 2; expected the number of the first wrong step, from 0 to 1, or -1"),
        ({"label": -2}, "'label' is -2"),
        ({"label": True}, "'label' is True"),
        ({"label": None}, "'label' is None"),
        ({"steps": []}, "'steps' is no list of texts"),
        ({"steps": ["a", " "]}, "'steps' is no list of texts"),
        ({"steps": "a"}, "'steps' is a str, expected list"),
        ({"problem": None}, "'problem' is neither text nor a list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, said):
    path = write_lines(tmp_path / "rows.jsonl", [rows_of("x")[0] | change])
    with pytest.raises(UserError, match=f"rows.jsonl:1.*{said}"):
        judged_from(path)


def test_baselines():
    """Random chances find the first of K steps as often as chance has it; lengths say nothing of steps."""
    suite, bad_rows = find_suite("processbench"), BadRows()
    items = [Solution(str(n), "all", suite_files.PROMPT, ["a", "b"], n % 3 - 1) for n in range(6000)]
    judged = suite.judge(items, BaselineScorer("random", 0), bad_rows)
    found = suite.summarise(judged, BaselineScorer("random", 0), 10, 0)["subsets"]["all"]
    # Both steps pass in a quarter; the first is wrong in a half, the second alone in a quarter. Four standard errors.
    assert found["acc_correct"] == pytest.approx(1 / 4, abs=4 * math.sqrt(3 / 16 / 2000))
    assert found["acc_error"] == pytest.approx(3 / 8, abs=4 * math.sqrt(15 / 64 / 4000))
    with pytest.raises(UserError, match="`scorer` length says nothing of the steps"):
        suite.judge(items, BaselineScorer("length", 0), bad_rows)
    with pytest.raises(UserError, match="gives one number for an answer, and this suite judges the numbers of steps"):
        suite.judge(items, object(), bad_rows)
