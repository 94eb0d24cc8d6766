"""Votes and orders become judgements: by tables, by independent votes' exact chances, and by judges that follow a rule."""

import functools
import itertools
import math

import pytest
from judges import RuleBackend

from denserl.errors import UserError
from denserl.judging.asking import Asker, Limit
from denserl.judging.comparing import (
    Ballot,
    Rater,
    TextJudge,
    Vote,
    chance_vote,
    is_turned,
    rating,
    score_of_orders,
    score_of_votes,
    text_vote,
)
from denserl.judging.contract import Comparison, Decoding, Judgement, Reply
from denserl.judging.store import Store
from denserl.judging.templates import find_template

PAIRWISE, TOKEN, RATING = find_template("pairwise"), find_template("pairwise-token"), find_template("rating")
PROMPT = [{"role": "user", "content": "Why?"}]
VARIED = Decoding(100, 1.0)
FIRST, SECOND = "[[A]]", "[[B]]"


def compared(first: str, second: str) -> Comparison:
    return Comparison(PROMPT, first, second)


def shown_first(request) -> str:
    """Of answers that are one word each, the one that stands first."""
    text = request.messages[-1]["content"]
    return text[text.index("[answer A begins]") :].split("\n")[1]


def better_is(answer: str):
    """A judge that prefers an answer wherever it stands."""
    return lambda request: FIRST if shown_first(request) == answer else SECOND


def judge_of(path, *rules, votes=1, orders="both", decoding=VARIED, limit=None, template=PAIRWISE, read=None) -> TextJudge:
    store, most = Store(path), Limit(limit)
    backends = [rule if isinstance(rule, RuleBackend) else RuleBackend(rule, f"r{n}") for n, rule in enumerate(rules)]
    askers = [Asker(backend, backend.name, store, most) for backend in backends]
    return TextJudge(template, askers, decoding, read or text_vote(template), orders, votes)


def asked(judge: TextJudge) -> int:
    return sum(len(asker.backend.asked) for asker in judge.askers)


@pytest.mark.parametrize(
    "votes, expected",
    [
        (["first", "first", "second"], 1.0),
        (["first", "second"], 0.5),
        (["first", "invalid", "cut"], 1.0),
        (["second", "second", "invalid", "first"], 0.0),
        (["tie", "tie", "first"], 0.5),
        (["invalid", "cut"], None),
        ([], None),
    ],
)
def test_the_score_of_votes_is_that_of_the_majority_of_valid_ones(votes, expected):
    assert score_of_votes([Vote(verdict) for verdict in votes]) == expected


@pytest.mark.parametrize(
    "scores, expected",
    [
        ((1, 1), 1), ((0, 0), 0), ((1, 0), 0.5), ((0, 1), 0.5), ((1, 0.5), 0.5), ((0.5, 0.5), 0.5),
        ((1, None), 1), ((None, 0), 0), ((None, None), None), ((1,), 1), ((0.5,), 0.5),
    ],
)  # fmt: skip
def test_two_orders_say_the_same_or_are_a_tie_and_one_invalid_order_leaves_it_to_the_other(scores, expected):
    assert score_of_orders(scores, are_chances=False) == expected


def test_chances_are_averaged():
    assert score_of_votes([Vote("first", 0.9), Vote("invalid"), Vote("second", 0.3)]) == pytest.approx(0.6, abs=1e-15)
    assert score_of_orders((0.9, 0.4), are_chances=True) == pytest.approx(0.65, abs=1e-15)
    assert score_of_orders((None, 0.4), are_chances=True) == 0.4


def polled(outcomes, most: int) -> Ballot:
    """A ballot to which votes with these outcomes are added as they are wanted."""
    ballot, left = Ballot(0, False, most), iter(outcomes)
    while wanted := ballot.wanted():
        for _ in range(wanted):
            ballot.add(Vote(next(left)))
    return ballot


@pytest.mark.parametrize(
    "votes, expected",
    [
        (1, (0.6, 0.7, 0.8)),
        (2, (0.6, 0.7, 0.8)),
        (3, (0.648, 0.784, 0.896)),
        (4, (0.648, 0.784, 0.896)),
        (5, (0.68256, 0.83692, 0.94208)),
        (9, (0.733432, 0.901191, 0.980419)),
    ],
)
def test_independent_votes_gain_what_the_binomial_says(votes, expected):
    """Of all outcomes of the votes, stopping early; accuracies .6 .7 .8 of one vote."""
    for accuracy, of_all in zip((0.6, 0.7, 0.8), expected, strict=True):
        found = []
        for outcome in itertools.product(("first", "second"), repeat=votes):
            right = outcome.count("first")
            chance = accuracy**right * (1 - accuracy) ** (votes - right)
            found.append(chance * score_of_votes(polled(outcome, votes).votes))
        assert math.fsum(found) == pytest.approx(of_all, abs=1e-6)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_vote_is_asked_for_that_cannot_matter_and_none_is_left_out_that_can(most):
    kinds = ("first", "second", "tie", "invalid")

    @functools.cache
    def ends(votes: tuple) -> set:
        """The scores that all continuations have."""
        rest = itertools.product(kinds, repeat=most - len(votes))
        return {score_of_votes([Vote(verdict) for verdict in (*votes, *more)]) for more in rest}

    for outcome in itertools.product(kinds, repeat=most):
        votes = tuple(vote.verdict for vote in polled(outcome, most).votes)
        assert len(ends(votes)) == 1
        assert len(votes) == next(count for count in range(most + 1) if len(ends(votes[:count])) == 1)


