"""Games of judged answers: what is asked, what is read, and what it is worth, by hand."""

import math
import sys
from pathlib import Path

import pytest

from denserl.errors import UserError
from denserl.evaluation.policies.answers import Answers, Gaps, PolicyAnswer, Question
from denserl.evaluation.policies.credits import arena_marks, credits_of, settled
from denserl.evaluation.policies.games import games_of, shown, way_of
from denserl.evaluation.policies.joining import equal_answers, joined, with_references
from denserl.evaluation.policies.outcomes import Game, Judged, Match, Played
from denserl.evaluation.policies.playing import Play, ask_games, differing, outcomes_of
from denserl.evaluation.policies.reading import Read, goes_on, is_certain, read, together
from denserl.evaluation.policies.results import Counting, results_of
from denserl.judging.asking import Asker, Limit
from denserl.judging.contract import Decoding, Reply
from denserl.judging.store import Store
from denserl.judging.templates import find_template

sys.path += [str(Path(__file__).parent.parent / "judging")]
from judges import RuleBackend  # noqa: E402

ONE = Question("q1", [{"role": "user", "content": "one?"}], category="c")
TWO = Question("q2", [{"role": "user", "content": "first?"}], ("second?",), "c", ("right one", "right two"))


def match(question=ONE, policy=("p1", "p2"), baseline=("b1", "b2")) -> Match:
    count = len(question.turns)
    sides = (texts and PolicyAnswer(question.id, texts[:count]) for texts in (policy, baseline))
    return Match(question, *sides)


def played(worth, policy_first=True, turn=1, battles=1, state="valid"):
    return Played(Game(turn, policy_first), [], "", "", worth, state, battles)


def reply(text: str, cut: bool = False, first=()) -> tuple[Reply, ...]:
    return (Reply(text, cut, 1, 1, first),)


@pytest.mark.parametrize("instruction, first", [("Say hi", False), ("Name a colour.", True), ("What is 2+2?", False)])
def test_alpacaeval_plays_one_game_in_the_published_order(instruction, first):
    question = ONE._replace(id=instruction, messages=[{"role": "user", "content": instruction}])
    assert games_of("alpacaeval", "pair", "suite", question) == (Game(1, first),)
    assert games_of("alpacaeval", "pair", "both", question) == (Game(1, first), Game(1, not first))


def test_the_games_of_the_other_suites():
    assert games_of("arenahard", "pair", "suite", ONE) == (Game(1, False), Game(1, True))
    assert games_of("mtbench", "single", "suite", TWO) == (Game(1), Game(2))
    both = (Game(1, True), Game(1, False), Game(2, True), Game(2, False))
    assert games_of("mtbench", "pair", "suite", TWO) == both
    assert games_of("prompts", "pair", "suite", ONE) == both[:2]


def test_how_a_suite_is_asked():
    assert way_of("alpacaeval", "pair", "logprob") == ("alpacaeval", Decoding(1, 1.0, 1.0, 5))
    assert way_of("arenahard", "pair", "text").decoding == Decoding(4096)
    assert way_of("mtbench", "single", "logprob") is None


def between(text: str, start: str, end: str) -> str:
    return text.split(f"[{start}]\n")[1].split(f"\n[{end}]")[0]


def test_a_grade_of_the_second_turn_is_shown_what_went_before_and_the_right_answers():
    template = find_template("mtbench-single")
    text = shown(template, match(TWO, baseline=None), Game(2))[-1]["content"]
    talk = between(text, "conversation begins", "conversation ends")
    assert [talk.index(part) for part in ("first?", "p1", "second?")] == sorted(
        talk.index(p) for p in ("first?", "p1", "second?")
    )
    assert between(text, "answer begins", "answer ends") == "p2" and "p2" not in talk
    right = between(text, "reference begins", "reference ends")
    assert "right one" in right and "right two" in right and "p1" not in right
    first = shown(template, match(TWO, baseline=None), Game(1))[-1]["content"]
    assert between(first, "reference begins", "reference ends") == "right one" and "second?" not in first
    assert "reference begins" not in shown(template, match(ONE, baseline=None), Game(1))[-1]["content"]


