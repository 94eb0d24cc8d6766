"""Choosing among stored answers: the published shape of rows, every number by hand or over all subsets of the answers."""

import csv
import gzip
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_files import write_json, write_lines

from denserl.data.bad_rows import BadRows
from denserl.errors import UserError
from denserl.evaluation import stored_answers
from denserl.evaluation.baselines import BaselineScorer
from denserl.evaluation.final_answers import final_answer
from denserl.evaluation.stored_answers import JudgedAnswers, StoredAnswers, curves_of, distinct, numbers_of
from denserl.evaluation.suites.registry import account, find_suite, read_items

SCORES = [0.9, 0.7, 0.5, 0.55, 0.4, 0.95]


def entry(finals: str, scores: list[float], right: str, prompt: str = "Q", texts: list[str] | None = None) -> JudgedAnswers:
    """A letter is a final answer, a dot one that cannot be read; `right` are the letters that are right."""
    turns = [{"role": "user", "content": prompt}]
    texts = texts or [f"{letter}{number}" for number, letter in enumerate(finals)]
    states = [None if letter == "." else letter for letter in finals]
    item = StoredAnswers("0", "all", turns, texts, [letter in right for letter in finals], states)
    return JudgedAnswers(item, np.array(scores))


def winner(finals: list[str | None], scores: list[float], way: str) -> int:
    """The chosen answer, by a loop over final answers in order of appearance."""
    if way == "best":
        return max(range(len(scores)), key=lambda i: (scores[i], -i))
    names = [(i,) if final is None else final for i, final in enumerate(finals)]
    weights = scores if way == "weighted" else [1.0] * len(scores)
    sums = {name: sum(w for w, other in zip(weights, names) if other == name) for name in dict.fromkeys(names)}
    return names.index(max(sums, key=sums.get))


def test_six_answers_by_hand():
    """Majority B of three, weighted A (1.60 against 1.45 and .95), best C; a wrong favourite wins in the end."""
    judged = [entry("AABBBC", SCORES, "A")]
    assert stored_answers.chosen(judged[0].item.finals, judged[0].scores) == {"best": 5, "majority": 2, "weighted": 0}
    found = {name: float(value[0]) for name, value in numbers_of(judged).items()}
    assert found == {"best": 0, "majority": 0, "weighted": 1, "oracle": 1, "pass@1": pytest.approx(2 / 6), "longest": 1}
    curve = curves_of(judged, [1, 2, 3, 4, 5, 6], 0)["best"][0]
    assert curve == pytest.approx([0.33333333, 0.46666667, 0.45, 0.33333333, 0.16666667, 0], abs=1e-8)


def test_markers_of_steps_are_no_part_of_an_answer():
    suite = find_suite("bon_answers")
    row = {"prompt": "Q", "answers": ["Step 1: 3 ки\nThe answer is: 3 ки", "The answer is: 3"], "label": [True, True]}
    found = suite.read(row, "all")
    assert found.texts == ["Step 1: 3\n\nThe answer is: 3", "The answer is: 3"] and found.finals == ["3", "3"]


@given(st.lists(st.tuples(st.sampled_from("ABC."), st.sampled_from([0.25, 0.5, 1.0, 2.0])), min_size=1, max_size=7))
def test_curves_are_means_over_all_subsets(answers):
    finals, scores = "".join(final for final, _ in answers), [score for _, score in answers]
    judged, count = entry(finals, scores, "A."), len(answers)
    states, right = judged.item.finals, judged.item.right
    sizes = [*range(1, count + 1)]
    found = curves_of([judged], sizes, 0)
    for n in sizes:
        subsets = [*itertools.combinations(range(count), n)]
        for way in ("best", "majority", "weighted"):
            picks = [chosen[winner([states[i] for i in chosen], [scores[i] for i in chosen], way)] for chosen in subsets]
            assert found[way][0, n - 1] == pytest.approx(np.mean([right[pick] for pick in picks]))
        assert found["oracle"][0, n - 1] == pytest.approx(np.mean([any(right[i] for i in chosen) for chosen in subsets]))
    whole = numbers_of([judged])
    assert [whole[way][0] for way in found] == pytest.approx([found[way][0, -1] for way in found])
    assert whole["pass@1"][0] == pytest.approx(found["best"][0, 0])


