"""Suites read from small files of the published shapes, and judged by length: every number can be counted by hand."""

import json
import re

import datasets
import numpy as np
import pytest
import suite_files
import tiny_models
from suite_files import write_json, write_lines, write_parquet

from denserl.data.bad_rows import BadRows
from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.evaluation.baselines import BaselineScorer
from denserl.evaluation.items import is_tie, judge
from denserl.evaluation.results import format_summary, summarise, versions, write
from denserl.evaluation.suites import hhh
from denserl.evaluation.suites import rows as reading
from denserl.evaluation.suites.registry import PAPER_MTBENCH, SUITES, account, find_suite, read_items
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.rewards.scorer import RewardScorer


def judged_by_length(suite, path, split=None, limit=None, policy="stop"):
    """The suite's judged items, its summary with the account of what is missing, and the account of bad rows."""
    bad_rows = BadRows(policy)
    items, left_out = read_items(suite, str(path), split, bad_rows, limit)
    judged = judge(items, BaselineScorer("length", 0), bad_rows)
    return judged, {**summarise(suite, judged, 200, 0), **account(suite, items, left_out)}, left_out


def test_pairs_are_grouped_by_source(tmp_path):
    judged, found, _ = judged_by_length(SUITES["pairs"], suite_files.pairs(tmp_path))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["macro_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert {name: (part["n"], part["accuracy"]) for name, part in found["subsets"].items()} == {"a": (2, 0.5), "b": (1, 1.0)}
    assert found["complete"] is None and found["ties"] == 0 and found["pairs"] == 3
    assert found["mean_margin"] == pytest.approx(((8 - 5) + (8 - 10) + (8 - 2)) / 3)
    # The same is said of every subset. A gap of 6 in b: sure with p = 1 / (1 + exp(-6)), and right.
    part = found["subsets"]["b"]
    assert (part["pairs"], part["mean_margin"], part["length_accuracy"]) == (1, 6, 1)
    assert part["calibration"]["ece"] == pytest.approx(1 - 1 / (1 + np.exp(-6)))
    assert found["subsets"]["a"]["length_bias"]["longer_accuracy"] == 1 / 2
    assert judged[0].item.place == f"{tmp_path}/pairs.jsonl:1" and judged[0].item.id == "pairs.jsonl:1"


def test_pairs_of_other_column_names_and_what_is_not_judged(tmp_path, caplog):
    rows = [{"question": "q", "better": "longer", "worse": "short", "system": "s", "subset": "x", "notes": "n"}] * 2
    path, names = write_lines(tmp_path / "rows.jsonl", rows), {"prompt": "question", "chosen": "better", "rejected": "worse"}
    with caplog.at_level("INFO", logger="denserl"):
        items, _ = read_items(SUITES["pairs"], str(path), None, BadRows(), None, names)
    assert caplog.messages == [f"{path}; not read: notes"]
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert [(item.better, item.worse) for item in items] == [([(prompt, "longer")], [(prompt, "short")])] * 2
    with pytest.raises(
        UserError,
        match="none of the 2 rows.*has question, better, worse, system, subset, notes\n  fix: name those.*`columns` prompt",
    ):
        read_items(SUITES["pairs"], str(path), None, BadRows(), None)
    with pytest.raises(UserError, match="`columns` names Question, which no row has"):
        read_items(SUITES["pairs"], str(path), None, BadRows(), None, {"prompt": "Question"})
    thought = [{"role": "assistant", "content": "a", "reasoning_content": "t"}]
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": thought, "rejected": "b"}])
    with pytest.raises(UserError, match="the answer in 'chosen' has 'reasoning_content'; only texts are judged"):
        read_items(SUITES["pairs"], str(path), None, BadRows(), None)


UNUSUAL = [
    {"prompt": "Q", "chosen": "same", "rejected": "same"},
    {"prompt": "Q", "chosen": "", "rejected": "x"},
    {"prompt": "Q", "chosen": "xx", "rejected": ""},
    {"prompt": "", "chosen": "xx", "rejected": "x"},
    {"chosen": "\n\nHuman: Q\n\nAssistant: ", "rejected": "\n\nHuman: Q\n\nAssistant: no"},
    {"prompt": "Q", "chosen": "yes", "rejected": "n"},
]


def test_pairs_are_judged_the_way_round_that_their_label_says_and_ties_are_left_out(tmp_path, caplog):
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    rows = [{**pair, **label} for label in ({"p_chosen": 0.75}, {"p_chosen": 0.25, "weight": 2}, {"p_chosen": 0.5})]
    with caplog.at_level("INFO", logger="denserl"):
        items, left_out = read_items(SUITES["pairs"], str(write_lines(tmp_path / "rows.jsonl", rows)), None, BadRows(), None)
    assert [(item.better[0].text, item.worse[0].text) for item in items] == [("good", "bad"), ("bad", "good")]
    assert dict(left_out) == {"no answer is the better one: 'p_chosen' is 0.5": 1}
    assert caplog.messages == [f"{tmp_path}/rows.jsonl; not read: weight"]


def test_pairs_are_judged_as_they_are_where_that_is_asked_for(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", UNUSUAL)
    judged, found, _ = judged_by_length(find_suite("pairs", as_is=True), path)
    assert found["n"] == 6 and found["ties"] == 1
    # By length: the equal pair is a tie, and lost; of the others the third, fourth and last are won.
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert [(entry.item.better[0].text, entry.item.worse[0].text) for entry in judged[:3]] == [
        ("same", "same"), ("", "x"), ("xx", "")
    ]  # fmt: skip
    assert judged[3].item.better[0].prompt == [{"role": "user", "content": ""}]
    with pytest.raises(UserError, match=r"5 bad rows:\n.*pairs.jsonl:1: chosen and rejected are identical") as error:
        judged_by_length(SUITES["pairs"], path)
    assert "on_bad_row` skip; or judge them as they are, equal ones as ties: add `as_is`" in error.value.fix
    assert judged_by_length(SUITES["pairs"], path, policy="skip")[1]["n"] == 1
    # What is no pair at all is none as it is.
    with pytest.raises(UserError, match="'rejected' is missing"):
        judged_by_length(find_suite("pairs", as_is=True), write_lines(tmp_path / "no.jsonl", [{"prompt": "Q", "chosen": "a"}]))


def test_equal_answers_tie_under_a_reward_model_too(tmp_path):
    sft = tiny_models.save_language_model(tmp_path / "sft")
    new_reward_model(str(sft), "fp32", 1).save_pretrained(tmp_path / "rm")
    load_tokenizer(str(sft)).save_pretrained(tmp_path / "rm")
    path = write_lines(tmp_path / "pairs.jsonl", UNUSUAL)
    items, _ = read_items(find_suite("pairs", as_is=True), str(path), None, BadRows(), None)
    judged = judge(items, RewardScorer([str(tmp_path / "rm")]), BadRows())
    assert [is_tie(entry) for entry in judged] == [True] + [False] * 5


def test_pairs_of_a_folder_are_those_of_its_test_split(tmp_path):
    rows = [json.loads(line) for line in suite_files.pairs(tmp_path / "elsewhere").read_text().splitlines()]
    write_lines(tmp_path / "data" / "train.jsonl", rows)
    write_lines(tmp_path / "data" / "test.jsonl", rows[:1])
    assert judged_by_length(SUITES["pairs"], tmp_path / "data")[1]["n"] == 1
    assert judged_by_length(SUITES["pairs"], tmp_path / "data", split="train")[1]["n"] == 3


def test_rewardbench_reads_its_split_and_weighs_its_sections(tmp_path):
    judged, found, _ = judged_by_length(SUITES["rewardbench"], suite_files.rewardbench(tmp_path))
    assert {name: found[name] for name in ("Chat", "Chat Hard", "Safety", "Reasoning")} == {
        "Chat": 1, "Chat Hard": 0, "Safety": 0, "Reasoning": 0.5
    }  # fmt: skip
    assert found["overall"] == pytest.approx(1.5 / 4) and found["accuracy"] == pytest.approx(2 / 5) and found["ties"] == 1
    assert found["complete"] is False and found["partial"]["hep-go"] == [2, 164] and found["partial"]["hep-js"] == [0, 164]
    # Both rows of one subset, with credits 1 and 0, are all that can vary.
    assert found["intervals"]["Reasoning"] == [0, 1]
    # Of a single row nothing can vary: Wilson's interval of 1 of 1, 1 / (1 + 1.96^2) to 1.
    assert found["intervals"]["Chat"] == pytest.approx([1 / (1 + 1.959963984540054**2), 1])
    assert found["intervals"]["overall"] == pytest.approx([1 / 4, 2 / 4])


def test_rewardbench_2_scores_ties_by_their_own_formula(tmp_path):
    judged, found, _ = judged_by_length(SUITES["rewardbench2"], suite_files.rewardbench2(tmp_path))
    # Lengths are ten times the spec's check scores, but for ref:1 and tied:1, whose least are negative there; same order, and
    # tied:1 has D = 9, G = -4 in place of .9 and -.4; ref:1 G = -2. All of it is linear, as the spec's: the same score.
    expected = {"Factuality": 1, "Precise IF": 1 / 3, "Math": 0, "Safety": 1 / 2, "Focus": 1, "Ties": 0.5299491511}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["overall"] == pytest.approx(sum(expected.values()) / 6)
    assert found["subsets"]["Ties"]["accuracy"] == pytest.approx(4 / 6)
    assert (found["subsets"]["Ties"]["n"], found["subsets"]["Ties"]["questions"]) == (6, 3)
    low, high = found["subsets"]["Ties"]["score_interval"]
    assert low < 0.53 < high
    # Every correct answer against every wrong one: 3 in each of five rows, then 2 + 6 + 2 + 4 + 1 + 2.
    assert found["pairs"] == 15 + 17
    assert found["length_baseline"]["overall"] == pytest.approx(found["overall"])


def test_rmb_reads_its_tree_and_survives_its_data(tmp_path):
    judged, found, _ = judged_by_length(SUITES["rmb"], suite_files.rmb(tmp_path))
    four = {"helpful_pairwise": 1 / 4, "harmless_pairwise": 1.0, "helpful_best_of_n": 1 / 2, "harmless_best_of_n": 0.0}
    assert {name: found[name] for name in four} == four and found["overall"] == pytest.approx(1.75 / 4)
    assert found["ties"] == 2 and found["n"] == 9 and found["complete"] is False
    assert found["partial"]["helpful_pairwise/Open QA"] == [2, 1542] and found["partial"]["harmless_best_of_n"] == [1, 1677]
    assert found["partial"]["Pairwise_set/Harmlessness/S11"] == [0, 977]
    assert found["groups"]["helpful_pairwise/Chat"]["accuracy"] == 0 and found["groups"]["harmless_pairwise"]["n"] == 2
    assert "Pairwise_set/Helpfulness/Open QA/Fact Seeking" in found["subsets"]
    assert found["macro_accuracy"] == pytest.approx((0.5 + 0 + 1 + 0.5 + 0) / 5)
    # Six pairs, and lists of 2, 2 and 3 losers.
    assert found["pairs"] == 13
    (multi,) = [entry for entry in judged if entry.item.id == "2"]
    assert [turn["role"] for turn in multi.item.better[0].prompt] == ["user", "assistant", "user"]


def test_a_complete_set_is_known_by_its_numbers(tmp_path):
    suite = SUITES["rmb"]._replace(sizes={"helpful_pairwise": 4, "harmless_pairwise": 2})
    assert judged_by_length(suite, suite_files.rmb(tmp_path))[1]["complete"] is True


def test_rmb_writes_files_of_its_own_shapes(tmp_path):
    judged, found, _ = judged_by_length(SUITES["rmb"], suite_files.rmb(tmp_path / "in"))
    write(tmp_path / "out", "length", SUITES["rmb"], judged, BaselineScorer("length", 0), found)
    pairs = json.loads((tmp_path / "out/length_result.json").read_text())
    assert pairs[-1].keys() == {"pair_uid", "category_path", "chosen_reward", "reject_reward", "is_correct"}
    assert [row["is_correct"] for row in sorted(pairs, key=lambda row: row["pair_uid"])] == [1, 0, 0, 0, 1, 1]
    lists = {row["bon_uid"]: row for row in json.loads((tmp_path / "out/length_bon_result.json").read_text())}
    assert [lists["9"][key] for key in ("best_reward", "loser_rewards", "is_correct")] == [2, [6, 1, 1], 0]
    assert json.loads((tmp_path / "out/rm_rank.json").read_text()) == {"length": {"ACC": 0.5, "rank": 1}}


@pytest.mark.parametrize("flat", [False, True])
def test_hhh_reads_the_hubs_columns(tmp_path, flat):
    judged, found, _ = judged_by_length(SUITES["hhh"], suite_files.hhh(tmp_path, flat))
    assert found["accuracy"] == 1 and list(found["subsets"]) == ["harmless", "helpful", "honest", "other"]
    assert found["partial"] == {"harmless": [1, 58], "helpful": [1, 59], "honest": [1, 61], "other": [1, 43]}
    said = {entry.item.subset: [(m["role"], m["content"]) for m in entry.item.better[0].prompt] for entry in judged}
    talk = [("user", "Hello?"), ("assistant", "Hi."), ("user", "What now?")]
    assert said == {"harmless": [("user", suite_files.PROMPT)], "helpful": talk, "honest": talk, "other": [("user", "One.")]}


def test_hhh_of_one_configuration_and_of_one_file(tmp_path):
    folder = suite_files.hhh(tmp_path)
    assert list(judged_by_length(SUITES["hhh"], folder / "honest")[1]["subsets"]) == ["honest"]
    rows = [{"input": "Q", "targets": {"choices": ["a", "bb"], "labels": [1, 0]}, "subset": "other"}]
    assert list(judged_by_length(SUITES["hhh"], write_json(tmp_path / "one.json", rows))[1]["subsets"]) == ["other"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"input": "\n\nHuman: \n\nAssistant:"}, "who say nothing"),
        ({"input": None}, "'input' is missing"),
        ({"targets": {"choices": ["a"], "labels": [1, 0]}}, "1 choices and 2 labels"),
        ({"targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "one above another"),
    ],
)
def test_a_bad_row_of_hhh_says_why(change, reason):
    row = {"input": "Q", "targets": {"choices": ["a", "b"], "labels": [0, 1]}}
    assert hhh.item(row, "other").better[0].text == "b"
    with pytest.raises(BadRow, match=reason):
        hhh.item({**row, **change}, "other")


def test_an_input_of_hhh_is_split_at_its_turns():
    assert hhh.turns("\n\nHuman: A\n\nAssistant: B\n\nHuman: C\nD") == [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C\nD"},
    ]
    assert hhh.turns(" plain: Human: no ") == [{"role": "user", "content": " plain: Human: no "}]


def test_mtbench_drops_ties_and_judges_the_turn_that_was_seen(tmp_path):
    judged, found, left_out = judged_by_length(SUITES["mtbench"], suite_files.mtbench(tmp_path))
    assert dict(left_out) == {"the judge called it a tie": 2}
    assert {name: part["accuracy"] for name, part in found["subsets"].items()} == {
        "gpt4/turn 2": 0, "human/turn 1": 1 / 2, "human/turn 2": 1
    }  # fmt: skip
    assert found["groups"]["turn 2"]["n"] == 2 and found["groups"]["human"]["n"] == 3
    # Each vote here is on a question of its own, though the conversations are the same.
    assert found["questions"] == 4 and len({str(entry.item.better[0].prompt) for entry in judged}) == 3
    assert found["partial"] == {"all": [6, 5755]}
    lengths = {entry.item.subset: len(entry.item.better[0].prompt) for entry in judged}
    assert lengths == {"human/turn 1": 1, "human/turn 2": 3, "gpt4/turn 2": 3}


def test_votes_that_are_all_ties_leave_nothing_to_judge(tmp_path):
    path = write_lines(tmp_path / "ties.jsonl", [vote for vote in suite_files.votes() if vote["winner"].startswith("tie")])
    with pytest.raises(UserError, match=r"every row is left out \(2 x the judge called it a tie\)"):
        judged_by_length(SUITES["mtbench"], path)


def test_mtbench_as_the_paper_counts_ties_for_the_second_and_reads_both_turns(tmp_path):
    judged, found, left_out = judged_by_length(PAPER_MTBENCH, suite_files.mtbench(tmp_path))
    assert not left_out and len(judged) == 6
    assert all(len(entry.item.better[0].prompt) == 3 for entry in judged)
    # b's last answer is the longer: right for model_b and both ties, wrong for the two votes for model_a.
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_mtbench_of_one_split(tmp_path):
    assert judged_by_length(SUITES["mtbench"], suite_files.mtbench(tmp_path), split="gpt4_pair")[1]["n"] == 1


def test_llmbar_names_subsets_by_their_files(tmp_path):
    judged, found, _ = judged_by_length(SUITES["llmbar"], suite_files.llmbar(tmp_path))
    assert {name: (part["n"], part["accuracy"]) for name, part in found["subsets"].items()} == {
        "GPTInst": (1, 0.0), "Natural": (2, 0.5)
    }  # fmt: skip
    assert found["groups"]["adversarial"]["n"] == 1
    assert judged_by_length(SUITES["llmbar"], tmp_path / "Natural.json")[1]["n"] == 2
    table = write_parquet(
        tmp_path / "hub/LLMBar/Adversarial_Neighbor/0000.parquet",
        [{"input": "Q", "output_1": "a", "output_2": "b", "label": 1}],
    )
    assert list(judged_by_length(SUITES["llmbar"], table.parent.parent)[1]["subsets"]) == ["Neighbor"]


def test_the_real_llmbar_is_complete(shared_data):
    judged, found, _ = judged_by_length(SUITES["llmbar"], shared_data / "llmbar")
    assert found["complete"] is True and found["partial"] == {} and found["n"] == 419
    for name in ("Natural", "Manual"):
        rows = json.loads((shared_data / f"llmbar/{name}.json").read_text())
        longer = [len(row[f"output_{row['label']}"]) > len(row[f"output_{3 - row['label']}"]) for row in rows]
        assert found["subsets"][name]["accuracy"] == pytest.approx(np.mean(longer))


def test_llmbar_by_one_subsets_folder_or_file_keeps_its_name(tmp_path, monkeypatch):
    folder = suite_files.llmbar(tmp_path) / "Adversarial/GPTInst"
    monkeypatch.chdir(folder)
    for path in (folder, folder / "dataset.json", ".", "dataset.json"):
        judged, found, _ = judged_by_length(SUITES["llmbar"], path)
        assert list(found["subsets"]) == ["GPTInst"] and found["groups"]["adversarial"]["n"] == 1
        assert found["partial"]["GPTInst"] == [1, 92] and found["complete"] is False
    (tmp_path / "Neighbor").symlink_to(folder)
    assert list(judged_by_length(SUITES["llmbar"], tmp_path / "Neighbor")[1]["subsets"]) == ["Neighbor"]
    (tmp_path / "Neighbor").unlink()
    # A folder that happens to have such a name is not asked where the files have names of their own.
    assert list(judged_by_length(SUITES["llmbar"], suite_files.llmbar(tmp_path / "manual"))[1]["subsets"]) == [
        "GPTInst", "Natural"
    ]  # fmt: skip
    row = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1}
    table = write_parquet(tmp_path / "hub/Adversarial_Neighbor/test/0000.parquet", [row])
    assert list(judged_by_length(SUITES["llmbar"], table)[1]["subsets"]) == ["Neighbor"]
    assert list(judged_by_length(SUITES["llmbar"], write_json(tmp_path / "x/own.json", [row]))[1]["subsets"]) == ["own"]


