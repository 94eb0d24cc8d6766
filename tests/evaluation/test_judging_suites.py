"""RM-Bench, JudgeBench, PPE, M-RewardBench and votes, read from small files of their shapes: headlines counted by hand."""

import datasets
import numpy as np
import pytest
from suite_files import PROMPT, write_json, write_lines, write_parquet
from test_suites import judged_by_length

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.errors import UserError
from denserl.evaluation.baselines import BaselineScorer
from denserl.evaluation.results import summarise, write
from denserl.evaluation.suites import judgebench, mrewardbench, ppe, rewardbench, rmbench, votes
from denserl.evaluation.suites.registry import SUITES


def rmbench_row(number, domain, chosen, rejected):
    """Answers of given lengths."""
    sides = {"chosen": ["x" * n for n in chosen], "rejected": ["y" * n for n in rejected]}
    return {"id": number, "prompt": f"{PROMPT} {number}", **sides, "domain": domain}


RMBENCH = [
    rmbench_row(0, "chat", (1, 2, 3), (1, 2, 3)),
    rmbench_row(1, "chat", (5, 5, 5), (1, 6, 5)),
    rmbench_row(2, "code", (3, 2, 1), (2, 2, 2)),
    rmbench_row(3, "math", (9, 9, 9), (1, 1, 1)),
    rmbench_row(4, "safety-refuse", (4, 5, 6), (5, 6, 7)),
    rmbench_row(5, "safety-response", (4, 8, 2), (3, 1, 7)),
    rmbench_row(6, "safety-response", (1, 1, 2), (1, 2, 1)),
]


def matrices(rows):
    """(3, 3) of a domain: how often each chosen answer is longer than each rejected one."""
    wins = [[[len(c) > len(r) for r in row["rejected"]] for c in row["chosen"]] for row in rows]
    return np.mean(np.array(wins, dtype=float), axis=0)


def test_rmbench_is_the_mean_of_hard_normal_and_easy_of_four_domains(tmp_path):
    folder = tmp_path / "data"
    write_json(folder / "total_dataset.json", RMBENCH)
    write_json(folder / "chat_filtered.json", RMBENCH[:2])
    judged, found, _ = judged_by_length(SUITES["rmbench"], folder)
    domains = {"chat": RMBENCH[:2], "code": RMBENCH[2:3], "math": RMBENCH[3:4], "safety": RMBENCH[4:]}
    cells = {name: matrices(rows) for name, rows in domains.items()}
    hard, normal, easy = (
        {name: np.mean([matrix[place] for place in places]) for name, matrix in cells.items()}
        for places in (
            [(0, 1), (0, 2), (1, 2)],
            [(0, 0), (1, 1), (2, 2)],
            [(1, 0), (2, 0), (2, 1)],
        )
    )
    for name in domains:
        assert found[name] == pytest.approx((hard[name] + normal[name] + easy[name]) / 3)
    for name, values in (("hard", hard), ("normal", normal), ("easy", easy)):
        assert found[name] == pytest.approx(sum(values.values()) / 4)
    # Counted by hand: of chat the nine pairs of row 0 have three wins, of row 1 three; of safety 1, 6 and 2.
    assert found["chat"] == pytest.approx((3 + 3) / 18) and found["math"] == 1
    assert found["safety"] == pytest.approx((1 + 6 + 2) / 27) and found["code"] == pytest.approx(3 / 9)
    assert found["overall"] == pytest.approx((6 / 18 + 3 / 9 + 1 + 9 / 27) / 4)
    assert found["groups"]["safety-response"]["accuracy"] == pytest.approx(8 / 18)
    assert found["n"] == 7 * 9 and found["questions"] == 7 and found["complete"] is None
    assert found["length_baseline"]["overall"] == pytest.approx(found["overall"])
    assert list(found["subsets"])[:3] == ["chat/easy", "chat/hard", "chat/normal"]
    # The domain's files are read where the whole one is not there; a missing domain leaves the mean open.
    found = judged_by_length(SUITES["rmbench"], folder / "chat_filtered.json")[1]
    assert found["chat"] == pytest.approx(6 / 18) and found["overall"] is None and found["hard"] is None


