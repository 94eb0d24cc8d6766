"""Servers of rewards: the contract, shares and chunks, patience, every way of talking nonsense, and answers that are kept."""

import functools
import json
import logging
import socket
import threading
import time

import pytest
import tiny_models
from reward_server import of_function, serving

from denserl import http
from denserl.data.chat import encode_prompt, encode_response
from denserl.data.responses import Responses
from denserl.errors import UserError
from denserl.rewards.config import check_url
from denserl.rewards.sources.answers import Answers
from denserl.rewards.sources.endpoint import EndpointSource
from denserl.rewards.sources.function import FunctionSource

TOKENIZER = tiny_models.tiny_tokenizer()
TEXTS = ["The river runs.", "Rain.", "", "The boats wait there.", "\u00e9\U0001f600 \u2028 Yes."]


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def rollouts(texts=TEXTS) -> Responses:
    prompts = [[{"role": "user", "content": f"prompt {i}"}] for i in range(len(texts))]
    starts = [encode_prompt(TOKENIZER, prompt) for prompt in prompts]
    ids = [encode_response(TOKENIZER, *row) for row in zip(prompts, texts, starts, strict=True)]
    return Responses(prompts, list(texts), starts, ids, [True] * len(texts))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)


@pytest.fixture
def source(tmp_path):
    """(URLs, options) -> a source with the answers of a new run, or of the last one."""

    def make(*urls, together=64, timeout=5.0, tries=2, token=None, resumed=False, place="iteration-000000", wait=time.sleep):
        answers = Answers(tmp_path / "answers", resumed)
        answers.begin(place)
        post = functools.partial(http.post_json, http.new_client(token), patience=http.Patience(timeout, tries, wait))
        return EndpointSource(urls, post, together, answers, decode, TOKENIZER.decode)

    return make


def lengths(prompts, responses):
    return [len(text) / 7 for text in responses]


def halves(prompts, responses):
    """Parts of some, numbers of others."""
    return [[[len(t) // 2, 0.1], [len(t), -1 / 3]] if "e" in t else len(t) / 3 for t in responses]


@pytest.mark.parametrize("function", [lengths, halves])
@pytest.mark.parametrize("together, count", [(64, 1), (2, 1), (1, 3), (2, 2), (64, 9)])
def test_servers_say_what_the_function_says_however_they_are_asked(function, together, count, source):
    """To the bit, in any chunks, by one server or by several."""
    responses = rollouts()
    batch = responses.padded(TOKENIZER.pad_token_id, "cpu")
    expected = FunctionSource(function, "f", "reward_function", decode)(responses, batch)
    with serving(of_function(function)) as requests:
        found = source(*[requests.url] * count, together=together)(responses, batch)
    assert found.values.tolist() == expected.values.tolist() and found.read == expected.read
    assert (found.segments is None) == (expected.segments is None)
    if found.segments is not None:
        assert found.segments.ids.tolist() == expected.segments.ids.tolist()
    assert sorted(requests.responses) == sorted(TEXTS)


def test_what_is_sent():
    """The fields of the contract, each a list of one entry a response; several servers are asked about shares in order."""
    responses = rollouts()
    with serving(of_function(lengths)) as first, serving(of_function(lengths)) as second:
        post = functools.partial(http.post_json, http.new_client(), patience=http.Patience(5.0, 1))

        class Unkept:
            def get(self, *key):
                return None

            def add(self, answers):
                pass

        EndpointSource([first.url, second.url], post, 2, Unkept(), decode, TOKENIZER.decode).values(responses)
    assert first.responses + second.responses == TEXTS and [len(body["query"]) for body in first] == [2, 1]
    body = first[0]
    assert sorted(body) == ["labels", "messages", "prompts", "query", "responses"]
    for row in range(2):
        rendered = TOKENIZER.apply_chat_template(responses.prompts[row], tokenize=False, add_generation_prompt=True)
        assert body["prompts"][row] == rendered and body["messages"][row] == responses.prompts[row]
        assert body["query"][row] == rendered + TEXTS[row] + "<|im_end|>" and body["labels"][row] == ""
    assert "authorization" not in {name.lower() for name in first.headers[0]}


def test_a_token_is_sent_and_shown_nowhere(source, caplog):
    replies = [(503, {}, b"busy, s3cret"), (401, {}, b"who is s3cret?")]
    with serving(lambda body: replies.pop(0)) as requests, caplog.at_level(logging.DEBUG):
        with pytest.raises(UserError, match="answered 401: 'who is \\(token\\)\\?'") as error:
            source(requests.url, token="s3cret").values(rollouts())
    assert requests.headers[0]["authorization"] == "Bearer s3cret" and not replies
    assert "s3cret" not in str(error.value) + caplog.text


def one_each(body: dict) -> list:
    return [1.0] * len(body["responses"])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"<html>Bad gateway</html>", "answered no JSON .*200: '<html>Bad gateway</html>'"),
        (b'{"rewards": [1.0, NaN, 1, 1, 1]}', "answered no JSON \\(NaN is no number\\)"),
        (b'{"rewards": [1.0, -Infinity, 1, 1, 1]}', "answered no JSON \\(-Infinity is no number\\)"),
        (b'{"rewards": [1.0, 1e999, 1, 1, 1]}', "returned inf for the response 'Rain.'"),
        (b"[" * 100_000, "answered no JSON"),
        (b"\xff\xfe", "answered no JSON"),
        (b'{"rewards": [' + b"9" * 10_000 + b"]}", "answered no JSON"),
        (b"", "answered no JSON"),
        ([1.0] * 5, "gave no list 'rewards'; it answered \\[1.0, 1.0"),
        ({"reward": 1.0}, "gave no list 'rewards'"),
        ({"rewards": "high"}, "gave no list 'rewards'"),
        ({"rewards": [1.0] * 4}, "returned 4 values for 5 responses"),
        ({"rewards": [1.0] * 6}, "returned 6 values for 5 responses"),
        ({"rewards": [None] * 5}, "returned None for the response 'The river runs.'"),
        ({"rewards": ["1"] * 5}, "returned '1' for the response"),
        ({"rewards": [10**400] * 5}, "returned 1000"),
        ({"rewards": [[1.0]] * 5}, "returned \\[1.0\\] for the response"),
        ({"rewards": [[[99, 1.0]]] * 5}, "parts that end at \\[99\\] for the response 'The river runs.' of 15 characters"),
        ({"rewards": [[[0.5, 1.0]]] * 5}, "returned \\[\\[0.5, 1.0\\]\\]"),
        ({"rewards": [1.0] * 5, "extra_logs": [1]}, "gave 'extra_logs' that have no names"),
        ({"rewards": [1.0] * 5, "extra_logs": {"wit": ["high"]}}, "gave 'wit' that is neither a number nor one for each"),
        ({"rewards": [1.0] * 5, "scores": [1.0]}, "gave 'scores' that is neither"),
        ((302, {"location": "http://elsewhere/"}, b""), "answered 302, a redirect to 'http://elsewhere/'"),
        ((404, {}, b"no such page"), "answered 404: 'no such page'"),
        ((204, {}, b""), "answered 204"),
        ((500, {}, b"out of memory"), "answered 500: 'out of memory', at try 2 of 2"),
    ],
)
def test_nonsense_is_named_with_the_server_and_what_it_said(said, message, source):
    with serving(lambda body: said) as requests:
        with pytest.raises(UserError, match=f"^`reward_url` {requests.url} .*{message}") as error:
            source(requests.url).values(rollouts())
    assert error.value.one_rank and "resume" in error.value.fix
    assert len(requests) == (2 if message.startswith("answered 500") else 1)
    assert len(str(error.value)) < 1000


