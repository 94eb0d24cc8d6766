"""RMB's mean of four and its files, on a small tree of the published shape; golden values of spec evaluation, section 1."""

import json

import pytest

from denserl.data.schemas import BadRow
from denserl.errors import UserError
from denserl.evaluation.suites import rmb

CODE = "Pairwise_set/Helpfulness/Code/Code Generation"


def record(change=None, **kw):
    row = {
        "pair_uid": "7",
        "conversation_input": [{"role": "user", "content": "Hello", "language": "English"}],
        "chosen": {"llm_name": "a", "answer": "good answer"},
        "reject": {"llm_name": "b", "answer": "bad"},
        "category_path": CODE,
    }
    return {**row, **kw, **(change or {})}


@pytest.mark.parametrize(
    "bon_help, pair_help, bon_harm, pair_harm, published",
    [
        (0.604, 0.774, 0.674, 0.795, 0.712),
        (0.650, 0.798, 0.607, 0.767, 0.705),
        (0.355, 0.562, 0.351, 0.545, 0.453),
        (0.289, 0.613, 0.249, 0.602, 0.438),
    ],
)
def test_overall_is_that_of_the_leaderboard(bon_help, pair_help, bon_harm, pair_harm, published):
    pairwise, best = {"helpful": pair_help, "harmless": pair_harm}, {"helpful": bon_help, "harmless": bon_harm}
    assert rmb.overall(pairwise, best) == pytest.approx(published, abs=5.1e-4)


@pytest.mark.parametrize("names", [("Helpful", "HARMLESS"), ("Helpfulness", "Harmlessness"), ("helpfulness", "harmless")])
def test_the_halves_have_several_spellings(names):
    part = dict(zip(names, (0.2, 0.4)))
    assert rmb.overall(part, {"helpful": 0.6, "harmless": 0.8}) == pytest.approx(0.5)


def test_the_two_numbers_of_a_set_may_come_alone():
    assert rmb.overall((0.774, 0.795), [0.604, 0.674]) == pytest.approx(0.712, abs=5.1e-4)


@pytest.mark.parametrize("part", [{"helpful": 1.0}, {"helpful": 1.0, "harmless": 1.0, "other": 1.0}, [1.0], [1.0, 1.0, 1.0]])
def test_a_half_that_is_missing_or_unknown_is_refused(part):
    with pytest.raises(ValueError):
        rmb.overall(part, {"helpful": 1.0, "harmless": 1.0})


def test_the_four_numbers_are_pooled_over_items():
    scores = {CODE: 1.0, "Pairwise_set/Helpfulness/Chat/Small Talk": 0.5, "BoN_set/Harmlessness/S1": 0.25}
    counts = dict(zip(scores, (10, 30, 4)))
    found = rmb.headline(scores, counts)
    assert found["helpful_pairwise"] == pytest.approx((10 + 15) / 40)
    assert found["harmless_best_of_n"] == 0.25
    assert found["harmless_pairwise"] is None and found["overall"] is None


def test_sizes_are_those_of_the_whole_set():
    assert sum(rmb.SIZES.values()) == 17131 + 3786
    assert sum(rmb._PAIRS.values()) == rmb.SIZES["helpful_pairwise"] and sum(rmb._LISTS) == rmb.SIZES["helpful_best_of_n"]
    harms = {part: [n for name, n in rmb.SCENARIOS.items() if name.startswith(part)] for part in ("Pairwise_set", "BoN_set")}
    assert list(map(len, harms.values())) == [12, 12]
    assert list(map(sum, harms.values())) == [rmb.SIZES["harmless_pairwise"], rmb.SIZES["harmless_best_of_n"]]
    assert rmb.SCENARIOS["Pairwise_set/Harmlessness/S11"] == 977 and rmb.SCENARIOS["BoN_set/Harmlessness/multi"] == 131


def test_a_scenario_belongs_to_its_set_and_task():
    assert rmb.groups("BoN_set/Harmlessness/multi") == ("harmless_best_of_n",)
    assert rmb.groups("Pairwise_set/Helpfulness/Open QA/A B") == ("helpful_pairwise", "helpful_pairwise/Open QA")


def test_records_of_both_sets_are_items():
    pair = rmb.item(record(), "")
    assert (pair.id, pair.subset) == ("7", CODE)
    assert pair.better[0].prompt == [{"role": "user", "content": "Hello"}] and pair.worse[0].text == "bad"
    losers = [{"answer": "x"}, {"answer": "y"}]
    row = {
        "bon_uid": "8",
        "conversation_input": record()["conversation_input"],
        "bon_best": {"answer": ""},
        "loser_list": losers,
    }
    best = rmb.item(row, "RMB_dataset/BoN_set/Harmlessness/S10")
    assert (best.id, best.subset, best.better[0].text, len(best.worse)) == ("8", "BoN_set/Harmlessness/S10", "", 2)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"reject": None}, "'reject' is missing"),
        ({"chosen": {"llm_name": "a"}}, "'answer' is missing"),
        ({"conversation_input": []}, "'conversation_input' is neither"),
        ({"category_path": "elsewhere"}, "'category_path' is 'elsewhere'"),
        ({"bon_best": {"answer": "a"}, "loser_list": []}, "'loser_list' is empty"),
        ({"bon_best": "a", "loser_list": [{"answer": "a"}]}, "an answer is a text"),
    ],
)
def test_a_bad_record_says_why(change, reason):
    with pytest.raises(BadRow, match=reason):
        rmb.item(record(change), "")


def test_the_ranking_is_made_kept_and_sorted(tmp_path):
    path = tmp_path / "rm_rank.json"
    rmb.rank(path, "middle", 0.5)
    assert json.loads(path.read_text()) == {"middle": {"ACC": 0.5, "rank": 1}}
    rmb.rank(path, "best", 0.9)
    rmb.rank(path, "middle", 0.4)
    rmb.rank(path, "worst", 0.1)
    assert json.loads(path.read_text()) == {
        "best": {"ACC": 0.9, "rank": 1},
        "middle": {"ACC": 0.4, "rank": 2},
        "worst": {"ACC": 0.1, "rank": 3},
    }


def test_a_file_that_is_no_ranking_is_not_written_over(tmp_path):
    path = tmp_path / "rm_rank.json"
    path.write_text('["m"]')
    with pytest.raises(UserError, match="no table of models"):
        rmb.rank(path, "m", 0.5)
    assert path.read_text() == '["m"]'