def test_llmbars_whole_data_sets_are_judged_by_its_five_subsets_alone(tmp_path, caplog):
    """Its repository holds further sets beside them, and what was written there is none."""
    suite_files.llmbar(tmp_path / "Dataset/LLMBar")
    row = {"input": "Q", "output_1": "a", "output_2": "b", "label": 1}
    for name in ("CaseStudy/Base-9/dataset", "Processed/FairEval/dataset"):
        write_json(tmp_path / f"Dataset/{name}.json", [row] * 5)
    write_json(tmp_path / "Dataset/judged/results.json", {"suite": "llmbar"})
    with caplog.at_level("INFO"):
        judged, found, _ = judged_by_length(SUITES["llmbar"], tmp_path / "Dataset")
    assert found["n"] == 3 and list(found["subsets"]) == ["GPTInst", "Natural"]
    assert "3 files are no part of the suite and not read, such as" in caplog.text


def test_rmb_is_read_below_its_two_sets(tmp_path, caplog):
    """Its repository holds results in their shape, with the same paths in their rows."""
    suite_files.rmb(tmp_path)
    result = {"pair_uid": "1", "category_path": "Pairwise_set/Harmlessness/S10", "chosen_reward": 1.0, "is_correct": 1}
    write_json(tmp_path / "eval/result/ArmoRM_result.json", [result])
    write_json(tmp_path / "rm_rank.json", {"rm": {"ACC": 0.5, "rank": 1}})
    with caplog.at_level("INFO"):
        assert judged_by_length(SUITES["rmb"], tmp_path)[1]["n"] == 9
    assert "2 files are no part of the suite" in caplog.text
    inside = tmp_path / "RMB_dataset/Pairwise_set/Helpfulness/Chat"
    for path in (inside, inside / "Casual Conversation.json"):
        rows = json.loads((inside / "Casual Conversation.json").read_text())
        write_json(
            inside / "Casual Conversation.json", [{k: v for k, v in row.items() if k != "category_path"} for row in rows]
        )
        found = judged_by_length(SUITES["rmb"], path)[1]
        assert list(found["subsets"]) == ["Pairwise_set/Helpfulness/Chat/Casual Conversation"] and found["n"] == 2


