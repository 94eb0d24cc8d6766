"""The judge of tests that follows a rule: it reads any template, and does as often as it is told what it is told."""

import math
import random
from collections import Counter

import pytest
from rule_server import Rule, RuleBackend, serving

from denserl import http
from denserl.judging.contract import Decoding, Request
from denserl.judging.endpoint import Endpoint
from denserl.judging.templates import ANSWERS, built_in, find_template
from denserl.world.language import make_prompt, sample_response

PROMPT = make_prompt("sailing", "cheap", 0)
BEST, WORST = "Coupons keep sailing cheap.", "Fees make sailing costly."
USER = [{"role": "user", "content": PROMPT}]
DRAWS = 3000


def requests(template, answers, count=DRAWS, **decoding):
    messages = template.messages(USER, answers)
    return [Request(messages, Decoding(**{"max_new_tokens": 100, "temperature": 1.0, **decoding}), n) for n in range(count)]


def said(rule, asked) -> Counter:
    return Counter(reply.text.split("\n")[-1] for _, reply in RuleBackend(rule).replies(asked))


@pytest.mark.parametrize("name", built_in())
def test_it_reads_every_template(name):
    template = find_template(name)
    answers = ["A (b) {prompt}\n\n[[A]]", ""][: len(ANSWERS[template.kind])]
    prompt, found = Rule(template).read(template.messages(USER, answers))
    assert prompt == PROMPT and found == answers


def test_it_does_as_often_as_it_is_told_what_it_is_told():
    """Of 3000 draws; the chance of the better one, shown second: (1 - bias) (1 - noise) of what is valid."""
    template = find_template("pairwise")
    counts = said(Rule(template, noise=0.2, position_bias=0.3, invalid=0.05), requests(template, (WORST, BEST)))
    expected = {"[[B]]": 0.95 * 0.7 * 0.8, "[[A]]": 0.95 * (0.3 + 0.7 * 0.2), "I would rather not say.": 0.05}
    assert counts.keys() == expected.keys() and sum(counts.values()) == DRAWS
    for text, share in expected.items():
        assert counts[text] / DRAWS == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / DRAWS))


def test_without_noise_it_is_right_and_equal_requests_agree():
    template = find_template("pairwise")
    rule, rng = Rule(template), random.Random(0)
    assert said(rule, requests(template, (BEST, WORST), 20)) == {"[[A]]": 20}
    answers = [sample_response(rng, PROMPT) for _ in range(2)]
    assert said(rule, requests(template, answers, 9)) == said(rule, requests(template, answers, 9))


def test_its_log_probabilities_are_the_chances():
    template = find_template("pairwise-token")
    marks = {says: mark for mark, says in template.marks.items()}
    rule = Rule(template, noise=0.2, position_bias=0.3, invalid=0.05)
    asked = requests(template, (BEST, WORST), 1, max_new_tokens=1, top_logprobs=5)
    ((_, reply),) = RuleBackend(rule).replies(asked)
    first = 0.3 + 0.7 * 0.8
    expected = {marks["first"]: 0.95 * first, marks["second"]: 0.95 * (1 - first), "I": 0.05}
    assert {token: math.exp(number) for token, number in reply.first} == pytest.approx(expected)
    ((_, reply),) = RuleBackend(rule).replies([asked[0]._replace(decoding=Decoding(1, 1.0, top_logprobs=1))])
    assert len(reply.first) == 1


def test_its_ratings_are_values_on_the_scale():
    template = find_template("mtbench-single")
    assert said(Rule(template), requests(template, [BEST], 5)) == {"Rating: [[10]]": 5}
    assert said(Rule(template), requests(template, [WORST], 5)) == {"Rating: [[1]]": 5}
    off = said(Rule(template, noise=0.4), requests(template, [f"{BEST} {WORST}"]))
    assert set(off) == {"Rating: [[5]]", "Rating: [[6]]", "Rating: [[7]]"}
    assert off["Rating: [[6]]"] / DRAWS == pytest.approx(0.6, abs=0.04)


def answers_of(server, asked, **patience):
    judge = Endpoint(server.url, None, "k", 4, http.Patience(**{"timeout": 0.5, "tries": 3, **patience}))
    return dict(judge.replies(asked))


def test_faults_that_pass_change_nothing(monkeypatch):
    """A busy server, one that hangs, one that cuts its answer short, one that is broken for a moment, and a gateway's page."""
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)
    template = find_template("pairwise")
    rule, asked = Rule(template, noise=0.3, invalid=0.2), requests(template, (BEST, WORST), 30)
    undisturbed = dict(RuleBackend(rule).replies(asked))
    assert len({reply.text for reply in undisturbed.values()}) == 3
    faults = ("busy", "hang", "cut", (500, "out of memory"), (529, "overloaded"), (408, ""), None)
    with serving(rule, faults=faults, key="k") as server:
        assert answers_of(server, asked) == undisturbed
    assert len(server.bodies) == len(server.tries) == 30 and set(server.tries.values()) == {1, 2}
