"""A judge behind a server: what is sent, how answers are read, faults that pass and those that do not, and leaving at once."""

import json
import logging
import math
import signal
import time

import pytest
from reward_server import serving

from denserl import http
from denserl.errors import UserError
from denserl.judging.contract import Decoding, Reply, Request
from denserl.judging.endpoint import Endpoint, body_of, reply_of

ASKED = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "A or B?"}]
GREEDY = Decoding(5)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)


def endpoint(url, model="m", key=None, concurrency=4, timeout=5.0, tries=2) -> Endpoint:
    return Endpoint(url, model, key, concurrency, http.Patience(timeout, tries))


def numbered(count: int, decoding=GREEDY) -> list[Request]:
    return [Request([{"role": "user", "content": f"question {number}"}], decoding) for number in range(count)]


def completion(text="[[A]]", ended="stop", **more) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": ended}], **more}


def echo(body: dict) -> dict:
    return completion(body["messages"][-1]["content"])


# What is sent.


def test_the_most_likely_answer_is_asked_for_without_a_seed():
    assert body_of("m", Request(ASKED, Decoding(7))) == {"model": "m", "messages": ASKED, "max_tokens": 7, "temperature": 0.0}


def test_a_drawn_answer_has_a_seed_of_its_own():
    """A hash of the messages and the sample's number: other settings, other requests beside it, and time do not matter."""
    body = body_of("m", Request(ASKED, Decoding(7, 0.5, 0.9), sample=3))
    assert (body["temperature"], body["top_p"]) == (0.5, 0.9)
    assert body["seed"] == body_of("n", Request(ASKED, Decoding(9, 1.0), sample=3))["seed"]
    seeds = {body_of("m", Request(r.messages, Decoding(7, 1.0), s))["seed"] for r in numbered(20) for s in range(5)}
    assert len(seeds) == 100 and all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)


def test_log_probabilities_are_asked_for():
    body = body_of("m", Request(ASKED, Decoding(1, 1.0, top_logprobs=5)))
    assert body["logprobs"] is True and body["top_logprobs"] == 5


def test_where_and_with_what_it_is_asked():
    with serving(echo) as seen:
        assert [reply.text for _, reply in endpoint(seen.url + "/", key="s3cret").replies(numbered(1))] == ["question 0"]
    headers = {name.lower(): value for name, value in seen.headers[0].items()}
    assert headers["authorization"] == "Bearer s3cret" and seen == [body_of("m", numbered(1)[0])]


# How answers are read.


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (completion("[[B]]", usage={"prompt_tokens": 9, "completion_tokens": 4}), Reply("[[B]]", False, 9, 4)),
        (completion("I th", "length", usage={"prompt_tokens": 9, "completion_tokens": 2}), Reply("I th", True, 9, 2)),
        (completion("", "length"), Reply("", True, 77, 0)),
        (completion(None, "content_filter"), Reply("", False, 77, 0)),
        (completion("twelve bytes", usage={"prompt_tokens": None}), Reply("twelve bytes", False, 77, 3)),
        ({"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}, Reply("No.", False, 77, 1)),
    ],
)
def test_an_answer_is_read(said, reply):
    assert reply_of(said, Request(ASKED, GREEDY), 77) == reply


def test_first_tokens_are_the_most_likely_ones_in_order():
    """vLLM tells the sampled token beside those that are asked for."""
    told = [{"token": "x", "logprob": -9}, {"token": "B", "logprob": -1.5}, {"token": " A", "logprob": -0.25}]
    said = completion("x")
    said["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": -9, "top_logprobs": told}, {"top_logprobs": []}]}
    asked = Request(ASKED, Decoding(1, 1.0, top_logprobs=2))
    assert reply_of(said, asked, 0).first == ((" A", -0.25), ("B", -1.5))
    assert reply_of(said, Request(ASKED, GREEDY), 0).first == ()
    said["choices"][0]["logprobs"] = {"content": []}
    assert reply_of(said, asked, 0).first == ()