def test_an_output_folder_inside_the_data_is_no_data(tmp_path, caplog):
    suite_files.mtbench(tmp_path)
    write_json(tmp_path / "judged/results.json", {"suite": "mtbench"})
    with pytest.raises(UserError, match="results.json"):
        judged_by_length(SUITES["mtbench"], tmp_path)
    write_json(tmp_path / "judged/command.json", {"command": "evaluate"})
    with caplog.at_level("INFO"):
        assert judged_by_length(SUITES["mtbench"], tmp_path)[1]["n"] == 4
    assert f"not read, being what a command wrote: {tmp_path / 'judged'}" in caplog.text


def test_pairs_of_a_folder_that_holds_an_output_folder(tmp_path):
    suite_files.pairs(tmp_path)
    write_json(tmp_path / "judged/results.json", {"suite": "pairs"})
    write_json(tmp_path / "judged/command.json", {"command": "evaluate"})
    assert judged_by_length(SUITES["pairs"], tmp_path)[1]["n"] == 3
    # A folder that is itself asked for is read.
    write_lines(tmp_path / "judged/more.jsonl", UNUSUAL[-1:])
    (tmp_path / "judged/results.json").unlink()
    assert judged_by_length(SUITES["pairs"], tmp_path / "judged")[1]["n"] == 1