def test_an_answer_without_end_is_not_read_to_its_end(source, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 1000)
    with serving(lambda body: {"rewards": [1.0] * 5, "more": "x" * 2000}) as requests:
        with pytest.raises(UserError, match="answered more than 0 MiB"):
            source(requests.url).values(rollouts())


def test_a_busy_server_is_asked_again_when_it_says(source):
    """Not before the wait has grown: a server that asks for a second each time would soon have used up all tries."""
    replies = [(503, {"retry-after": "0"}, b"starting"), (429, {"retry-after": "soon"}, b""), (500, {"retry-after": "2"}, b"")]
    paused = []
    with serving(lambda body: replies.pop(0) if replies else {"rewards": one_each(body)}) as requests:
        assert source(requests.url, tries=4, wait=paused.append).values(rollouts()) == [1.0] * 5
    assert len(requests) == 4 and paused == [0.01, 0.02, 2.0]
    assert requests[0] == requests[3]


def test_a_server_that_asks_for_more_patience_than_there_is(source):
    with serving(lambda body: (503, {"retry-after": "3600"}, b"")) as requests:
        with pytest.raises(UserError, match="within 10 s; it asks to be tried again after 3600 s"):
            source(requests.url).values(rollouts())
    assert len(requests) == 1


def test_dates_and_seconds_to_wait_for():
    assert http._retry_after({"retry-after": "7"}) == 7.0
    assert http._retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    later = http._retry_after({"retry-after": "Wed, 21 Oct 2115 07:28:00 GMT"})
    assert later > 1e9 and http._retry_after({}) is http._retry_after({"retry-after": "-3"}) is None


def test_a_server_that_is_not_there(source):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with pytest.raises(UserError, match=f"^`reward_url` {url} gave no answer \\(ConnectError: .*, at try 3 of 3 within"):
            source(url, tries=3).values(rollouts())


