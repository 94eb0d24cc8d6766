"""Numbers of policies that a judge of known faults has judged, in closed form, and recorded ones."""

import csv
import json

import numpy as np
import pytest
from policy_files import PROMPTS, answers
from rule_server import Rule, RuleBackend

from denserl.errors import UserError
from denserl.evaluation.policies.answers import Answers, Gaps, PolicyAnswer, Question
from denserl.evaluation.policies.clusters import times_drawn
from denserl.evaluation.policies.joining import joined
from denserl.evaluation.policies.judgements import file_name
from denserl.evaluation.policies.length_files import read_length_files
from denserl.evaluation.policies.markup import count_marks
from denserl.evaluation.policies.outcomes import Game, Judged, Match, Outcome, Played
from denserl.evaluation.policies.playing import Play, ask_games, outcomes_of
from denserl.evaluation.policies.recorded import Row, recorded_outcomes
from denserl.evaluation.policies.report import differences as shown_differences
from denserl.evaluation.policies.results import Counting, results_of
from denserl.judging.asking import Asker
from denserl.judging.contract import Decoding
from denserl.judging.store import Store
from denserl.judging.templates import find_template
from denserl.world.language import response_reward

NO_GAPS = Gaps([], [], [])
NOISE, BIAS, INVALID = 0.2, 0.3, 0.05


def questions(prompts: list[str]) -> list[Question]:
    return [Question(prompt, [{"role": "user", "content": prompt}], category=prompt.split()[0]) for prompt in prompts]


def policy(name: str, prompts: list[str], samples: list[list[str]]) -> Answers:
    """samples: of each number, a text for each prompt."""
    own = {
        prompt: [PolicyAnswer(prompt, (texts[i],), j) for j, texts in enumerate(samples)] for i, prompt in enumerate(prompts)
    }
    return Answers(name, own)


def judged(tmp_path, play: Play, decoding: Decoding, own: Answers, base: Answers, rule: Rule) -> Judged:
    matches, gaps = joined(questions(PROMPTS), own, base)
    heard = ask_games(matches, play, [Asker(RuleBackend(rule), "rule", Store(tmp_path / f"{own.name}.jsonl"))])
    return Judged(own.name, outcomes_of(matches, play, heard, "original"), gaps)


def counting(suite="prompts", mode="pair", mean="win_rate", **more) -> Counting:
    return Counting(suite, mode, mean, 200, 0, **more)


def test_both_orders_take_out_what_the_place_says(tmp_path):
    """AlpacaEval's chances of a judge with bias b and noise n: in both orders together 1/2 +- (1 - b)(1 - 2n)/2, exactly."""
    template = find_template("alpacaeval")
    good, base = (
        policy(name, PROMPTS, [answers(PROMPTS, best, seed)]) for name, best, seed in (("good", 4, 1), ("base", 1, 2))
    )
    rule = Rule(template, noise=NOISE, position_bias=BIAS, invalid=INVALID)
    lead = [
        response_reward(prompt, good.by_question[prompt][0].turns[0])
        - response_reward(prompt, base.by_question[prompt][0].turns[0])
        for prompt in PROMPTS
    ]
    gain = (1 - BIAS) * (1 - 2 * NOISE) / 2
    expected = 100 * np.mean(0.5 + np.sign(lead) * gain)
    found = {}
    for orders in ("suite", "both"):
        play = Play("alpacaeval", "pair", orders, template, Decoding(1, 1.0, 1.0, 5))
        result = results_of([judged(tmp_path / orders, play, None, good, base, rule)], counting("alpacaeval"))
        found[orders] = result["policies"]["good"]
    both, suite = found["both"], found["suite"]
    assert both["win_rate"]["value"] == pytest.approx(expected) and 60 < expected < 75
    low, high = both["win_rate"]["interval"]
    assert low < expected < high
    # The place is worth b: shown first, an answer has b + (1 - b) c, shown second 1 - b - (1 - b)(1 - c).
    assert both["positions"]["first"] - both["positions"]["second"] == pytest.approx(100 * BIAS)
    assert both["positions"]["first_share"] == pytest.approx((1 + BIAS) / 2) and suite["positions"]["first_share"] > 0.55
    assert suite["games"] == len(PROMPTS) and both["games"] == 2 * len(PROMPTS)
    assert both["original"]["win_rate"] == pytest.approx(expected)