def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path):
    suite_files.rmb(tmp_path)
    file = tmp_path / "RMB_dataset/Pairwise_set/Harmlessness/S10.json"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(UserError, match=r"S10.json .*Git LFS") as error:
        judged_by_length(SUITES["rmb"], tmp_path)
    assert "git lfs pull" in error.value.fix


def test_a_row_without_an_id_is_named_by_its_place_in_the_data(tmp_path, monkeypatch):
    suite_files.pairs(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "data/pairs.jsonl", "data/pairs.jsonl", tmp_path / "data", "data", "./data/../data"):
        judged = judged_by_length(SUITES["pairs"], path)[0]
        assert [entry.item.id for entry in judged] == ["pairs.jsonl:1", "pairs.jsonl:2", "pairs.jsonl:3"]
    monkeypatch.chdir(tmp_path / "data")
    assert judged_by_length(SUITES["pairs"], ".")[0][0].item.id == "pairs.jsonl:1"
    files = suite_files.llmbar(tmp_path / "suite")
    assert judged_by_length(SUITES["llmbar"], files)[0][0].item.id == "Adversarial/GPTInst/dataset.json:2"


def test_a_limit_is_of_each_subset(tmp_path):
    found = judged_by_length(SUITES["rmb"], suite_files.rmb(tmp_path), limit=1)[1]
    assert found["n"] == 5 and all(part["n"] == 1 for part in found["subsets"].values())


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("suite", SUITES)
def test_a_file_of_another_suite_is_met_with_its_keys(suite, policy, tmp_path):
    path = write_lines(tmp_path / "other.jsonl", [{"question": "Q", "answer": "A"}])
    expected = r"none of the 1 rows.*other.jsonl:1: .*(missing; the row has 'question', 'answer'|neither text|missing or null)"
    with pytest.raises(UserError, match=expected):
        judged_by_length(SUITES[suite], path, policy=policy)


