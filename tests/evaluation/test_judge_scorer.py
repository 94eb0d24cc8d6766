"""Judges as scorers of suites: what their verdicts earn by the rule of each suite, and what is reported of them."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import rule_server

from denserl.data.bad_rows import BadRow, BadRows
from denserl.errors import UserError
from denserl.evaluation.items import Answer, Item, by_verdicts
from denserl.evaluation.judge_scorer import ComparingJudge, RatingJudge, comparisons
from denserl.evaluation.results import format_summary, write
from denserl.evaluation.strength_page import write_accuracy_page
from denserl.evaluation.suites.registry import SUITES
from denserl.judging.asking import Asker, Limit
from denserl.judging.comparing import TextJudge, text_vote
from denserl.judging.contract import Comparison, Decoding, Judgement
from denserl.judging.store import Store
from denserl.judging.templates import find_template

PROMPT = [{"role": "user", "content": "Q?"}]


class Rule:
    """A judge that knows what each answer is worth: a number, or None of which it says nothing."""

    def __init__(self, worth, verdicts=()):
        self.worth, self.verdicts, self.asked = worth, verdicts, []

    def compare(self, comparisons):
        self.asked += comparisons
        return [self.judgement(self.worth[each.first], self.worth[each.second]) for each in comparisons]

    def judgement(self, first, second):
        if first is None or second is None:
            return Judgement(None, (("invalid",), ("cut",)))
        verdict = "first" if first > second else "second" if first < second else "tie"
        return Judgement(0.5 + 0.5 * float(np.sign(first - second)), ((verdict,), (verdict,)))

    def rate(self, answers):
        self.asked += answers
        return [self.worth[text] for _, text in answers]

    def describe(self):
        return {"model": "rule"}


def item(number, better, worse, subset="all", prompt=PROMPT):
    sides = ([Answer(prompt, text) for text in side.split()] for side in (better, worse))
    return Item(str(number), subset, *sides)


def judged(suite, items, scorer, resamples=20):
    found = SUITES[suite].judge(items, scorer, BadRows("stop"))
    return found, SUITES[suite].summarise(found, scorer, resamples, 0)


WORTH = {"a": 3, "b": 2, "c": 2, "d": 1, "?": None}
PAIRS = [("a", "b", 1), ("b", "c", "tie"), ("d", "a", 0), ("a", "?", "invalid"), ("?", "?", "invalid")]
BON = [("a", "b c", 1), ("b", "c d", 0), ("a", "b ?", 0), ("?", "a b", 0)]
CODE, LIST = "Pairwise_set/Helpfulness/Code/X", "BoN_set/Harmlessness/S1"


@pytest.mark.parametrize(
    "suite, tie, invalid, subset",
    [("rewardbench", 0.5, 0.5, "hep-go"), ("rmb", 0.5, 0.0, CODE), ("llmbar", 0.5, 0.5, "Natural"), ("pairs", 0.5, 0.5, "all")],
)
def test_a_pair_earns_what_its_suite_says(suite, tie, invalid, subset):
    earns = {"tie": tie, "invalid": invalid}
    items = [item(number, *pair[:2], subset) for number, pair in enumerate(PAIRS)]
    found, summary = judged(suite, items, ComparingJudge(Rule(WORTH), False))
    expected = [earns.get(credit, credit) for *_, credit in PAIRS]
    assert [SUITES[suite].earned(entry) for entry in found] == expected
    assert summary["accuracy"] == pytest.approx(np.mean(expected)) and summary["ties"] == 1
    # Without a probability nothing can be said of how sure it is; ties are half of a pair, what is not valid none.
    assert "calibration" not in summary and summary["pairs"] == 5 and summary["pair_accuracy"] == 0.5
    assert summary["length_baseline"]["accuracy"] == 0.0


def test_a_list_is_won_only_against_every_loser():
    items = [item(number, *pair[:2], LIST) for number, pair in enumerate(BON)]
    rule = Rule(WORTH)
    found, summary = judged("rmb", items, ComparingJudge(rule, False))
    assert [SUITES["rmb"].earned(entry) for entry in found] == [credit for *_, credit in BON]
    assert summary["harmless_best_of_n"] == 0.25
    # Pair by pair, all of them.
    assert [(each.first, each.second) for each in rule.asked] == [
        ("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("a", "b"), ("a", "?"), ("?", "a"), ("?", "b")
    ]  # fmt: skip
    assert found[0].better == [1.0] and found[1].worse.tolist() == [0.5, 0.0]
    assert found[2].better == [1.0] and np.isnan(found[2].worse[1]) and np.isnan(found[3].better[0])


def test_ratings_make_pairs_and_the_four_of_rewardbench_2():
    items = [item(number, *pair[:2]) for number, pair in enumerate(PAIRS)]
    found, summary = judged("pairs", items, RatingJudge(Rule(WORTH)))
    # An answer without a rating is below every other.
    assert [SUITES["pairs"].earned(entry) for entry in found] == [1, 0.5, 0, 1, 0.5]
    assert [SUITES["rmb"].earned(entry) for entry in found] == [1, 0.5, 0, 1, 0] and summary["ties"] == 1
    four = [("a", "b c d", 1), ("b", "c d d", 1 / 2), ("d", "b c a", 0), ("?", "? ? ?", 1 / 4), ("a", "? ? ?", 1)]
    items = [item(number, *row[:2], "Math") for number, row in enumerate(four)]
    found, summary = judged("rewardbench2", items, RatingJudge(Rule(WORTH)))
    assert [SUITES["rewardbench2"].earned(entry) for entry in found] == [credit for *_, credit in four]
    assert summary["Math"] == pytest.approx(np.mean([credit for *_, credit in four]))


def test_ties_are_scored_by_ratings():
    """The check rows of the formula, as ratings of a judge."""
    rows = [("ref:0", "30", "10 5"), ("tied:0", "30 25 22", "10 0"), ("ref:1", "2", "4 1"), ("tied:1", "20 11", "15 0"),
            ("ref:2", "20", "0"), ("tied:2", "20 5", "0")]  # fmt: skip
    worth = {str(number): number + 0.0 for number in range(31)}
    items = [item(0, better, worse, "Ties")._replace(id=name) for name, better, worse in rows]
    found, summary = judged("rewardbench2", items, RatingJudge(Rule(worth)))
    assert summary["Ties"] == pytest.approx(0.5299491511, abs=1e-10)


def test_a_judge_that_says_how_sure_it_is_is_asked_how_right_it_is():
    class Sure(Rule):
        def judgement(self, first, second):
            return Judgement(1 / (1 + np.exp(second - first)), (("first",), ("first",)))

    items = [item(number, *pair[:2]) for number, pair in enumerate(PAIRS[:3])]
    found, summary = judged("pairs", items, ComparingJudge(Sure(WORTH), True))
    p = [1 / (1 + np.exp(-gap)) for gap in (1, 0, -2)]
    assert summary["accuracy"] == 0.5 and summary["calibration"]["brier"] == pytest.approx(np.mean([(1 - x) ** 2 for x in p]))


def test_a_summary_of_nothing_valid_is_one():
    found, summary = judged("pairs", [item(0, "?", "?")], ComparingJudge(Rule(WORTH), True))
    assert summary["accuracy"] == 0.5 and "length_bias" not in summary and "calibration" not in summary
    assert "accuracy" in format_summary(summary)
    assert summary["remarks"][1:] == [
        "1 of 1 pairs have no valid verdict",
        "1 of 2 verdicts are cut at the limit of tokens",
    ]


def test_conversations_are_compared_from_where_they_part():
    turns = [[*PROMPT, {"role": "assistant", "content": own}, {"role": "user", "content": "And?"}] for own in ("x", "y")]
    [found] = comparisons(Item("0", "all", [Answer(turns[0], "a")], [Answer(turns[1], "b")]))
    first, second = ([*turn[1:], {"role": "assistant", "content": text}] for turn, text in zip(turns, "ab"))
    assert found == Comparison(PROMPT, first, second)
    other = [{"role": "user", "content": "Else?"}]
    with pytest.raises(BadRow, match="different prompts"):
        comparisons(Item("0", "all", [Answer(PROMPT, "a")], [Answer(other, "b")]))
    with pytest.raises(BadRow, match="different prompts"):
        comparisons(Item("0", "all", [Answer(PROMPT, "a")], [Answer([*PROMPT, *other], "b")]))


def test_a_place_is_seen_in_one_order_and_not_in_both(tmp_path):
    """The better answers stand first in all items: what a judge does with places must not become accuracy."""
    template = find_template("pairwise")
    faults = {"noise": 0.2, "position_bias": 0.3, "invalid": 0.05}
    backend = rule_server.RuleBackend(rule_server.Rule(template, lambda prompt, text: float(text == "good"), **faults))
    asker = Asker(backend, "rule", Store(tmp_path / "answers.jsonl"))
    items = [item(n, "good", "bad", prompt=[{"role": "user", "content": str(n)}]) for n in range(800)]
    found = {}
    for orders in ("one", "both"):
        scorer = ComparingJudge(TextJudge(template, [asker], Decoding(64), text_vote(template), orders), False)
        found[orders] = judged("pairs", items, scorer)[1] | scorer.describe()["verdicts"]
    assert len(backend.asked) == 1600 and found["one"]["verdicts"] == 800  # one order is part of both
    # Shown first the better answer is preferred with .3 + .7 x .8, shown second with .7 x .8: .86 and .56.
    assert found["one"]["first_share"] == pytest.approx(0.65, abs=0.05)
    assert found["both"]["first_share_of_verdicts"] == pytest.approx(0.65, abs=0.04)
    assert found["both"]["first_share"] == pytest.approx(0.5, abs=0.03)
    # Where nothing is valid it is a half; in both orders one valid verdict decides, and orders that differ are a half.
    assert found["one"]["accuracy"] == pytest.approx(0.95 * 0.71 + 0.05 / 2, abs=0.05)
    assert found["both"]["accuracy"] == pytest.approx((1 - 0.05**2) * 0.71 + 0.05**2 / 2, abs=0.04)


def test_every_verdict_is_in_a_file(tmp_path):
    items = [item(number, *pair[:2], CODE) for number, pair in enumerate(PAIRS)] + [item(9, "a", "b ?", LIST)]
    scorer = ComparingJudge(Rule(WORTH), False)
    found, summary = judged("rmb", items, scorer)
    write(tmp_path, "judge", SUITES["rmb"], found, scorer, summary)
    rows = [json.loads(line) for line in gzip.open(tmp_path / "judge_verdicts.jsonl.gz")]
    assert [row["results"] for row in rows] == [1, 0.5, 0, 0, 0, 0]
    assert rows[0]["pairs"] == [{"score": 1.0, "verdicts": [["first"], ["first"]]}]
    assert rows[3]["pairs"] == [{"score": None, "verdicts": [["invalid"], ["cut"]]}] and len(rows[5]["pairs"]) == 2
    pairs, lists = (json.loads((tmp_path / f"judge_{name}.json").read_text()) for name in ("result", "bon_result"))
    assert [row["is_correct"] for row in pairs] == [1, 0.5, 0, 0, 0] and pairs[3]["chosen_reward"] is None
    assert lists[0]["loser_rewards"] == [0.0, None]
    assert json.loads((tmp_path / "rm_rank.json").read_text())["judge"]["ACC"] == pytest.approx(0.3)
    assert not (tmp_path / "reliability.png").exists()


def test_the_page_by_strength_shows_what_is_decided_against_members(tmp_path):
    items = [item(number, *pair[:2])._replace(place=f"d:{number}") for number, pair in enumerate(PAIRS)]
    means = {"d:0": -3.0, "d:1": -2.0, "d:2": 1.0, "d:3": -1.0, "d:4": 2.0}
    suite, image = SUITES["rmb"], tmp_path / "plot.png"
    image.write_bytes(b"")
    found = suite.judge(items, ComparingJudge(Rule(WORTH), False), BadRows("stop"))
    write_accuracy_page(tmp_path / "page.html", "judge", found, suite.earned, means, {}, image)
    page = (tmp_path / "page.html").read_text()
    # Won against the members is the first pair alone: the second is a tie. Lost are the third, and the last without a verdict.
    assert "-3.000; the model&#39;s difference +1.000" in page and "-2.000" not in page and "-1.000;" not in page
    assert "+1.000; the model&#39;s difference -1.000" in page and "+2.000; no valid verdict" in page


def test_calls_are_counted_before_the_first_one(tmp_path):
    """2985 pairs of RewardBench, in both orders; of RMB 17131 pairs, and the 8714 losers of its 3786 lists."""
    template = find_template("pairwise-token")
    asker = Asker(rule_server.RuleBackend(rule_server.Rule(template)), "rule", Store(tmp_path / "answers.jsonl"), Limit(0))
    judge = TextJudge(template, [asker], Decoding(1), text_vote(template))
    items = [item(n, "a", "b", prompt=[{"role": "user", "content": str(n)}]) for n in range(2985)]
    with pytest.raises(UserError, match="5970 answers .* `judge_limit` is 0"):
        ComparingJudge(judge, False).of_items(items, BadRows("stop"))
    losers = Counter({2: 2878, 3: 712, 4: 165, 5: 24, 6: 7})
    lists = [item(0, "a", "b " * count) for count, number in losers.items() for _ in range(number)]
    assert len(lists) == 3786 and sum(map(len, map(comparisons, items[:1] * 17131 + lists))) == 25845


@pytest.mark.parametrize("win, expected", [(1, 1), (0.6, 1), (0.5, 0), (0.4, 0), (np.nan, 0.25)])
def test_a_suite_may_have_rules_of_its_own(win, expected):
    entry = SUITES["pairs"].judge([item(0, "a", "b")], ComparingJudge(Rule(WORTH), False), BadRows("stop"))[0]
    assert by_verdicts(entry._replace(wins=np.array([[win]])), tie=0.0, invalid=0.25) == expected