def test_a_comparison_shows_each_conversation_in_its_place():
    template = find_template("mtbench-pair")
    text = shown(template, match(TWO), Game(2, policy_first=False))[-1]["content"]
    first = between(text, "assistant A begins", "assistant A ends")
    second = between(text, "assistant B begins", "assistant B ends")
    assert "b1" in first and "second?" in first and "b2" in first and "p1" not in first
    assert "p1" in second and "second?" in second and "p2" in second and "b1" not in second
    assert between(shown(template, match(TWO), Game(1, True))[-1]["content"], "assistant A begins", "assistant A ends") == "p1"


@pytest.mark.parametrize(
    "text, original, newer, strict",
    [
        ("so: [[A>>B]]", ("A>>B", 1.0, 3), ("A>>B", 1.0, 3), ("A>>B", 1.0, 3)),
        ("[[A>B]] or [[B>A]]", ("", None, 1), ("B>A", 0.0, 1), ("B>A", 0.0, 1)),
        ("[[A=B]] and again [[A=B]]", ("A=B", 0.5, 1), ("A=B", 0.5, 1), ("A=B", 0.5, 1)),
        ("<think>[[A>B]]</think> none", ("A>B", 1.0, 1), ("A>B", 1.0, 1), ("", None, 1)),
        ("so [a<<b]", ("", None, 1), ("A<<B", 0.0, 3), ("", None, 1)),
        ("nothing", ("", None, 1), ("", None, 1), ("", None, 1)),
    ],
)
def test_arena_hards_marks_by_all_rules(text, original, newer, strict):
    template = find_template("arenahard")
    for rule, (mark, says, battles) in (("original", original), ("newer", newer), ("strict", strict)):
        found = read("arenahard", "pair", rule, template, reply(text))
        assert (found.mark, found.says, found.battles) == (mark, says, battles)


def test_what_has_no_verdict_is_invalid_or_cut():
    template = find_template("arenahard")
    assert read("arenahard", "pair", "original", template, reply("so", cut=True)).state == "cut"
    assert read("arenahard", "pair", "original", template, reply("so")).state == "invalid"
    assert goes_on("arenahard", template, "nothing") and not goes_on("arenahard", template, "[[A>B]] [[B>A]]")
    assert not goes_on("prompts", template, "nothing")
    # The second text goes on where the first one ended.
    both = reply("I think") + reply("[[B>A]]")
    assert read("arenahard", "pair", "original", template, both) == Read(0.0, "B>A", "valid")
    assert read("arenahard", "pair", "newer", template, both).state == "invalid"


def test_arena_hards_newer_numbers_are_of_its_own_reading(tmp_path):
    """Both games' marks: v0.1 has two of them in each, and no verdict; the newer program takes the last one."""
    play = Play("arenahard", "pair", "suite", find_template("arenahard"), Decoding(9))
    words = {False: "[[A>B]], no, [[B>>A]]", True: "[[A=B]] or [[B>A]]"}
    turned = {shown(play.template, match(), Game(1, first))[-1]["content"]: said for first, said in words.items()}
    heard = ask_games([match()], play, [asker(tmp_path, lambda request: turned[request.messages[-1]["content"]])])
    own, newer = (outcomes_of([match()], play, heard, rule) for rule in ("original", "newer"))
    counting = Counting("arenahard", "pair", "win_rate", 10, 0)
    found = results_of([Judged("p", own, Gaps([], [], []), newer)], counting)["policies"]["p"]["original"]
    # The policy wins the first game by far, three battles, and loses the second.
    assert "v0.1" not in found and found["newer"]["win_rate"] == pytest.approx(75.0, abs=15)
    assert arena_marks(newer[0].games) == ["B>>A", "B>A"] and own[0].credits == ()


@pytest.mark.parametrize(
    "text, original, strict", [("[[8]]", 8, 8), ("[[7.5]] then [[9]]", 7.5, 9), ("[[11]]", 11, None), ("10", None, 10)]
)
def test_mtbenchs_grades_by_both_rules(text, original, strict):
    template = find_template("mtbench-single")
    assert read("mtbench", "single", "original", template, reply(text)).says == original
    assert read("mtbench", "single", "strict", template, reply(text)).says == strict


def test_mtbenchs_marks_by_both_rules():
    template, text = find_template("mtbench-pair"), reply("[[B]], no, [[A]], no: [[C]]")
    assert read("mtbench", "pair", "original", template, text).says == 1.0
    assert read("mtbench", "pair", "strict", template, text).says == 0.5