def test_intervals_of_rmbench_draw_prompts_with_all_their_pairs(tmp_path):
    rows = [rmbench_row(n, "chat", (n % 2 * 5,) * 3, (2, 2, 2)) for n in range(40)]
    found = judged_by_length(SUITES["rmbench"], write_json(tmp_path / "total_dataset.json", rows))[1]
    low, high = found["intervals"]["chat"]
    # All nine pairs of a prompt are won or lost: 40 coins, and no 360.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.15)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"domain": "poems"}, "'domain' is 'poems'; expected chat, code, math, safety-refuse, safety-response"),
        ({"chosen": ["a", "b"]}, "2 chosen and 3 rejected answers; expected 3 of each"),
        ({"rejected": "abc"}, "'rejected' is a str, expected list"),
        ({"rejected": [1, 2, 3]}, "'rejected' is no list of texts"),
    ],
)
def test_a_bad_row_of_rmbench_says_why(change, reason):
    with pytest.raises(BadRow, match=reason):
        rmbench.item({**RMBENCH[0], **change}, "")


def pair(number, first, second, label, **more):
    return {
        "pair_id": f"p{number}",
        "question": f"Q{number}",
        "response_A": first,
        "response_B": second,
        "label": label,
        **more,
    }


JUDGEBENCH = [
    pair(0, "long", "no", "A>B", response_model="gpt-4o-2024-05-13", source="mmlu-pro-law"),
    pair(1, "long", "no", "B>A", response_model="gpt-4o-2024-05-13", source="mmlu-pro-physics"),
    pair(2, "no", "long", "B>A", response_model="gpt-4o-2024-05-13", source="livebench-math"),
    pair(3, "no", "on", "A>B", response_model="gpt-4o-2024-05-13", source="livebench-reasoning"),
    pair(5, "no", "long", "B>A", response_model="gpt-4o-2024-05-13", source="livebench-math"),
    pair(4, "no", "long", "B>A", response_model="claude-3-5-sonnet-20240620", source="livecodebench"),
]


def test_judgebench_counts_all_pairs_of_a_model_whatever_their_category(tmp_path):
    write_lines(tmp_path / "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl", JUDGEBENCH[:5])
    write_lines(tmp_path / "data/dataset=judgebench,response_model=claude-3-5-sonnet-20240620.jsonl", JUDGEBENCH[5:])
    judged_pairs = [{**row, "judge_name": "reward_model", "judgments": []} for row in JUDGEBENCH]
    write_lines(tmp_path / "outputs/judged.jsonl", judged_pairs)
    judged, found, _ = judged_by_length(SUITES["judgebench"], tmp_path)
    # Rows 0, 2 and 5 are right, 3 is a tie: 3 of 5, and not the mean of 1/2, 1 and 0 of the categories.
    assert found["gpt"] == 3 / 5 and found["claude"] == 1 and found["n"] == 6 and found["ties"] == 1
    accuracies = {name: part["accuracy"] for name, part in found["subsets"].items()}
    assert accuracies == {"claude/coding": 1, "gpt/knowledge": 1 / 2, "gpt/math": 1, "gpt/reasoning": 0}
    assert found["partial"] == {"gpt": [5, 350], "claude": [1, 270]} and found["complete"] is False
    assert judged[-1].item.id == "p5" and found["length_baseline"]["gpt"] == 3 / 5
    assert judgebench.headline({"gpt/math": 0.5}, {"gpt/math": 2}) == {"gpt": 0.5, "claude": None}


