"""Both orders, votes and log-probabilities against a judge whose faults are known: what they mend, and by how much."""

import itertools
import math
import random

import pytest
from rule_server import Rule, RuleBackend

from denserl.judging.asking import Asker
from denserl.judging.comparing import TextJudge, chance_vote, text_vote
from denserl.judging.contract import Comparison, Decoding
from denserl.judging.store import Store
from denserl.judging.templates import find_template
from denserl.world.language import FRAMES, TOPICS, WISHES, make_prompt, response_reward, sample_response

COUNT = 500
TEXT, DRAWN, TOKEN = Decoding(100), Decoding(100, 1.0), Decoding(1, 0.0, 1.0, 5)


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    """Of answers of the embedded world of different worth; the better one stands first in every other."""
    rng, found = random.Random(0), []
    while len(found) < COUNT:
        prompt = make_prompt(rng.choice(TOPICS), rng.choice(WISHES), rng.randrange(len(FRAMES)))
        better, worse = sorted(
            (sample_response(rng, prompt) for _ in range(2)), key=lambda text: -response_reward(prompt, text)
        )
        if response_reward(prompt, better) > response_reward(prompt, worse):
            pair = (better, worse) if len(found) % 2 == 0 else (worse, better)
            found.append(Comparison([{"role": "user", "content": prompt}], *pair))
    return found


@pytest.fixture
def judged(tmp_path):
    """(rule, comparisons, how they are judged) -> scores, and the requests that were made."""

    def judge(rule, comparisons, decoding=TEXT, read=text_vote, **how):
        backend = RuleBackend(rule)
        asker = Asker(backend, "rule", Store(tmp_path / "answers.jsonl"))
        found = TextJudge(rule.template, [asker], decoding, read(rule.template), **how).compare(comparisons)
        return [judgement.score for judgement in found], backend.asked

    return judge


def share_of_first_places(scores) -> float:
    decided = [score for score in scores if score not in (None, 0.5)]
    assert len(decided) > COUNT / 3
    return sum(decided) / len(decided)


def right(scores) -> float:
    """The share of comparisons that are judged rightly, half of one where neither answer is preferred."""
    return sum(0.5 if s is None else s if number % 2 == 0 else 1 - s for number, s in enumerate(scores)) / len(scores)


def interval(share: float) -> float:
    return 3 * math.sqrt(share * (1 - share) / COUNT)


def test_both_orders_take_a_preference_for_places_out(comparisons, judged):
    """A judge that takes the first answer in .3 of all cases prefers it in .3 + .7 / 2 of them."""
    rule = Rule(find_template("pairwise"), noise=0.2, position_bias=0.3, invalid=0.05)
    one, asked = judged(rule, comparisons, orders="given")
    assert len(asked) == COUNT and share_of_first_places(one) == pytest.approx(0.65, abs=interval(0.65))
    turned = [Comparison(prompt, second, first) for prompt, first, second in comparisons]
    both, asked = judged(rule, [*comparisons, *turned])
    assert len(asked) == COUNT  # the other half was there; of pairs that are turned round, all was
    assert both[COUNT:] == [None if score is None else 1 - score for score in both[:COUNT]]
    assert share_of_first_places(both) == 0.5


def by_enumeration(votes: int, wrong: float, invalid: float) -> float:
    """How often the majority of independent votes is right, a tie half, over all that they may say."""
    chances = {1: (1 - invalid) * (1 - wrong), -1: (1 - invalid) * wrong, 0: invalid}
    total = 0.0
    for said in itertools.product(chances, repeat=votes):
        total += math.prod(chances[vote] for vote in said) * (0.5 + 0.5 * (sum(said) > 0) - 0.5 * (sum(said) < 0))
    return total


def test_five_votes_gain_what_independence_predicts(comparisons, judged):
    """Of accuracy .7, five come to .83692, and to a little less where some are invalid."""
    assert by_enumeration(5, 0.3, 0) == pytest.approx(0.83692) and by_enumeration(4, 0.3, 0) == pytest.approx(0.784)
    rule, expected = Rule(find_template("pairwise"), noise=0.3, invalid=0.05), by_enumeration(5, 0.3, 0.05)
    scores, asked = judged(rule, comparisons, DRAWN, orders="given", votes=5)
    assert right(scores) == pytest.approx(expected, abs=interval(expected))
    assert right(scores) > 0.7 + interval(0.7)
    # No vote is asked for that can change nothing.
    assert 3 * COUNT < len(asked) < 4.7 * COUNT


def test_log_probabilities_are_what_many_votes_come_to(comparisons, judged):
    """One call: the chance of the first answer in both orders, where the judge errs in .2 and prefers places in .3 of all."""
    rule = Rule(find_template("pairwise-token"), noise=0.2, position_bias=0.3, invalid=0.05)
    scores, asked = judged(rule, comparisons[:40], TOKEN, chance_vote)
    first_better = 0.5 * ((0.3 + 0.7 * 0.8) + (1 - (0.3 + 0.7 * 0.2)))
    expected = [first_better if number % 2 == 0 else 1 - first_better for number in range(40)]
    assert scores == pytest.approx(expected) and len(asked) == 80