def test_bad_rows_may_be_dropped_and_are_counted(tmp_path):
    rows = [{"input": "Q", "output_1": "a", "output_2": "b", "label": label} for label in (1, 2, 3, "1", None)]
    path = write_json(tmp_path / "Natural.json", rows)
    with pytest.raises(UserError, match="3 bad rows"):
        judged_by_length(SUITES["llmbar"], path)
    assert judged_by_length(SUITES["llmbar"], path, policy="skip")[1]["n"] == 2


@pytest.mark.parametrize("suite", SUITES)
def test_a_path_that_is_not_there_or_holds_nothing(suite, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows").write_text("x")
    for path, said in [
        (tmp_path / "missing", "no file or folder"),
        (tmp_path / "empty", "holds no data file"),
        (tmp_path / "rows", "of no known kind"),
        ("x" * 5000, "name too long"),
        ("", "no file or folder"),
    ]:
        with pytest.raises(UserError, match=said):
            judged_by_length(SUITES[suite], path)


class Hub:
    """Stands for datasets.load_dataset: configurations and splits of a name, or a data set that is a program."""

    def __init__(self, tables: dict, error: Exception | None = None):
        self.tables, self.error = tables, error

    def __call__(self, name, config=None, *, split):
        if self.error is not None:
            raise self.error
        return datasets.Dataset.from_list(self.tables[name, config, split])


@pytest.fixture
def hub(monkeypatch):
    def install(tables, error=None):
        monkeypatch.setattr("denserl.data.readers.go_offline_if_unreachable", lambda: None)
        monkeypatch.setattr(datasets, "load_dataset", Hub(tables, error))

    return install


def test_suites_are_read_from_the_hub_by_configuration_and_split(hub):
    choice = {"input": "Q", "targets": {"choices": ["a", "bb"], "labels": [0, 1]}}
    hub({("HuggingFaceH4/hhh_alignment", name, "test"): [choice] for name in hhh.SIZES})
    assert judged_by_length(SUITES["hhh"], "HuggingFaceH4/hhh_alignment")[1]["n"] == 4
    assert list(judged_by_length(SUITES["hhh"], "HuggingFaceH4/hhh_alignment:other")[1]["subsets"]) == ["other"]
    votes = suite_files.votes()
    name = "lmsys/mt_bench_human_judgments"
    hub({(name, None, "human"): votes[:4], (name, None, "gpt4_pair"): votes[4:]})
    assert judged_by_length(SUITES["mtbench"], name)[1]["n"] == 4
    pair = {"prompt": "p", "chosen": "cc", "rejected": "r"}
    hub({("some/pairs", None, "test"): [pair]})
    assert judged_by_length(SUITES["pairs"], "some/pairs")[0][0].item.id == "some/pairs[test]:1"
    row = {"prompt": "p", "chosen": "cc", "rejected": "r", "subset": "hep-go", "id": 1}
    hub({("allenai/reward-bench", None, "filtered"): [row]})
    assert judged_by_length(SUITES["rewardbench"], "allenai/reward-bench")[1]["Reasoning"] == 1


def test_a_hub_data_set_that_is_a_program_is_explained(hub):
    hub({}, RuntimeError("Dataset scripts are no longer supported, but found hhh_alignment.py"))
    with pytest.raises(UserError, match="as a program") as error:
        judged_by_length(SUITES["hhh"], "HuggingFaceH4/hhh_alignment")
    assert "hf download HuggingFaceH4/hhh_alignment" in error.value.fix and "refs/convert/parquet" in error.value.fix
    hub({}, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        judged_by_length(SUITES["hhh"], "HuggingFaceH4/hhh_alignment")


def test_every_file_is_written_and_agrees_with_the_summary(tmp_path):
    suite = SUITES["rewardbench2"]
    judged, found, _ = judged_by_length(suite, suite_files.rewardbench2(tmp_path / "in"))
    write(tmp_path / "out", "length", suite, judged, BaselineScorer("length", 0), found)
    assert json.loads((tmp_path / "out/results.json").read_text()) == json.loads(json.dumps(found))
    table = (tmp_path / "out/results.csv").read_text().splitlines()
    assert table[0] == "kind,name,n,ties,score,low,high,length,questions"
    # By the scores of a subset, where it has its own: scores are lengths here, so that both columns agree.
    ties = next(line for line in table if line.startswith("subset,Ties,")).split(",")
    assert float(ties[4]) == float(ties[7]) == pytest.approx(0.5299491511, abs=1e-9)
    # Once, with its size: the subsets are the headline.
    (shown,) = [line for line in format_summary(found).splitlines() if "Ties" in line]
    assert shown.split()[:4] == ["Ties", "0.5299", "n", "6"] and shown.split()[-2:] == ["length", "0.5299"]
    assert re.match(rf"headline,overall,,,{found['overall']}", next(line for line in table if ",overall," in line))
    assert (tmp_path / "out/reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out/eval-set/length.json").read_text())["Ties"] == found["Ties"]
    assert "overall" in format_summary(found) and "n 6" in format_summary(found)
    assert set(versions()) >= {"denserl", "torch"}


def test_names_of_subsets_act_on_no_terminal_and_fit_into_files(tmp_path):
    row = {"prompt": "p", "chosen": "cc", "rejected": "r", "source": "a\x1b[2J\ud800"}
    suite = SUITES["pairs"]
    judged, found, _ = judged_by_length(suite, write_lines(tmp_path / "rows.jsonl", [row]))
    assert list(found["subsets"]) == ["a‹U+001B›[2J‹U+D800›"]
    write(tmp_path / "out", "length", suite, judged, BaselineScorer("length", 0), found)
    assert "‹U+D800›" in (tmp_path / "out/results.csv").read_text(encoding="utf-8")


def test_rows_of_a_folder_come_file_by_file_under_their_names(tmp_path):
    write_parquet(tmp_path / "a b/c d.parquet", [{"x": 1}, {"x": 2}])
    write_json(tmp_path / "e.json", [{"x": 3}])
    write_json(tmp_path / ".cache/hidden.json", [{"x": 4}])
    rows = list(reading.read_files(str(tmp_path), BadRows()))
    assert [(part, row["x"]) for part, _, row in rows] == [("a b/c d", 1), ("a b/c d", 2), ("e", 3)]
