"""Answers that are compared two by two: items, lists and their rules, statistics of pairs by hand, and how many are asked."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from denserl.data.bad_rows import BadRows
from denserl.errors import UserError
from denserl.evaluation.items import Answer, Item, judge
from denserl.evaluation.pair_scorer import PairScorer, probabilities
from denserl.evaluation.results import format_summary, summarise
from denserl.evaluation.stored_answers import AnswerSuite, StoredAnswers
from denserl.evaluation.suites.registry import SUITES
from denserl.evaluation.suites.rewardbench import best_of_all
from denserl.rewards.ranking import list_scores

PROMPT = [{"role": "user", "content": "Q"}]
# The log-odds of a text that stands first being better than another: by a worth of each, and for standing first.
WORTH = {"a": 2.0, "b": 1.0, "c": 0.5, "d": -1.0}
FIRST = 0.25


class Pair(NamedTuple):
    texts: tuple[str, str]
    is_cut: bool = False


class ByWorth:
    """In the place of a model that compares texts."""

    layout, max_length, tokenizer = "denserl", 64, SimpleNamespace(init_kwargs={})

    def __init__(self, table=None):
        self.asked, self.table = [], table

    def encode(self, prompt, first, second, ended=(True, True)):
        return Pair((first, second), is_cut=len(first) > 5)

    def score(self, pairs):
        self.asked += pairs
        return np.array([(self.odds(*pair.texts), self.odds(*pair.texts[::-1])) for pair in pairs])

    def odds(self, first: str, second: str) -> float:
        return self.table[first, second] if self.table else WORTH[first[:1]] - WORTH[second[:1]] + FIRST


def item(number: int, better: str, worse: str, prompt=PROMPT) -> Item:
    return Item(str(number), "all", *([Answer(prompt, text) for text in side.split()] for side in (better, worse)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def chance(first: str, second: str) -> float:
    gap = WORTH[first] - WORTH[second]
    return (sigmoid(gap + FIRST) + sigmoid(gap - FIRST)) / 2


def judged(*items: Item, rank: str = "win_rate", table=None):
    scorer = PairScorer(ByWorth(table), "pm", rank)
    return judge(items, scorer, BadRows("stop")), scorer


def test_two_answers_have_the_probability_of_each_and_equal_ones_tie():
    found, scorer = judged(item(0, "a", "b"), item(1, "d", "c"), item(2, "b", "b"), rank="logit")
    for entry, (better, worse) in zip(found, ("ab", "dc", "bb")):
        assert entry.better == pytest.approx([chance(better, worse)]) and entry.worse == 1 - entry.better
    assert found[2].better[0] == 0.5 and len(scorer.model.asked) == 3
    summary = summarise(SUITES["pairs"], found, 20, 0)
    assert summary["accuracy"] == pytest.approx(1 / 3) and summary["ties"] == 1 and summary["pair_accuracy"] == 0.5


def test_statistics_of_pairs_are_of_their_probabilities_and_places():
    rows = ["ab", "dc", "bc", "ba"]
    found, scorer = judged(*(item(number, *row) for number, row in enumerate(rows)))
    summary = summarise(SUITES["pairs"], found, 20, 0) | scorer.describe()
    chances = [chance(*row) for row in rows]
    assert summary["calibration"]["brier"] == pytest.approx(np.mean([(1 - p) ** 2 for p in chances]))
    sure = [max(p, 1 - p) for p in chances]
    # Two pairs share a bin, one of them judged rightly.
    ece = (abs(1 - sure[2]) + 2 * abs(0.5 - sure[0]) + abs(0 - sure[1])) / 4
    assert summary["calibration"]["ece"] == pytest.approx(ece) and sure[0] == pytest.approx(sure[3])
    # The order of b and c, whose worths differ by 0.5, is seen in either place; standing first is worth 0.25 everywhere.
    assert summary["position_bias"] == pytest.approx(FIRST) and summary["position_consistency"] == 1.0
    assert "position bias 0.2500; lists ranked by win_rate" in format_summary(summary)
    first = {("x", "y"): 3.0, ("y", "x"): 1.0, ("x", "z"): 2.0, ("z", "x"): -1.0}
    found, _ = judged(item(0, "x", "y"), item(1, "x", "z"), table=first)
    summary = summarise(SUITES["pairs"], found, 20, 0)
    assert summary["position_bias"] == pytest.approx((2 + 0.5) / 2) and summary["position_consistency"] == 0.5


MATRIX = np.array([[0.5, 0.70, 0.40, 0.65], [0.30, 0.5, 0.80, 0.55], [0.60, 0.20, 0.5, 0.90], [0.35, 0.45, 0.10, 0.5]])
TABLE = {("wxyz"[i], "wxyz"[j]): math.log(MATRIX[i, j] / MATRIX[j, i]) for i in range(4) for j in range(4)}


@pytest.mark.parametrize("rank, credit", [("win_rate", 1.0), ("logit", 0.0), ("wins", 1 / 3), ("bt", 1.0)])
def test_lists_are_ranked_by_the_rule(rank, credit):
    [found], scorer = judged(item(0, "w", "x y z"), rank=rank, table=TABLE)
    assert np.concatenate([found.better, found.worse]) == pytest.approx(list_scores(MATRIX, rank))
    assert best_of_all(found) == pytest.approx(credit) and len(scorer.model.asked) == 6
    # Of the pairs with a worse answer two of three are won, whatever the rule.
    assert summarise(SUITES["pairs"], [found], 20, 0)["pair_accuracy"] == pytest.approx(2 / 3)


def test_a_knockout_asks_for_few_pairs_in_an_order_of_the_seed():
    items = [item(number, "w", "x y z") for number in range(40)]
    found, scorer = judged(*items, rank="knockout", table=TABLE)
    assert len(scorer.model.asked) == 3 * len(items)
    winners = [int(np.argmax([*entry.better, *entry.worse])) for entry in found]
    assert all(sorted([*entry.better, *entry.worse]) == [0, 0, 0, 1] for entry in found)
    # z beats nobody; which of the others wins is a matter of order.
    assert set(winners) == {0, 1, 2} and winners == [
        np.argmax([*e.better, *e.worse]) for e in judged(*items, rank="knockout", table=TABLE)[0]
    ]
    summary = summarise(SUITES["pairs"], found, 20, 0)
    met = [(MATRIX[0, j], entry) for entry in found for j in (1, 2, 3) if not np.isnan(entry.log_odds[0, j])]
    assert summary["pair_accuracy"] == pytest.approx(np.mean([p > 0.5 for p, _ in met]))
    with pytest.raises(UserError, match="has several right ones"):
        judged(item(0, "w x", "y"), rank="knockout", table=TABLE)


def test_what_cannot_be_compared_is_a_bad_row():
    bad_rows = BadRows("skip")
    other = Item("1", "all", [Answer(PROMPT, "a")], [Answer([{"role": "user", "content": "other"}], "b")])
    found = judge([item(0, "a", "b"), other], PairScorer(ByWorth(), "pm"), bad_rows)
    assert len(found) == 1 and bad_rows.total == 1 and "different prompts" in str(bad_rows.first)


def test_cut_pairs_are_counted(caplog):
    _, scorer = judged(item(0, "a-long", "b"), item(1, "a", "c"))
    assert scorer.describe()["shortened"] == {"pairs": 2, "cut": 1} and "1 of 2 pairs are cut to max_length 64" in caplog.text


def test_stored_answers_are_scored_among_all_to_their_problem():
    suite = AnswerSuite(rows=None, item=None)
    problem = StoredAnswers("0", "all", PROMPT, ["b", "a", "d"], [False, True, False], [None] * 3)
    [found] = suite.judge([problem], PairScorer(ByWorth(), "pm", "bt"), BadRows("stop"))
    both = [[0.5 if i == j else chance(i, j) for j in problem.texts] for i in problem.texts]
    assert found.scores == pytest.approx(list_scores(both, "bt"))
    with pytest.raises(UserError, match="ranks no answers beside the best"):
        suite.judge([problem], PairScorer(ByWorth(), "pm", "knockout"), BadRows("stop"))


def test_probabilities_of_a_matrix_of_log_odds():
    log_odds = np.array([[np.nan, 1.0], [-0.3, np.nan]])
    assert probabilities(log_odds)[0, 1] == pytest.approx((sigmoid(1.0) + sigmoid(0.3)) / 2)