def test_two_samplings_of_one_policy_are_even_and_a_better_one_wins(tmp_path):
    template = find_template("pairwise")
    rule = Rule(template, noise=NOISE, position_bias=BIAS, invalid=INVALID)
    base = policy("base", PROMPTS, [answers(PROMPTS, 2, seed) for seed in (1, 2, 3)])
    same = policy("same", PROMPTS, [answers(PROMPTS, 2, seed) for seed in (4, 5, 6)])
    good = policy("good", PROMPTS, [answers(PROMPTS, 8, seed) for seed in (7, 8, 9)])
    play = Play("prompts", "pair", "suite", template, Decoding(64))
    policies = [judged(tmp_path, play, None, own, base, rule) for own in (same, good)]
    found = results_of(policies, counting())
    even, better = (found["policies"][name]["win_rate"] for name in ("same", "good"))
    assert even["interval"][0] < 50 < even["interval"][1] and abs(even["value"] - 50) < 3 and even["questions"] == len(PROMPTS)
    assert better["interval"][0] > 50
    (difference,) = found["differences"]
    assert difference["value"] == pytest.approx(even["value"] - better["value"]) and difference["interval"][1] < 0
    own = found["policies"]["same"]
    assert own["positions"]["first_share"] > 0.55 and 0.02 < own["invalid"] / own["games"] < 0.08
    assert own["answers"] == 3 * len(PROMPTS) == own["games"] / 2 + own["equal"] / 2
    categories = own["by_category"]
    assert sum(part["answers"] for part in categories.values()) == own["answers"] and set(categories) == {
        "Tell",
        "How",
        "I",
        "What",
    }


def outcome(question, worths, texts=("policy", "base"), sample=0, truncated=None, states=()):
    """Of an answer and the baseline's, with a game for each worth."""
    games = [
        Played(Game(1, bool(k)), [], f"said {k}", "A" if worth else "B", worth, "valid" if worth is not None else "invalid")
        for k, worth in enumerate(worths)
    ]
    own = PolicyAnswer(question.id, texts[:1], sample, truncated, count_marks(texts[0], 10))
    base = PolicyAnswer(question.id, texts[1:], counts=count_marks(texts[1], 20)) if len(texts) > 1 else None
    known = [worth for worth in worths if worth is not None]
    return Outcome(Match(question, own, base), tuple(games), (sum(known) / len(known),) if known else ())


def test_missing_truncated_and_unjudged_answers_have_numbers_of_their_own():
    asked = questions(["a 1", "a 2", "b 3"])
    rows = [
        outcome(asked[0], [1.0, 1.0], truncated=(True,)),
        outcome(asked[1], [0.0, 1.0], truncated=(False,))._replace(credits=(0.0,)),
        outcome(asked[2], [None]),
    ]
    found = results_of([Judged("p", rows, Gaps(["c", "d"], ["a 2"], []))], counting())["policies"]["p"]
    assert found["win_rate"]["value"] == 50 and found["win_rate_if_missing_lost"] == pytest.approx(100 / 4)
    assert found["truncated"] == {"answers": 1, "share": 0.5, "win_rate": 100.0} and found["judged"] == 2
    assert (found["missing"], found["empty"], found["invalid"]) == (2, 1, 1) and found["by_category"]["b"]["value"] is None
    assert found["positions"] == {"first": 100.0, "second": 50.0, "first_share": pytest.approx(3 / 4), "consistency": 0.5}
    assert found["equal_answers"] == [{"questions": 3, "begins": "policy"}]
    assert results_of([Judged("p", rows, NO_GAPS)], counting())["policies"]["p"].keys().isdisjoint({"win_rate_if_missing_lost"})


def test_a_missing_grade_counts_as_the_lowest():
    rows = [outcome(question, [grade], ("policy",)) for question, grade in zip(questions(["a", "b"]), (8.0, 5.0), strict=True)]
    found = results_of([Judged("p", rows, Gaps(["c", "d"], [], []))], counting("mtbench", "single", "average"))["policies"]["p"]
    assert found["average"]["value"] == 6.5 and found["average_if_missing_lost"] == (8 + 5 + 1 + 1) / 4