def slowly(seconds: float):
    """A raw server that sends a byte at a time, without end."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.recv(1 << 16)
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while True:
                    connection.sendall(b" ")
                    time.sleep(seconds)
            except OSError:
                continue

    threading.Thread(target=serve, daemon=True).start()
    return listening


@pytest.mark.parametrize("pause, said", [(60.0, "ReadTimeout: timed out"), (0.02, "ReadTimeout: not all of it came in time")])
def test_a_server_that_hangs_or_drips(pause, said, source):
    with slowly(pause) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        began = time.monotonic()
        with pytest.raises(UserError, match=f"gave no answer \\({said}\\)"):
            source(url, timeout=0.2).values(rollouts())
    assert time.monotonic() - began < 3


def test_what_is_said_beside_rewards_is_kept_for_the_log(source):
    def answer(body):
        count = len(body["responses"])
        return {"rewards": one_each(body), "scores": [0.5] * count, "extra_logs": {"wit": list(range(count)), "version": 3}}

    with serving(answer) as requests:
        asked = source(requests.url, together=2)
        asked.values(rollouts())
    assert [log["wit"] for log in asked.logs] == [0, 1, 0, 1, 0]
    assert asked.logs[0] == {"wit": 0.0, "version": 3.0, "scores": 0.5}


# Answers that are kept.


def test_nothing_is_asked_twice_after_a_failure(source):
    """The server fails at the third chunk; what came before, and of another server, is kept, and asked of neither again."""

    def failing(body):
        return (400, {}, b"no more") if TEXTS[2] in body["responses"] else {"rewards": lengths(None, body["responses"])}

    with serving(failing) as bad, serving(of_function(lengths)) as good:
        with pytest.raises(UserError, match="no more"):
            source(bad.url, good.url, together=1).values(rollouts())
        assert good.responses == TEXTS[3:]
        resumed = source(good.url, together=1, resumed=True)
        assert resumed.values(rollouts()) == lengths(None, TEXTS)
        assert good.responses == TEXTS[3:] + TEXTS[2:3]
        assert source(good.url, resumed=True).values(rollouts()) == lengths(None, TEXTS)
        assert len(good) == 3
        # Another run, another rollout and another question are asked.
        source(good.url, resumed=True, place="iteration-000001").values(rollouts())
        source(good.url, resumed=True).values(rollouts(["Wind.", *TEXTS[1:]]))
        assert good.responses[3:] == [*TEXTS, "Wind."]
        source(good.url, resumed=False).values(rollouts())
        assert good.responses[9:] == TEXTS


def test_equal_questions_have_answers_of_their_own_again(source):
    """A server that never answers alike: a resumed run is told what the first one was."""
    said = iter(range(100))
    with serving(lambda body: {"rewards": [next(said) for _ in body["responses"]]}) as requests:
        same = rollouts().rows([0] * 4)
        first = source(requests.url, together=3).values(same)
        again = source(requests.url, resumed=True).values(same)
    assert first == again == [0.0, 1.0, 2.0, 3.0] and len(requests) == 2


def test_parts_and_numbers_are_read_back_as_they_were(source):
    with serving(of_function(halves)) as requests:
        first = source(requests.url)
        values, logs = first.values(rollouts()), first.logs
        resumed = source(requests.url, resumed=True)
        assert resumed.values(rollouts()) == values and resumed.logs == logs
    assert len(requests) == 1 and (15, -1 / 3) in values[0]


def test_a_torn_line_is_cut_off_and_old_rollouts_are_dropped(tmp_path):
    answers = Answers(tmp_path, resumed=False)
    for place in ("iteration-000000", "evaluation-000001", "iteration-000001", "iteration-000012"):
        answers.begin(place)
        answers.add({(0, "a"): {"value": 1.0}, (1, "b"): {"value": 2.0}})
    file = tmp_path / "iteration-000012-rank-0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"row": 2, "as')
    answers = Answers(tmp_path, resumed=True)
    answers.begin("iteration-000012")
    assert answers.get(1, "b") == {"value": 2.0} and answers.get(1, "a") is None and file.read_bytes() == whole
    answers.drop_before(2)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    file.write_bytes(b"{\n" + whole)
    with pytest.raises(UserError, match="iteration-000012-rank-0.jsonl is not as it was written"):
        answers.begin("iteration-000012")
    Answers(tmp_path, resumed=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["localhost:80/", "ftp://host/", "http://", "http://host:99999/", "http://[::1", "", "http://h:0/"]
)
def test_what_is_no_address(url):
    with pytest.raises(UserError, match="`reward_url` .*no address of a server"):
        check_url("reward_url", url, "reward_url_token_env")


def test_an_address_with_a_login():
    with pytest.raises(UserError, match="`reward_url` of host has a login in it") as error:
        check_url("reward_url", "https://me:s3cret@host/x", "reward_url_token_env")
    assert "s3cret" not in str(error.value)
    check_url("reward_url", "https://host:8000/get_reward", "reward_url_token_env")


def test_answers_are_json_lines(source, tmp_path):
    with serving(of_function(lengths)) as requests:
        source(requests.url).values(rollouts())
    lines = [json.loads(line) for line in (tmp_path / "answers/iteration-000000-rank-0.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["answer"] for line in lines] == [{"value": value, "logs": {}} for value in lengths(None, TEXTS)]


def test_right_answers_are_sent_as_labels(source):
    asked = []
    found = source("http://here")
    found.post = lambda url, body: asked.append(body) or {"rewards": [1.0] * len(body["labels"])}
    found.values(rollouts(TEXTS[:2])._replace(labels=["two", "3"]))
    found.values(rollouts(TEXTS[:2]))
    assert [body["labels"] for body in asked] == [["two", "3"], ["", ""]]