def test_votes_of_many_answers_are_drawn():
    """Of 40 answers 24 state the right one: the chance that most of 5 do is hypergeometric, equal counts being impossible."""
    from scipy.stats import hypergeom

    generator = np.random.default_rng(0)
    judged = [entry("".join(generator.permutation(list("A" * 24 + "B" * 16))), [1.0] * 40, "A") for _ in range(40)]
    found = curves_of(judged, [1, 5, 40], 0)["majority"].mean(0)
    chance = hypergeom(40, 24, 5).sf(2)
    # 40 problems of 64 subsets: a standard error of .5 / sqrt(2560).
    assert found == pytest.approx([0.6, chance, 1.0], abs=0.03) and found[0] == pytest.approx(0.6) and found[2] == 1


def test_what_cannot_be_read_is_alone_and_equal_ones_go_to_the_earlier():
    pick = {way: winner([None, None, None, "A"], [1, 1, 1, 1], way) for way in stored_answers.WAYS}
    assert stored_answers.chosen([None, None, None, "A"], np.ones(4)) == pick == {"best": 0, "majority": 0, "weighted": 0}
    assert stored_answers.chosen([None, None, None, "A", "A"], np.ones(5))["majority"] == 3
    assert stored_answers.chosen(["A", "B", "B", "A"], np.array([-1.0, -3, -3, -5]))["weighted"] == 0


def test_texts_are_counted_once():
    texts = ["same", "other", "same", "third", "same"]
    judged = entry("ABABA", [0.3, 0.2, 0.1, 0.3, 0.1], "A", texts=texts)
    once = distinct(judged)
    assert once.item.texts == ["same", "other", "third"] and once.scores.tolist() == [0.3, 0.2, 0.3]
    assert once.item.right == [True, False, False] and once.item.finals == ["A", "B", "B"]
    assert numbers_of([judged])["majority"][0] == 1 and numbers_of([once])["majority"][0] == 0
    assert numbers_of([once])["pass@1"][0] == pytest.approx(1 / 3) and numbers_of([once])["best"][0] == 1


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{12} or \boxed{\frac{1}{2}}.", "1/2"),
        (r"\boxed{x^{2} + 1}", "x^{2}+1"),
        (r"\boxed{\dfrac34}", "3/4"),
        ("3 + 4 = 7\n#### 1,200", "1200"),
        ("#### -18.0", "-18"),
        ("The answer is 5. I hope it is correct.", "5"),
        ("The answer is 7. No: the answer is: $0.50$", "1/2"),
        ("Answer: (B)\nbecause", "(B)"),
        (r"The answer is \text{yes}", "yes"),
        (r"The answer is 50\%.", "50"),
        ("12", "12"),
        ("The answer is 18 apples", "18apples"),
        ("the answer is 1/0", "1/0"),
        ("I count 12", None),
        ("", None),
        (r"\boxed{3", None),
        ("#### ", None),
        ("the answer is", None),
    ],
)
def test_final_answers_are_read(text, answer):
    assert final_answer(text) == answer


def test_a_very_long_number_is_a_text():
    assert final_answer("#### " + "9" * 10**5) == "9" * 10**5


ROWS = [
    {"prompt": "a", "answers": ["#### 1", "#### 2 2", "#### 1"], "label": [1, 0, 1]},
    {"prompt": [{"role": "user", "content": "b"}], "answers": ["#### 3", "4", "none at all"], "labels": [False, 1.0, False]},
]


def judged_by_length(path, **fields):
    suite, bad_rows = find_suite("bon_answers", **fields), BadRows()
    items, left_out = read_items(suite, str(path), None, bad_rows, None)
    scorer = BaselineScorer("length", 0)
    judged = suite.judge(items, scorer, bad_rows)
    return judged, {**suite.summarise(judged, scorer, 200, 0), **account(suite, items, left_out)}, suite, scorer


