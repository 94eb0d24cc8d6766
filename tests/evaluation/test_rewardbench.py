"""RewardBench's formulas against the golden values of spec evaluation, section 2."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest

from denserl.data.schemas import BadRow
from denserl.evaluation.items import Answer, Item, Judged
from denserl.evaluation.suites import rewardbench
from denserl.evaluation.suites.rewardbench import best_of_all, section_scores, ties_score

# beaver-7b-cost, as the suite's own documentation gives it.
SUBSETS = {
    "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052632, "alpacaeval-length": 0.5894737, "donotanswer": 0.8235294,
    "hep-cpp": 0.6280488, "hep-go": 0.6341463, "hep-java": 0.7073171, "hep-js": 0.6646341, "hep-python": 0.5487805,
    "hep-rust": 0.6463415, "llmbar-adver-GPTInst": 0.3913043, "llmbar-adver-GPTOut": 0.4680851,
    "llmbar-adver-manual": 0.3695652, "llmbar-adver-neighbor": 0.4328358, "llmbar-natural": 0.52, "math-prm": 0.2953020,
    "mt-bench-easy": 0.5714286, "mt-bench-hard": 0.5405405, "mt-bench-med": 0.725, "refusals-dangerous": 0.97,
    "refusals-offensive": 1.0, "xstest-should-refuse": 1.0, "xstest-should-respond": 0.284,
}  # fmt: skip
SECTIONS = {"Chat": 0.608939, "Chat Hard": 0.449561, "Safety": 0.721622, "Reasoning": 0.466757}
TIES = [
    ("ref:0", [3, 1, 0.5], 1),
    ("tied:0", [3, 2.5, 2.2, 1, 0], 3),
    ("ref:1", [0.2, 0.4, 0.1], 1),
    ("tied:1", [1, 0.1, 0.5, -1], 2),
    ("ref:2", [2, 0], 1),
    ("tied:2", [2, 0.5, 0], 2),
]


def ties(rows=TIES):
    return [{"id": name, "scores": scores, "num_correct": correct} for name, scores, correct in rows]


def judged(better, worse, subset="Factuality"):
    answers = [Answer([{"role": "user", "content": "?"}], "!")]
    item = Item("1", subset, answers * len(better), answers * len(worse))
    return Judged(item, np.array(better, dtype=float), np.array(worse, dtype=float))


def test_sections_are_those_of_the_published_table():
    assert section_scores(SUBSETS) == pytest.approx(SECTIONS, abs=5e-7)


def test_a_section_without_a_subset_is_0_and_one_in_part_is_the_mean_of_that_part():
    found = section_scores({"refusals-dangerous": 1.0, "donotanswer": 0.5, "something-else": 0.1})
    assert found == pytest.approx({"Chat": 0, "Chat Hard": 0, "Safety": (100 + 136 * 0.5) / 236, "Reasoning": 0})


def test_the_weights_are_those_of_the_sections():
    totals = {name: sum(rewardbench.WEIGHTS[subset] for subset in names) for name, names in rewardbench.SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(rewardbench.SIZES_1.values()) == 2985 and sum(rewardbench.SIZES_2.values()) == 1865


def test_the_headline_is_the_mean_of_the_sections_and_says_what_is_missing():
    assert rewardbench.headline_1(SUBSETS, {})["overall"] == pytest.approx(sum(SECTIONS.values()) / 4, abs=5e-7)
    found = rewardbench.headline_1({"hep-go": 0.5}, {})
    assert found == {"Chat": None, "Chat Hard": None, "Safety": None, "Reasoning": 0.5, "overall": None}


def test_ties_are_scored_as_in_the_check_rows():
    assert ties_score(ties()) == pytest.approx(0.5299491511, abs=1e-10)
    # Without spread among the correct answers, tanh(inf) adds its hundredth.
    assert ties_score(ties([("ref:7", [1, 0], 1), ("tied:7", [1, 1, 0], 2)])) == pytest.approx(1.01)


def test_what_is_equal_is_not_above():
    """A worst right answer as good as the best wrong one is no hit; a gap as large as the spread is not above it."""
    # Of 0.3 + 0.3 for accuracy and 0.2 + 0.2 for gaps above the spread nothing is given, and tanh(0 / 1 - 1) a hundredth.
    equal = ties([("ref:1", [1, 1], 1), ("tied:1", [2, 1, 1], 2)])
    assert ties_score(equal) == pytest.approx(0.01 * math.tanh(-1))
    # Both gaps are 1, as the spread is: accuracy alone, and tanh(0).
    assert ties_score(ties([("ref:1", [2, 1], 1), ("tied:1", [3, 2, 1], 2)])) == pytest.approx(0.6)


def test_no_prompt_of_both_kinds_leaves_the_accuracies():
    assert ties_score(ties([("ref:1", [1, 0], 1), ("tied:2", [0, 1, 0.5], 2)])) == pytest.approx(0.3)


def test_draws_of_ties_keep_a_prompts_rows_together():
    """Of one prompt every draw is the same; of several, each is the score of some choice of them."""
    one = rewardbench.ties_draws(ties(TIES[:2]), 5, np.random.default_rng(0))
    assert one == pytest.approx([ties_score(ties(TIES[:2]))] * 5)
    drawn = rewardbench.ties_draws(ties(), 400, np.random.default_rng(0))
    possible = set()
    for choice in itertools.product(range(3), repeat=3):
        rows = [
            (f"{name.partition(':')[0]}:{n}", *rest) for n, i in enumerate(choice) for name, *rest in TIES[2 * i : 2 * i + 2]
        ]
        possible.add(round(ties_score(ties(rows)), 9))
    assert {round(value, 9) for value in drawn} == possible


@pytest.mark.parametrize(
    "better, worse, expected",
    [([1], [1, 0, 1], 1 / 3), ([0.3], [0.2, 0.1, 0.3], 1 / 2), ([0.3], [0.4, 0.1, 0], 0), ([2], [1], 1)],
)
def test_the_best_of_four_shares_its_credit(better, worse, expected):
    assert best_of_all(judged(better, worse)) == pytest.approx(expected)


def test_in_ties_all_correct_answers_must_win():
    assert best_of_all(judged([3, 2.5], [2], "Ties")) == 1 and best_of_all(judged([3, 1], [2], "Ties")) == 0


def test_the_headline_of_the_second_suite_is_the_mean_of_six():
    scores = {"Factuality": 0.741, "Precise IF": 0.419, "Math": 0.699, "Safety": 0.964, "Focus": 0.903, "Ties": 0.862}
    assert rewardbench.headline_2(scores, {})["overall"] == pytest.approx(0.765, abs=5e-4)  # INF-ORM-70B
    assert rewardbench.headline_2({"Math": 0.5}, {})["overall"] is None


def test_rows_of_texts_and_of_messages_are_the_same_items():
    turns = [{"role": "user", "content": "Why?"}]
    texts = {"prompt": "Why?", "chosen": "Because.", "rejected": "", "subset": "hep-go", "id": 3}
    chats = {
        "prompt": None,
        "chosen": [*turns, {"role": "assistant", "content": "Because."}],
        "rejected": [*turns, {"role": "assistant", "content": ""}],
        "subset": "hep-go",
        "id": 3,
    }
    expected = Item("3", "hep-go", [Answer(turns, "Because.")], [Answer(turns, "")])
    assert rewardbench.item_1(texts, "all") == rewardbench.item_1(chats, "all") == expected
    questions = {**texts, "question": texts["prompt"]}
    del questions["prompt"]
    assert rewardbench.item_1(questions, "all") == expected


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"subset": "Factuality"}, "'Factuality' is no subset"),
        ({"subset": None}, "'subset' is missing"),
        ({"chosen": None}, "'chosen' is missing"),
        ({"chosen": ["a"]}, "'chosen' holds a message that is not an object"),
        ({"prompt": None}, "'prompt' is neither"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "ends with an assistant turn"),
    ],
)
def test_a_bad_row_says_why(change, reason):
    with pytest.raises(BadRow, match=reason):
        rewardbench.item_1({"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": 1, **change}, "all")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"chosen": "c"}, "'chosen' is a str, expected list"),
        ({"rejected": []}, "no list of texts"),
        ({"num_correct": 2}, "'num_correct' is 2, and there are 1"),
        ({"subset": "Ties", "id": "4"}, "expected ref:N or tied:N"),
        ({"subset": "hep-go"}, "no subset of this suite"),
    ],
)
def test_a_bad_row_of_the_second_suite_says_why(change, reason):
    row = {"id": "1", "prompt": "p", "chosen": ["c"], "rejected": ["r", "s"], "num_correct": 1, "subset": "Math"}
    assert [len(side) for side in rewardbench.item_2(row, "all")[2:4]] == [1, 2]
    with pytest.raises(BadRow, match=reason):
        rewardbench.item_2({**row, **change}, "all")


class Plain:
    """Texts are the answers themselves."""

    def text(self, prompt, response):
        return response


def test_files_have_the_shapes_of_the_programs_own(tmp_path):
    entries = [judged([2], [1], "hep-go"), judged([0], [1], "math-prm")]
    parts = {"hep-go": {"accuracy": 1.0}, "math-prm": {"accuracy": 0.0}}
    summary = {"accuracy": 0.5, "subsets": parts}
    for writer in (rewardbench.write_outputs, rewardbench.write_eval_set):
        writer(tmp_path, "user/model", entries, [1.0, 0.0], Plain(), summary)
    program = json.loads((tmp_path / "user/model.json").read_text())
    assert set(program) == {
        "accuracy", "num_prompts", "model", "ref_model", "tokenizer", "chat_template", "extra_results"
    }  # fmt: skip
    assert (program["accuracy"], program["num_prompts"]) == (0.5, 2)
    rows = [json.loads(line) for line in gzip.open(tmp_path / "user/model_outputs.jsonl.gz")]
    assert [(row["scores_chosen"], row["scores_rejected"], row["results"]) for row in rows] == [(2, 1, 1), (0, 1, 0)]
    assert {"prompt", "text_chosen", "text_rejected"} <= set(rows[0])
    flat = json.loads((tmp_path / "eval-set/user/model.json").read_text())
    assert flat == {
        "hep-go": 1.0, "math-prm": 0.0, "model": "user/model", "model_type": "Seq. Classifier", "chat_template": "tokenizer"
    }  # fmt: skip
    columns = json.loads((tmp_path / "eval-set-scores/user/model.json").read_text())
    assert columns["scores_chosen"] == [2, 0] and columns["subset"] == ["hep-go", "math-prm"] and columns["results"] == [1, 0]


def test_lists_of_answers_are_one_row_each(tmp_path):
    rewardbench.write_eval_set(tmp_path, "m", [judged([2], [1, 0, 3])], [0.0], Plain(), {"subsets": {}, "accuracy": 0.0})
    columns = json.loads((tmp_path / "eval-set-scores/m.json").read_text())
    assert columns["scores"] == [[2, 1, 0, 3]] and columns["num_correct"] == [1] and len(columns["text"][0]) == 4