def with_logprobs(logprobs) -> dict:
    return {"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": logprobs}]}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "no answer"),
        ({"error": {"message": "overloaded"}}, "no answer; it answered .*overloaded"),
        ({"choices": []}, "no answer"),
        ({"choices": [{"text": "A", "finish_reason": "stop"}]}, "no answer"),
        ({"choices": [{"message": {"content": ["A"]}, "finish_reason": "stop"}]}, "an answer that is no text"),
        ({"choices": [{"message": {"content": "A", "tool_calls": [{}]}, "finish_reason": "tool_calls"}]}, "calls a tool"),
        (completion("A", None), "ends for the reason None; expected stop or length"),
        (completion("A", "error"), "ends for the reason 'error'"),
        (b"<html>", "answered no JSON"),
        (b"{" * 100_000, "answered no JSON"),
    ],
)
def test_nonsense_is_named_with_the_server_and_what_it_said(said, message):
    with serving(lambda body: said) as seen:
        with pytest.raises(UserError, match=f"^the judge at {seen.url} .*{message}") as error:
            list(endpoint(seen.url).replies(numbered(1)))
    assert error.value.one_rank and len(seen) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        [],
        "A",
        {"content": None},
        {"content": [{}]},
        {"content": [{"top_logprobs": "AB"}]},
        {"content": [{"top_logprobs": [{"token": "A"}]}]},
        {"content": [{"top_logprobs": [{"token": 1, "logprob": -1}]}]},
        {"content": [{"top_logprobs": [{"token": "A", "logprob": "-1"}]}]},
        {"content": [{"top_logprobs": [{"token": "A", "logprob": -math.inf}]}]},
    ],
)
def test_log_probabilities_that_are_missing_are_no_verdict(logprobs):
    with pytest.raises(UserError, match="gave (no )?log-probabilities"):
        reply_of(with_logprobs(logprobs), Request(ASKED, Decoding(1, 1.0, top_logprobs=5)), 0)


# Faults.


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_ends_all_at_once_with_the_words_of_the_server(status):
    """What is under way beside it is not waited for."""

    def answer(body):
        if body["messages"][0]["content"] == "question 2":
            return status, {}, {"error": {"message": "not for you"}}
        time.sleep(3)
        return completion()

    with serving(answer) as seen:
        began = time.monotonic()
        with pytest.raises(UserError, match=f"answered {status}: .*not for you"):
            list(endpoint(seen.url).replies(numbered(30)))
        assert time.monotonic() - began < 1
    assert len(seen) <= 4