@pytest.mark.parametrize(
    "rule, expected",
    [
        (better_is("ja"), Judgement(1.0, (("first",), ("first",)))),
        (better_is("nein"), Judgement(0.0, (("second",), ("second",)))),
        (lambda request: FIRST, Judgement(0.5, (("first",), ("second",)))),
        (lambda request: SECOND if shown_first(request) == "ja" else "Hm.", Judgement(0.0, (("second",), ("invalid",)))),
        (lambda request: Reply("As I was", True, 1, 100), Judgement(None, (("cut",), ("cut",)))),
    ],
)
def test_both_orders_are_asked_and_verdicts_are_of_the_answers_wherever_they_stand(tmp_path, rule, expected):
    judge = judge_of(tmp_path / "s", rule)
    assert judge.compare([compared("ja", "nein")]) == [expected] and asked(judge) == 2


def test_equal_answers_are_a_tie_of_which_nobody_is_asked(tmp_path):
    judge = judge_of(tmp_path / "s", better_is("ja"))
    found = judge.compare([compared("ja", "ja"), compared("ja", "nein")])
    assert found[0] == Judgement(0.5) and found[1].score == 1 and asked(judge) == 2


def test_one_order_is_drawn_by_the_question_alone(tmp_path):
    comparisons = [compared(f"a{number}", f"b{number}") for number in range(200)]
    turned = [is_turned(each) for each in comparisons]
    assert 70 < sum(turned) < 130  # a fair coin: four standard deviations are 28
    judge = judge_of(tmp_path / "s", lambda request: FIRST, orders="one")
    found = judge.compare(comparisons)
    assert [each.score for each in found] == [1 - turn for turn in turned] and asked(judge) == 200
    assert [each.verdicts for each in found] == [((), ("second",)) if turn else (("first",), ()) for turn in turned]
    # Whichever is called the first.
    others = judge.compare([Comparison(each.prompt, each.second, each.first) for each in comparisons])
    assert [each.score for each in others] == [1 - each.score for each in found] and asked(judge) == 200


def test_given_orders_are_kept(tmp_path):
    judge = judge_of(tmp_path / "s", lambda request: FIRST, orders="given")
    found = judge.compare([compared(f"a{number}", f"b{number}") for number in range(20)])
    assert found == [Judgement(1.0, (("first",), ()))] * 20


def test_votes_end_when_the_majority_is_certain(tmp_path):
    def rule(request):
        # The fourth comparison needs all five votes.
        return {"q0": "AAAAA", "q1": "ABAAA", "q2": "A-A-B", "q3": "ABABB"}[shown_first(request)][request.sample]

    comparisons = [compared(f"q{number}", "other") for number in range(4)]
    judge = judge_of(tmp_path / "s", lambda request: f"[[{rule(request)}]]", orders="given", votes=5)
    found = judge.compare(comparisons)
    assert [each.score for each in found] == [1, 1, 1, 0]
    counts = [len(each.verdicts[0]) for each in found]
    assert counts == [3, 4, 4, 5] and asked(judge) == sum(counts)


def test_several_judges_vote_in_turn(tmp_path):
    rules = [better_is("ja"), better_is("nein"), better_is("nein")]
    judge = judge_of(tmp_path / "s", *rules, decoding=Decoding(100))
    assert judge.compare([compared("ja", "nein")]) == [Judgement(0.0, (("first", "second", "second"),) * 2)]
    # Where the first two agree the third is not asked.
    judge = judge_of(tmp_path / "t", rules[1], rules[2], rules[0], decoding=Decoding(100))
    judge.compare([compared("ja", "nein")])
    assert [len(asker.backend.asked) for asker in judge.askers] == [2, 2, 0]
    # Two samples of each of two: samples 0 of both, then samples 1.
    judge = judge_of(tmp_path / "u", better_is("ja"), better_is("nein"), votes=2, orders="given")
    assert judge.compare([compared("ja", "nein")])[0].verdicts[0] == ("first", "second") * 2
    assert [[request.sample for request in sorted(asker.backend.asked, key=lambda r: r.sample)] for asker in judge.askers] == [
        [0, 1],
        [0, 1],
    ]


def unsteady(request) -> str:
    """Another verdict for each sample and question, by their digits."""
    return FIRST if (len(shown_first(request)) + int(shown_first(request)[1:]) * 7 + request.sample * 5) % 3 else SECOND