def test_alpacaevals_probabilities_by_both_rules():
    template = find_template("alpacaeval")
    two = reply("m", first=(("m", -0.4), ("M", -1.2), (" m", -3.0)))
    one, other, blank = (math.exp(logprob) for logprob in (-0.4, -1.2, -3.0))
    original, strict = (read("alpacaeval", "pair", rule, template, two).says for rule in ("original", "strict"))
    assert original == pytest.approx(one / (one + other)) and strict == pytest.approx((one + blank) / (one + other + blank))
    one = reply("M", first=(("M", -0.1),))
    assert read("alpacaeval", "pair", "original", template, one) == Read(0.0, "0.000 first", "valid", one_sided=True)
    assert read("alpacaeval", "pair", "strict", template, one).state == "invalid"
    assert read("alpacaeval", "pair", "original", template, reply("x", first=(("x", -0.1),))).says is None


def test_votes_of_verdicts_have_a_majority_and_of_numbers_a_mean():
    win, far, loss, none = (
        Read(1.0, "A", "valid"),
        Read(1.0, "A", "valid", 3),
        Read(0.0, "B", "valid"),
        Read(None, "", "invalid"),
    )
    assert together([win, loss, win], True)[0::3] == (1.0, 1) and together([win, loss], True).says == 0.5
    assert together([far, far, win], True).battles == 3 and together([far, win], True).battles == 1
    assert together([none, loss], True).says == 0.0 and together([none, none], True).state == "invalid"
    assert together([Read(0.9, "", "valid"), Read(0.2, "", "valid"), none], False).says == pytest.approx(0.55)
    assert is_certain([win, win], 1) and not is_certain([win, loss], 1) and not is_certain([win], 1) and is_certain([none], -1)


def test_what_games_are_worth_together():
    assert credits_of("alpacaeval", "pair", [played(0.7), played(0.9)]) == (pytest.approx(0.8),)
    # Arena-Hard's six questions, (first game with the baseline as A, second): 10 of 21 battles.
    marks = [("A>>B", "B>>A"), ("A=B", "A>B"), ("B>A", "A=B"), ("B>>A", "A>>B"), (None, "A>B"), ("A>B", "B>>A")]
    worth = {"A": 1.0, "B": 0.0, "=": 0.5}

    def game(mark, policy_first):
        if mark is None:
            return played(None, policy_first, state="invalid")
        of_first = worth["=" if "=" in mark else mark[0]]
        return played(of_first if policy_first else 1 - of_first, policy_first, battles=3 if ">>" in mark else 1)

    games = [(game(first, False), game(second, True)) for first, second in marks]
    credits = [credit for pair in games for credit in credits_of("arenahard", "pair", pair)]
    assert (len(credits), sum(credits)) == (21, 10.0)
    assert [tuple(arena_marks(pair[::-1])) for pair in games] == marks
    # MT-Bench: turn by turn; games that differ are a tie, one without a verdict spoils the other one but by the strict rule.
    turns = [played(1.0), played(0.0), played(1.0, turn=2), played(None, turn=2, state="invalid")]
    assert credits_of("mtbench", "pair", turns) == (0.5,) and credits_of("mtbench", "pair", turns, strict=True) == (0.5, 1.0)
    assert credits_of("mtbench", "single", [played(8.0), played(None, turn=2)]) == (8.0,)
    assert settled([1.0, 0.5]) == 0.5 and settled([0.0, 0.0]) == 0.0 and settled([None, 1.0]) == 1.0 and settled([None]) is None


def asker(tmp_path, rule, limit=None) -> Asker:
    return Asker(RuleBackend(rule), "judge", Store(tmp_path / "store.jsonl"), Limit(limit))


def test_games_are_asked_once_more_where_there_is_no_mark_and_equal_answers_never(tmp_path):
    play = Play("arenahard", "pair", "suite", find_template("arenahard"), Decoding(9))
    unwilling = asker(tmp_path, lambda request: "[[A>B]]" if len(request.messages) > 2 else "Let me think.")
    heard = ask_games([match()], play, [unwilling])
    assert [len(said) for game in heard for said in game.votes] == [2, 2] and len(unwilling.backend.asked) == 4
    (outcome,) = outcomes_of([match()], play, heard, "original")
    assert outcome.credits == (0.0, 1.0) and outcome.games[0].text == "Let me think.\n[[A>B]]"
    unwilling.store.close()
    # A complete store gives the same without a judge.
    silent = asker(tmp_path, None, limit=0)
    assert ask_games([match()], play, [silent]) == heard
    play = play._replace(suite="prompts", template=find_template("pairwise"))
    same = match(baseline=("p1",))
    assert ask_games([same], play, [silent]) == []
    (outcome,) = outcomes_of([same], play, [], "original")
    assert (outcome.worth, outcome.games[0].state) == (0.5, "equal")