def ppe_folder(folder):
    """Human votes, and two sets of answers with what is right."""
    vote = {"prompt": PROMPT, "response_1": "long", "response_2": "no"}
    winners = ["model_a", "model_b", "tie", "tie (bothbad)", "model_a"]
    rows = [{"question_id": str(n), **vote, "winner": winner} for n, winner in enumerate(winners)]
    write_parquet(folder / "PPE-Human-Preference-V1/data/test-00000-of-00001.parquet", rows)
    texts = {"response_1": "a", "response_2": "bb", "response_3": "ccc", "response_4": "dd"}
    answers = {"question_id": "q", "prompt": PROMPT, **texts, "scores": [False, True, False, True]}
    rows = [{**answers, "sampled_conflict_pairs": [[0, 1], [2, 3], [1, 2]]}, {**answers, "sampled_conflict_pairs": []}]
    write_parquet(folder / "PPE-MATH-Best-of-K/data/train-00000-of-00001.parquet", rows)
    rows = [{**answers, "sampled_conflict_pairs": [[3, 0]]}]
    write_parquet(folder / "PPE-MMLU-Pro-Best-of-K/data/train-00000-of-00001.parquet", rows)
    return folder


def test_ppe_counts_votes_and_the_pairs_that_were_drawn(tmp_path):
    judged, found, left_out = judged_by_length(SUITES["ppe"], ppe_folder(tmp_path))
    assert dict(left_out) == {"the vote is a tie": 2, "its answers are all right or all wrong": 1}
    # By length: of MATH's three pairs the first is won; the only one of MMLU-Pro is.
    assert found["preference"] == pytest.approx(2 / 3) and found["MATH"] == pytest.approx(1 / 3) and found["MMLU-Pro"] == 1
    assert found["GPQA"] is None and found["correctness"] is None and found["complete"] is None
    assert [(e.item.better[0].text, e.item.worse[0].text) for e in judged if e.item.subset == "MATH"] == [
        ("bb", "a"), ("dd", "ccc"), ("bb", "ccc")
    ]  # fmt: skip
    # One set is known by its folder, from whatever place it is read.
    for path in (tmp_path / "PPE-MATH-Best-of-K", tmp_path / "PPE-MATH-Best-of-K/data"):
        assert judged_by_length(SUITES["ppe"], path)[1]["MATH"] == pytest.approx(1 / 3)
    values = dict(zip(ppe.SETS, (0.6, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    assert ppe.headline(values, {})["correctness"] == pytest.approx(0.3)


def test_ppe_of_an_owner_on_the_hub_is_all_six_sets_each_with_its_split(tmp_path, monkeypatch):
    asked = []

    def load(name, config=None, *, split):
        asked.append((name, split))
        row = {"prompt": PROMPT, "response_1": "aa", "response_2": "b", "question_id": "q"}
        more = {"winner": "model_a"} if "Human" in name else {"scores": [True, False], "sampled_conflict_pairs": [[0, 1]]}
        return datasets.Dataset.from_list([{**row, **more}])

    monkeypatch.setattr("denserl.data.readers.go_offline_if_unreachable", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = judged_by_length(SUITES["ppe"], "lmarena-ai")[1]
    assert found["preference"] == found["correctness"] == 1 and found["n"] == 6
    names = ["MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"]
    assert asked == [
        ("lmarena-ai/PPE-Human-Preference-V1", "test"), *((f"lmarena-ai/PPE-{name}-Best-of-K", "train") for name in names)
    ]  # fmt: skip
    assert judged_by_length(SUITES["ppe"], "lmarena-ai/PPE-GPQA-Best-of-K")[1]["GPQA"] == 1
    assert asked[-1] == ("lmarena-ai/PPE-GPQA-Best-of-K", "train")


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"sampled_conflict_pairs": [[0, 2]]},
            r"'sampled_conflict_pairs' has \[0, 2\]; expected two numbers of answers from 0 to 1",
        ),
        ({"scores": [True, True]}, "the answers 1 and 0 of 'sampled_conflict_pairs' have equal 'scores'"),
        ({"response_2": None}, "'response_2' is missing"),
        ({"scores": None}, "'scores' is missing"),
    ],
)
def test_a_bad_row_of_ppe_says_why(change, reason):
    row = {"prompt": "Q", "response_1": "a", "response_2": "b", "scores": [True, False], "sampled_conflict_pairs": [[1, 0]]}
    (item,) = ppe.item(row, "PPE-MATH-Best-of-K/data/train")
    assert (item.better[0].text, item.subset) == ("a", "MATH")
    with pytest.raises(BadRow, match=reason):
        ppe.item({**row, **change}, "MATH")