@pytest.mark.parametrize("fails_at", range(0, 40, 7))
def test_a_run_that_fails_goes_on_and_ends_as_one_that_does_not(tmp_path, fails_at):
    comparisons = [compared(f"a{number}", f"b{number}") for number in range(5)]
    whole = judge_of(tmp_path / "whole", unsteady, votes=5)
    expected = whole.compare(comparisons)
    assert 30 < asked(whole) < 50
    failing = judge_of(tmp_path / "s", RuleBackend(unsteady, "r0", fails_at), votes=5)
    with pytest.raises(UserError, match="the server is away"):
        failing.compare(comparisons)
    failing.askers[0].store.close()
    again = judge_of(tmp_path / "s", unsteady, votes=5)
    assert again.compare(comparisons) == expected
    assert asked(again) == asked(whole) - fails_at and again.describe() == whole.describe()
    again.askers[0].store.close()
    # The store holds all that is needed: nothing is asked, nor planned.
    stored = judge_of(tmp_path / "s", RuleBackend(unsteady, "r0", 0), votes=5, limit=0)
    assert stored.compare(comparisons) == expected and stored.describe() == whole.describe()


def test_a_limit_is_of_all_votes_that_may_be_asked(tmp_path):
    judge = judge_of(tmp_path / "s", better_is("ja"), votes=5, limit=9)
    with pytest.raises(UserError, match="10 answers of judges are to be asked for, and `judge_limit` is 9"):
        judge.compare([compared("ja", "nein")])
    assert asked(judge) == 0


def test_more_votes_are_asked_where_fewer_are_stored(tmp_path):
    judge = judge_of(tmp_path / "s", unsteady)
    judge.compare([compared("a1", "b1")])
    more = TextJudge(PAIRWISE, judge.askers, VARIED, text_vote(PAIRWISE), "both", 3)
    before = asked(judge)
    found = more.compare([compared("a1", "b1")])
    assert all(len(order) in (2, 3) for order in found[0].verdicts)
    assert asked(judge) - before == sum(len(order) - 1 for order in found[0].verdicts)


def test_log_probabilities_of_either_verdict_are_a_chance(tmp_path):
    def rule(request):
        likely = {"ja": (("A", -0.2), (" B", -2.2)), "nein": (("B", -0.5), ("A", -1.5)), "odd": (("A", -0.1),)}
        return Reply("A", True, 1, 1, likely[shown_first(request)])

    judge = judge_of(tmp_path / "s", rule, decoding=Decoding(1, 0.0, 1.0, 20), template=TOKEN, read=chance_vote(TOKEN))
    both, one = judge.compare([compared("ja", "nein"), compared("ja", "odd")])
    # Chances of the first answer: 1 / (1 + e^-2) as shown first, 1 - 1 / (1 + e^1) as shown second.
    expected = (1 / (1 + math.exp(-2)) + 1 - 1 / (1 + math.exp(1))) / 2
    assert both.score == pytest.approx(expected, abs=1e-12) and both.verdicts == (("first",), ("first",))
    # A verdict that is not among the likely tokens is not one of probability 0.
    assert one.score == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-12) and one.verdicts == (("first",), ("invalid",))


def test_of_chances_no_judge_is_left_out(tmp_path):
    def sure(logprob: float):
        return lambda request: Reply("A", True, 1, 1, (("A", -0.1), ("B", -0.1 - logprob)))

    how = {"decoding": Decoding(1, 0.0, 1.0, 20), "template": TOKEN, "read": chance_vote(TOKEN), "orders": "given"}
    found = judge_of(tmp_path / "s", sure(1), sure(2), sure(-1), **how).compare([compared("ja", "nein")])
    # The chances of 1 and -1 add up to 1.
    assert found[0].score == pytest.approx((1 + 1 / (1 + math.exp(-2))) / 3, abs=1e-12)
    assert found[0].verdicts == (("first", "first", "second"), ())


def test_ratings_are_means_of_valid_ones(tmp_path):
    said = {0: "It is an 8.\nRating: 8/10", 1: "Rating: [[5]]", 2: "I cannot say."}
    asker = Asker(RuleBackend(lambda request: said[request.sample]), "r", Store(tmp_path / "s"))
    found = Rater(RATING, [asker], VARIED, rating(RATING), votes=3).rate([(PROMPT, "ja"), (PROMPT, "nein"), (PROMPT, "ja")])
    assert found == [6.5, 6.5, 6.5] and len(asker.backend.asked) == 6
    silent = Asker(RuleBackend(lambda request: "I cannot say.", "s"), "s", asker.store)
    assert Rater(RATING, [silent], VARIED, rating(RATING)).rate([(PROMPT, "ja")]) == [None]
    # Of two judges, one of which says nothing.
    assert Rater(RATING, [asker, silent], VARIED, rating(RATING)).rate([(PROMPT, "ja")]) == [8]


def test_what_is_described_says_who_how_and_what_it_cost(tmp_path):
    judge = judge_of(tmp_path / "s", better_is("ja"))
    judge.compare([compared("ja", "nein")])
    assert judge.describe() == {
        "judges": [{"judge": "r0", "version": "1", "calls": 2, "prompt_tokens": 20, "tokens": 2}],
        "template": "pairwise", "template_hash": PAIRWISE.hash, "votes": 1, "orders": "both",
        "decoding": {"max_new_tokens": 100, "temperature": 1.0, "top_p": 1.0, "top_logprobs": 0},
    }  # fmt: skip