def test_no_vote_is_asked_that_cannot_change_a_verdict(tmp_path):
    play = Play("prompts", "pair", "suite", find_template("pairwise"), Decoding(9, 1.0), votes=5)
    judge = asker(tmp_path, lambda request: f"[[{'AAABB'[request.sample]}]]")
    heard = ask_games([match()], play, [judge])
    assert [len(game.votes) for game in heard] == [3, 3] and len(judge.backend.asked) == 6
    (outcome,) = outcomes_of([match()], play, heard, "original")
    assert outcome.worth == 0.5 and [game.worth for game in outcome.games] == [1.0, 0.0]


def test_more_games_than_the_limit_are_refused_before_any(tmp_path):
    play = Play("prompts", "pair", "suite", find_template("pairwise"), Decoding(9))
    judge = asker(tmp_path, lambda request: "[[A]]", limit=1)
    with pytest.raises(UserError, match="`judge_limit` is 1"):
        ask_games([match()], play, [judge])
    assert judge.backend.asked == []


def test_readings_are_compared_game_by_game(tmp_path):
    play = Play("mtbench", "single", "suite", find_template("mtbench-single"), Decoding(9))
    said = iter(["[[7]] or [[8]]", "[[5]]"])
    heard = ask_games([match(TWO, baseline=None)], play, [asker(tmp_path, lambda request: next(said))])
    both = [outcomes_of([match(TWO, baseline=None)], play, heard, rule) for rule in ("original", "strict")]
    assert differing(*both) == 1


def policy(name: str, **texts) -> Answers:
    return Answers(
        name, {id: [PolicyAnswer(id, (text,), number) for number, text in enumerate(own)] for id, own in texts.items()}
    )


def questions(*ids: str) -> list[Question]:
    return [ONE._replace(id=id) for id in ids]


def test_answers_are_joined_in_the_order_of_the_questions_sample_by_sample():
    base = policy("base", a=["b1", "b2"], b=["b3"])
    matches, gaps = joined(questions("a", "b"), policy("p", b=["x"], a=["y", "z", ""]), base)
    pairs = [(found.policy.turns[0], found.baseline.turns[0]) for found in matches]
    assert pairs == [("y", "b1"), ("z", "b2"), ("", "b1"), ("x", "b3")] and gaps == ([], ["a"], [])


def test_what_is_missing_or_of_other_questions_is_said():
    base, own = policy("base", a=["1"], b=["2"]), policy("p", a=["x"])
    with pytest.raises(UserError, match="p has no answer to 1 of 2 questions, e.g. 'b'"):
        joined(questions("a", "b"), own, base)
    matches, gaps = joined(questions("a", "b"), own, base, allow_missing=True)
    assert len(matches) == 1 and gaps.missing == ["b"]
    # Where the baseline has no answer, the policy has lost nothing.
    matches, gaps = joined(questions("a", "b"), policy("p", a=["1"], b=["2"]), policy("base", a=["1"]), allow_missing=True)
    assert len(matches) == 1 and gaps.missing == []
    with pytest.raises(UserError, match="`baseline` base answers 1 questions that are not asked"):
        joined(questions("a"), own, base, allow_missing=True)
    with pytest.raises(UserError, match="no question has an answer"):
        joined(questions("a", "b"), own, policy("base", b=["2"]), allow_missing=True)


def test_references_are_taken_from_their_own_file():
    found = with_references([ONE, TWO], policy("gpt-4", q1=["right"]))
    assert [question.references for question in found] == [("right",), TWO.references]
    with pytest.raises(UserError, match="answers to 1 other questions"):
        with_references([ONE], policy("gpt-4", q9=["right"]))


def test_one_text_for_several_questions_is_told():
    matches = [match(question, (text,)) for question, text in zip(questions("a", "b", "c"), ("same", "same", "other"))]
    assert equal_answers([*matches, matches[2]]) == [{"questions": 2, "begins": "same"}]