def test_a_server_that_takes_the_newer_name_of_the_limit_is_asked_by_it():
    def answer(body):
        if "max_tokens" in body:
            return 400, {}, {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens' instead."}}
        return completion(str(body["max_completion_tokens"]))

    with serving(answer) as seen:
        judge = endpoint(seen.url, concurrency=1)
        assert [reply.text for _, reply in judge.replies(numbered(3))] == ["5", "5", "5"] and len(seen) == 4
    with serving(lambda body: (400, {}, b"neither max_completion_tokens")) as seen:
        with pytest.raises(UserError, match="answered 400"):
            list(endpoint(seen.url).replies(numbered(1)))
    assert len(seen) == 2


def test_nothing_more_is_asked_after_a_refusal():
    with serving(lambda body: (400, {}, b"no")) as seen:
        for _ in range(20):
            with pytest.raises(UserError, match="answered 400: 'no'"):
                list(endpoint(seen.url, concurrency=1).replies(numbered(30)))
        time.sleep(0.1)
    assert len(seen) == 20


def test_a_busy_server_is_not_asked_again_after_a_refusal_of_another_request(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.3)

    def answer(body):
        if body["messages"][0]["content"] == "question 1":
            return 503, {}, b"busy"
        time.sleep(0.1)
        return 400, {}, b"no"

    with serving(answer) as seen:
        with pytest.raises(UserError, match="answered 400: 'no'"):
            list(endpoint(seen.url).replies(numbered(2)))
        time.sleep(0.4)
    assert len(seen) == 2


def test_a_key_is_shown_nowhere_even_if_the_server_says_it(caplog):
    replies = [(503, {}, b"s3cret is early"), (401, {}, b"s3cret is no key")]
    with serving(lambda body: replies.pop(0)) as seen, caplog.at_level(logging.DEBUG):
        with pytest.raises(UserError, match="answered 401: '\\(token\\) is no key'") as error:
            list(endpoint(seen.url, key="s3cret").replies(numbered(1)))
    with serving(lambda body: {"choices": "s3cret"}) as seen, pytest.raises(UserError, match="choices.*\\(token\\)") as other:
        list(endpoint(seen.url, key="s3cret").replies(numbered(1)))
    assert "s3cret" not in f"{error.value}{other.value}{caplog.text}"


def test_a_redirect_is_refused():
    with serving(echo) as elsewhere, serving(lambda body: (307, {"location": elsewhere.url}, b"")) as seen:
        with pytest.raises(UserError, match=f"answered 307, a redirect to '{elsewhere.url}'"):
            list(endpoint(seen.url, key="s3cret").replies(numbered(1)))
    assert not elsewhere


def test_requests_are_under_way_together_and_answers_come_as_they_are_there():
    def answer(body):
        time.sleep(0.05 * (8 - int(body["messages"][0]["content"].split()[1])))
        return echo(body)

    with serving(answer) as seen:
        began = time.monotonic()
        found = list(endpoint(seen.url, concurrency=8).replies(numbered(8)))
        assert time.monotonic() - began < 1.0  # one after the other: 1.8
    assert [number for number, _ in found] != sorted(number for number, _ in found)
    assert {number: reply.text for number, reply in found} == {number: f"question {number}" for number in range(8)}


def test_no_more_are_under_way_than_that():
    under_way, most = [], []

    def answer(body):
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.pop()
        return echo(body)

    with serving(answer) as seen:
        assert len(list(endpoint(seen.url, concurrency=3).replies(numbered(12)))) == 12
    assert max(most) == 3


def test_who_leaves_is_not_asked_for_more():
    with serving(echo) as seen:
        replies = endpoint(seen.url, concurrency=2).replies(numbered(50))
        next(replies)
        replies.close()
        time.sleep(0.2)
        count = len(seen)
        time.sleep(0.2)
    assert count == len(seen) < 50


@pytest.mark.parametrize("answer", [lambda body: time.sleep(3), lambda body: (429, {"retry-after": "3"}, b"")])
def test_an_interrupt_ends_it_at_once(answer):
    """While answers hang, and while a busy server is waited for."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with serving(answer) as seen:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                list(endpoint(seen.url, timeout=100).replies(numbered(5)))
            assert time.monotonic() - began < 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_server_that_stays_away_is_no_answer():
    with pytest.raises(UserError, match="gave no answer \\(ConnectError: .*, at try 2 of 2"):
        list(endpoint("http://127.0.0.1:9/v1").replies(numbered(3)))


# Which model it is.


class Models:
    """In the place of `get_json`: what a server says of its models."""

    def __init__(self, said):
        self.said, self.asked = said, []

    def __call__(self, client, url, patience):
        self.asked.append(url)
        return self.said


def test_the_one_model_of_a_server_is_asked_for_once(monkeypatch):
    models = Models({"object": "list", "data": [{"id": "some/model", "created": 1}]})
    monkeypatch.setattr("denserl.judging.endpoint.get_json", models)
    judge = endpoint("http://host:1/v1/", model=None)
    assert (judge.name, judge.name, judge.version) == ("some/model", "some/model", "")
    assert models.asked == ["http://host:1/v1/models"] and endpoint("http://host:1/v1", model="mine").name == "mine"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"data": [{"id": "one"}, {"id": "two"}]}, "serves 2 models: one, two\n  fix: name one with `judge_model`"),
        ({"data": []}, "names no model"),
        ({"data": "one"}, "names no model"),
        ({"data": [{"name": "one"}]}, "serves 1 models: None"),
        (["one"], 'names no model: \\["one"\\]'),
    ],
)
def test_a_server_of_other_than_one_model(said, message, monkeypatch):
    monkeypatch.setattr("denserl.judging.endpoint.get_json", Models(said))
    with pytest.raises(UserError, match=f"^the judge at http://host:1/v1 {message}"):
        _ = endpoint("http://host:1/v1", model=None).name


def test_a_server_that_knows_nothing_of_models():
    with serving(echo) as seen, pytest.raises(UserError, match="answered 501: .* when asked for its models"):
        _ = endpoint(seen.url, model=None, tries=1).name


def test_tokens_of_messages_are_estimated():
    assert endpoint("http://host/v1").prompt_tokens([{"role": "user", "content": "x" * 400}]) == 104


def test_bodies_are_json_of_any_text():
    request = Request([{"role": "user", "content": "\u2028 \U0001f600 \ud800"}], GREEDY)
    with serving(echo) as seen:
        ((_, reply),) = endpoint(seen.url).replies([request])
    assert reply.text == request.messages[0]["content"] and json.dumps(seen[0]["messages"]) == json.dumps(request.messages)