def test_a_policy_without_a_single_verdict_has_no_numbers_and_no_fault():
    rows = [outcome(question, [None]) for question in questions(["a", "b"])]
    for how in (counting(), counting("alpacaeval"), counting("arenahard", style_control=True), counting("mtbench")):
        found = results_of([Judged("p", rows, NO_GAPS)], how)["policies"]["p"]
        assert found["win_rate"]["value"] is None and json.dumps(found, allow_nan=False)


def test_two_policies_of_alpacaeval_are_compared_at_equal_lengths_on_the_questions_of_both():
    """Where lengths are equal, a win rate at equal lengths is the win rate."""
    asked, worths = questions([f"q {number}" for number in range(7)]), ([1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 0.0], [0.0, 1.0] * 3)
    policies = [
        Judged(name, [outcome(question, [worth], ("sure", "well")) for question, worth in zip(asked, own)], NO_GAPS)
        for name, own in zip("pq", worths)
    ]
    (found,) = results_of(policies, counting("alpacaeval"))["differences"]
    at_equal_lengths = found["length_control"]
    assert at_equal_lengths["of"] == "lc_win_rate (fixed)" and at_equal_lengths["value"] == pytest.approx(found["value"])
    assert found["value"] == pytest.approx(100 * (4.5 / 6 - 3 / 6)) and found["questions"] == 6
    gains = np.subtract(worths[0][:6], worths[1])
    draws = [100 * np.average(gains, weights=drawn) for drawn in times_drawn([question.id for question in asked[:6]], 200, 0)]
    assert at_equal_lengths["interval"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-5)
    assert shown_differences(results_of(policies, counting("alpacaeval")))[0][1:3] == ["lc_win_rate (fixed)", "win_rate"]
    (stand_in,) = results_of(policies, counting("alpacaeval", stand_in=True))["differences"]
    assert "length_control" not in stand_in


def test_names_of_models_are_names_of_files():
    assert file_name("org/model-7b.v2") == "org%2Fmodel-7b.v2" and file_name("..") == "%2E%2E" and file_name("a b") == "a b"
    # What a server calls its model may be anything.
    assert file_name("\ud800") == "%ED%A0%80"
    long = [file_name("/" * 100 + end) for end in "ab"]
    assert len({*long}) == 2 and all(len(name) < 230 and name.startswith("%2F" * 66) for name in long)


def recorded(policy="p", question="a 1", baseline="b", turn=1, texts=None) -> Row:
    return Row("j", policy, question, [Played(Game(turn), [], "", "", 1.0, "valid")], baseline, texts=texts)


def test_recorded_judgements_are_of_these_answers_once_each(caplog):
    matches = [row.match for row in (outcome(question, []) for question in questions(["a 1", "a 2"]))]
    found = recorded_outcomes("alpacaeval", "pair", [recorded(), recorded("other")], "p", "b", matches)
    assert [row.worth for row in found] == [1.0, None] and "1 answers have no recorded judgement" in caplog.text
    faults = {
        "twice": [recorded(), recorded()],
        "nothing of p against b": [recorded(baseline="c")],
        "other answers": [recorded(texts=("base", "changed"))],
    }
    for message, rows in faults.items():
        with pytest.raises(UserError, match=message):
            recorded_outcomes("alpacaeval", "pair", rows, "p", "b", matches)


def test_alpacaevals_file_is_read_by_the_numbers_of_questions(tmp_path):
    asked = questions(["a", "b"])
    rows = [(0.2, 0, 1.5, 0.5), (0.3, 0, -0.8, 0.5), (0.6, 1, 0.3, -1.0)]
    with open(tmp_path / "df_gamed.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("", "preference", "index", "std_delta_len", "instruction_difficulty")])
        writer.writerows([(number, *row) for number, row in enumerate(rows)])
    found = read_length_files(str(tmp_path), asked)
    assert found.difficulty(["b", "a"]).tolist() == [-1.0, 0.5] and found.gamed.credits.tolist() == [0.2, 0.3, 0.6]
    with pytest.raises(UserError, match="is of 2 questions, and there are 1"):
        read_length_files(str(tmp_path), asked[:1])
    (tmp_path / "df_gamed.csv").write_text("preference,index\n1,0\n")
    with pytest.raises(UserError, match="cannot be read as a table"):
        read_length_files(str(tmp_path), asked)