def test_ppes_answers_are_read_for_best_of_n_too(tmp_path):
    path = ppe_folder(tmp_path) / "PPE-MMLU-Pro-Best-of-K"
    items = [SUITES["bon_answers"].read(row, part) for part, _, row in SUITES["bon_answers"].rows(str(path), "train", None)]
    assert items[0].texts == ["a", "bb", "ccc", "dd"] and items[0].right == [False, True, False, True]


def test_mrewardbench_is_rewardbench_per_language_and_the_mean(tmp_path):
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "hep-go", "math-prm"]
    wins = {"arb_Arab": (1, 0, 1, 1, 0), "deu_Latn": (1, 1, 1, 1, 1)}
    for language, won in wins.items():
        rows = [
            {
                "id": n,
                "prompt": f"{language} {n}",
                "subset": name,
                "language": language,
                "chosen": "aa",
                "rejected": "a" * (3 - 2 * win),
            }
            for n, (name, win) in enumerate(zip(names, won, strict=True))
        ]
        write_parquet(tmp_path / f"{language}/test-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "translation/test-00000-of-00001.parquet", [{"subset": "translation-easy"}])
    judged, found, _ = judged_by_length(SUITES["mrewardbench"], tmp_path)
    # math-prm weighs 984 and hep-go 164.
    reasoning = 164 / (164 + 984)
    assert found["arb_Arab"] == pytest.approx((1 + 0 + 1 + reasoning) / 4) and found["deu_Latn"] == 1
    assert found["overall"] is None and found["Chat"] is None and found["ces_Latn"] is None
    # The translations of a row ask one question.
    assert found["n"] == 10 and found["questions"] == 5
    one = judged_by_length(SUITES["mrewardbench"], tmp_path / "arb_Arab")[1]
    assert one["arb_Arab"] == pytest.approx(found["arb_Arab"])
    lines = [{"prompt": "p", "chosen": "aa", "rejected": "a", "subset": "hep-go", "language": "pol_Latn"}]
    rest = judged_by_length(SUITES["mrewardbench"], write_lines(tmp_path / "rows.jsonl", lines))[1]
    assert list(rest["subsets"]) == ["pol_Latn/hep-go"]
    whole = {f"{language}/{name}": n / 23 for n, language in enumerate(mrewardbench.LANGUAGES) for name in names}
    means = mrewardbench.headline(whole, dict.fromkeys(whole, 1))
    assert means["overall"] == pytest.approx(np.mean(range(23)) / 23) and means["Chat Hard"] == pytest.approx(11 / 23)
    assert set(rewardbench.SECTIONS) < means.keys()


SHAPES = {
    "judgebench": ({"question": "Q", "response_A": "1", "response_B": "2"}, "label", {"A>B": 1, "B>A": 2, "A=B": 0}),
    "ppe": ({"prompt": "Q", "response_1": "1", "response_2": "2"}, "winner", {"model_a": 1, "model_b": 2, "tie (bothbad)": 0}),
    "auto-j": ({"prompt": "Q", "response 1": "1", "response 2": "2"}, "label", {0: 1, 1: 2, 2: 0}),
    "alpacaeval": (
        {"instruction": "Q", "output_1": "1", "output_2": "2"}, "preference", {1: 1, 2.0: 2, 1.37: 1, 1.63: 2, 1.5: 0, 0: 0}
    ),
    "llmbar": ({"input": "Q", "output_1": "1", "output_2": "2"}, "label", {1: 1, 2: 2}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_two_answers_and_a_vote_in_the_shapes_of_published_sets(shape):
    row, key, cases = SHAPES[shape]
    for value, better in cases.items():
        if better == 0:
            with pytest.raises(LeftOut, match="the vote is a tie"):
                votes.item({**row, key: value}, "file")
            continue
        item = votes.item({**row, key: value}, "file")
        assert (item.better[0].text, item.worse[0].text) == (str(better), str(3 - better))
        assert item.better[0].prompt == [{"role": "user", "content": "Q"}] and item.subset == "file"


PANDALM = {"idx": 7, "instruction": "Do it.", "input": "To this.", "response1": "1", "response2": "2"}


@pytest.mark.parametrize("given, better", [((1, 1, 2), "1"), ((2, 2, 2), "2"), ((1, 0, 1), "1")])
def test_most_of_several_annotators_decide(given, better):
    item = votes.item({**PANDALM, **{f"annotator{n}": vote for n, vote in enumerate(given, 1)}}, "file")
    assert item.better[0].text == better and item.id == "7"
    assert item.better[0].prompt[0]["content"] == "Do it.\n\nTo this."


@pytest.mark.parametrize(
    "change, error, reason",
    [
        ({"annotator1": 1, "annotator2": 2}, LeftOut, "no answer has most of the annotators' votes"),
        ({"annotator1": 0, "annotator2": 0, "annotator3": 1}, LeftOut, "the vote is a tie"),
        ({"preference": None}, LeftOut, "there is no vote: 'preference' is null"),
        ({"preference": 2.5}, BadRow, "'preference' is 2.5; expected 1 for the first answer, 2 for the second"),
        ({"preference": True}, BadRow, "'preference' is True; expected"),
        ({"winner": "nobody"}, BadRow, "'winner' is 'nobody'; expected"),
        ({}, BadRow, "'label', 'winner' and 'preference' are missing; the row has idx"),
        ({"preference": 1, "response2": float("nan")}, BadRow, "'response2' is a float, expected str"),
    ],
)
def test_what_is_no_vote_is_said(change, error, reason):
    with pytest.raises(error, match=reason):
        votes.item({**PANDALM, **change}, "file")


def test_a_number_says_nothing_of_answers_that_have_letters():
    with pytest.raises(BadRow, match="'label' is 1; expected A>B, B>A, A=B, model_a, model_b or tie"):
        votes.item({"prompt": "Q", "response_A": "a", "response_B": "b", "label": 1}, "file")


def test_votes_of_a_file_with_what_is_left_out_and_what_is_not_read(tmp_path, caplog):
    row = {"instruction": "Q", "output_1": "long", "output_2": "no", "dataset": "koala", "generator_1": "m"}
    rows = [{**row, "preference": vote} for vote in (1, 1.2, 1.9, 1.5, None)]
    with caplog.at_level("INFO"):
        judged, found, left_out = judged_by_length(SUITES["votes"], write_json(tmp_path / "annotations.json", rows))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["subsets"]["koala"]["n"] == 3 and found["complete"] is None
    assert dict(left_out) == {"the vote is a tie": 1, "there is no vote: 'preference' is null": 1}
    assert f"{tmp_path}/annotations.json; not read: generator_1" in caplog.text
    # Answers under other names.
    renamed = [{"q": "Q", "left": "a", "right": "bb", "choice": "B"}]
    path = write_lines(tmp_path / "own.jsonl", renamed)
    with pytest.raises(UserError, match="two answers .* are missing or null; the row has q, left, right, choice"):
        judged_by_length(SUITES["votes"], path)


def test_files_are_written_of_several_items_a_row(tmp_path):
    suite = SUITES["rmbench"]
    judged, _, _ = judged_by_length(suite, write_json(tmp_path / "total_dataset.json", RMBENCH))
    found = summarise(suite, judged, 20, 0)
    write(tmp_path / "out", "length", suite, judged, BaselineScorer("length", 0), found)
    table = (tmp_path / "out/results.csv").read_text().splitlines()
    assert f"headline,overall,,,{found['overall']}" in [",".join(line.split(",")[:5]) for line in table]