def test_rows_are_read_and_judged(tmp_path):
    judged, found, suite, scorer = judged_by_length(write_lines(tmp_path / "rows.jsonl", ROWS))
    assert [e.item.finals for e in judged] == [["1", "22", "1"], ["3", "4", None]] and judged[1].scores.tolist() == [6, 1, 11]
    # The longest are "#### 2 2" and "none at all", both wrong; the commonest are 1, right, and of three equal ones 3.
    assert (found["accuracy"], found["best"], found["majority"], found["weighted"]) == (0, 0, 0.5, 0.5)
    assert found["oracle"] == 1 and found["pass@1"] == pytest.approx((2 / 3 + 1 / 3) / 2) and found["longest"] == 0
    assert found["intervals"]["majority"] == [0, 1] and found["n"] == found["questions"] == 2
    assert found["curves"]["n"] == [1, 2, 3] and found["curves"]["majority"]["mean"][-1] == 0.5
    assert found["distinct"]["answers"] == 2.5 and found["distinct"]["pass@1"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["unreadable"] == pytest.approx(1 / 6) and found["mixed"] == 0
    assert any("each votes for itself" in line for line in found["remarks"])
    suite.write(tmp_path / "out", "length", judged, scorer, found)
    assert json.loads((tmp_path / "out/results.json").read_text())["choose"] == "best"
    rows = [json.loads(line) for line in gzip.open(tmp_path / "out/length_scores.jsonl.gz")]
    assert rows[0]["chosen"] == {"best": 1, "majority": 0, "weighted": 0} and rows[1]["final_answers"] == ["3", "4", None]
    with open(tmp_path / "out/results.csv", encoding="utf-8", newline="") as file:
        table = [*csv.DictReader(file)]
    assert Counter(row["kind"] for row in table) == {"headline": 6, "distinct": 6, "subset": 6, "curve": 12}
    assert (tmp_path / "out/bon_answers.png").is_file() and "majority" in suite.format(found)


def test_the_way_that_counts_and_the_reading_of_answers_are_chosen(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    _, found, suite, _ = judged_by_length(path, choose="majority", final_answer=lambda text: text[:1])
    assert found["accuracy"] == found["majority"] and "majority*" in suite.format(found)
    # By first letters all of the first problem's answers are one, which right and wrong answers state.
    assert found["mixed"] == pytest.approx(1 / 4) and any("right and of wrong" in line for line in found["remarks"])
    with pytest.raises(UserError, match="the final answer of one is 0; expected a text or None"):
        judged_by_length(path, final_answer=lambda text: 0)


def test_problems_of_other_numbers_of_answers(tmp_path):
    rows = [{"prompt": str(n), "answers": ["#### 1"] * n, "label": [1] * n, "subset": "x" if n == 5 else "y"} for n in (5, 3)]
    _, found, *_ = judged_by_length(write_lines(tmp_path / "rows.jsonl", rows))
    assert found["curves"]["n"] == [1, 2, 3] and found["answers"] == [3, 5] and list(found["subsets"]) == ["x", "y"]
    assert any("3 to 5 answers: curves end at 3" in line for line in found["remarks"])
    # Three of three problems without one wrong answer are no certainty.
    assert found["intervals"]["best"][0] < 0.6


@pytest.mark.parametrize(
    "change, said",
    [
        ({"label": [1, 0]}, "'label' has 2 entries, and there are 3 answers"),
        ({"label": [1, 0, 0.5]}, "'label' has 0.5; expected 1 or true"),
        ({"label": None}, "'label' is missing"),
        ({"answers": []}, "'answers' is no list of texts"),
        ({"answers": ["a", 1, "b"]}, "'answers' is no list of texts"),
        ({"prompt": None}, "'prompt' is neither text nor a list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, said):
    path = write_json(tmp_path / "rows.json", [ROWS[0] | change])
    with pytest.raises(UserError, match=said):
        judged_by_length(path)
