"""Judges from their options: refused combinations, and a judge behind a server that is asked once and never again."""

import dataclasses
import json

import pytest
import tiny_models
import torch
from rule_server import MODEL, Rule, serving

from denserl.errors import UserError
from denserl.judging.build import build_askers, build_judge, build_rater, decoding_of, opened_askers
from denserl.judging.config import STORE, JudgeConfig
from denserl.judging.contract import Comparison, Decoding
from denserl.judging.store import Store
from denserl.judging.templates import find_template

PROMPT = [{"role": "user", "content": "Tell me about the river."}]
ANSWERS = ["A quiet river runs under the stone bridge.", "Rain.", "The boats wait there."]
COMPARISONS = [Comparison(PROMPT, one, other) for one in ANSWERS for other in ANSWERS if one < other]
URL = "http://127.0.0.1:1/v1"


def rule_of(name: str, **how) -> Rule:
    """A judge that prefers longer answers."""
    return Rule(find_template(name), lambda prompt, answer: len(answer) / 100, **how)


def judged(folder, kind: str = "pairwise", **options):
    """What a judge says of the comparisons, and of itself."""
    config = JudgeConfig(**({"judge_tries": 1} if "http" in str(options["judge"]) else {}) | options)
    config.check()
    with opened_askers(config, folder, torch.device("cpu"), "fp32") as askers:
        judge = build_judge(config, find_template(config.judge_template or kind), askers, config.judge_orders)
        return judge.compare(COMPARISONS), judge.describe()


@pytest.mark.parametrize(
    "options, found",
    [
        ({"judge_votes": 3}, "`judge_votes` 3 has no effect without `judge`"),
        ({"judge": "folder", "judge_key_env": "KEY"}, "`judge_key_env` KEY has no effect where no `judge` is the address"),
        ({"judge": "folder", "judge_model": ["m"]}, "`judge_model` .* has no effect where no `judge`"),
        ({"judge": URL, "judge_model": ["m", "n"]}, "`judge_model` has 2 names for 1 servers"),
        ({"judge": URL, "judge_votes": 3, "judge_verdict": "logprob"}, "`judge_votes` 3 has no effect with `judge_ver"),
        ({"judge": URL, "judge_votes": 3, "judge_temperature": 0.0}, "`judge_votes` has no effect with `judge_temperature` 0"),
        ({"judge": URL, "judge_verdict": "logprob", "judge_temperature": 0.5}, "`judge_temperature` 0.5 has no effect"),
        ({"judge": "http://me:secret@host/v1"}, "has a login in it.*\\n.*a token by `judge_key_env`"),
        ({"judge": "http://"}, "is no address of a server"),
        ({"judge": URL, "judge_votes": 0}, "must be at least 1"),
        ({"judge": URL, "judge_orders": "none"}, "must be one of both, one"),
    ],
)  # fmt: skip
def test_options_that_cannot_act_are_refused(options, found):
    with pytest.raises(UserError, match=found) as error:
        JudgeConfig(**options).check()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "options, own, expected",
    [
        ({}, None, Decoding(2048)),
        ({"judge_votes": 3}, None, Decoding(2048, 1.0)),
        ({"judge_votes": 3, "judge_temperature": 0.5}, None, Decoding(2048, 0.5)),
        ({"judge_max_new_tokens": 9}, Decoding(4096, 0.7), Decoding(9, 0.7)),
        ({"judge_votes": 3}, Decoding(1, 0.7), Decoding(1, 0.7)),
        ({"judge_temperature": 0.0}, Decoding(1, 0.7), Decoding(1)),
        ({"judge_verdict": "logprob"}, Decoding(4096, 0.7), Decoding(1, 0.0, 1.0, 20)),
    ],
)
def test_answers_are_sampled_as_options_say_else_as_the_suite_does(options, own, expected):
    assert decoding_of(JudgeConfig(judge=URL, **options), own) == expected


def test_a_judge_behind_a_server_is_asked_once_and_then_found_in_the_store(tmp_path, caplog):
    with serving(rule_of("pairwise")) as server:
        found, described = judged(tmp_path, judge=server.url)
        assert {each.score for each in found} <= {0, 1} and len(server.bodies) == 2 * len(COMPARISONS)
        assert judged(tmp_path, judge=server.url) == (found, described) and len(server.bodies) == 2 * len(COMPARISONS)
    rows = [json.loads(line) for line in (tmp_path / STORE).read_text().splitlines()]
    assert {(row["judge"], row["model"], row["template"]) for row in rows} == {(server.url, MODEL, "pairwise")}
    # The server is away: it is known what it served, and all that it said.
    assert judged(tmp_path, judge=server.url, judge_limit=0, judge_tries=3) == (found, described)
    assert f"it is taken for {MODEL}" in caplog.text and "tried again" not in caplog.text
    assert judged(tmp_path, judge=server.url, judge_model=MODEL) == (found, described)
    with pytest.raises(UserError, match="gave no answer"):
        judged(tmp_path / "other", judge=server.url)
    with pytest.raises(UserError, match="gave no answer") as error:
        judged(tmp_path, judge=server.url, judge_votes=3)
    assert "the same command goes on" in error.value.fix


def test_log_probabilities_are_of_a_template_of_one_token(tmp_path):
    rule = rule_of("pairwise-token", noise=0.2)
    with serving(rule) as server:
        found, described = judged(tmp_path, "pairwise-token", judge=server.url, judge_verdict="logprob")
        # Without a bias both orders say the same: the rule is right with probability 0.8.
        assert {round(each.score, 9) for each in found} <= {0.2, 0.8}
        assert described["decoding"]["top_logprobs"] == 20
        with pytest.raises(UserError, match="the template pairwise asks for more than that") as error:
            judged(tmp_path, judge=server.url, judge_verdict="logprob")
        assert "pairwise-token" in error.value.fix


def test_a_judge_of_this_machine_is_loaded_for_what_the_store_does_not_hold(tmp_path):
    sft = str(tiny_models.save_language_model(tmp_path / "lm"))
    short = {"judge": sft, "judge_max_new_tokens": 8}
    found, described = judged(tmp_path, **short)
    # An untrained model says nothing that is a verdict.
    assert {order for each in found for order in each.verdicts} <= {("invalid",), ("cut",)} and len(found) == 3
    assert described["judges"][0]["judge"] == sft and described["judges"][0]["calls"] == 6
    assert judged(tmp_path, judge_limit=0, **short) == (found, described)


def test_a_rater_reads_texts_alone(tmp_path):
    rating = find_template("rating")
    with serving(rule_of("rating")) as server:
        config = JudgeConfig(judge=server.url, judge_tries=1)
        rater = build_rater(config, rating, build_askers(config, tmp_path, torch.device("cpu"), "fp32"))
        found = rater.rate([(PROMPT, text) for text in ANSWERS])
        # Values of 0.42, 0.05 and 0.21 on a scale from -1 to 1, as whole numbers from 1 to 10.
        assert found == [7, 6, 6] and rater.describe()["judges"][0]["calls"] == 3
        with pytest.raises(UserError, match="rates answers one by one"):
            build_rater(dataclasses.replace(config, judge_verdict="logprob"), rating, rater.askers)


def test_one_model_does_not_vote_twice(tmp_path):
    with serving(rule_of("pairwise")) as server:
        judged(tmp_path, judge=server.url)
        with pytest.raises(UserError, match=f"names the model {MODEL} twice") as error:
            judged(tmp_path, judge=[server.url, server.url])
    # The failure holds on to what it came from, and the store is open to others all the same.
    Store(tmp_path / STORE).close()
    assert error.value.__traceback__
