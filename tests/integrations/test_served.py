"""Asking a server of rewards, and putting what it answers on tokens; the libraries themselves are in tests/clients."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiny_models

from denserl.integrations import served


@contextmanager
def server(monkeypatch, *answers: tuple[int, dict]):
    """A server that gives these answers, one a request; yields what it was asked."""
    asked, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            status, answer = left.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv(served.URL, f"http://127.0.0.1:{listening.server_port}/rewards")
        try:
            yield asked
        finally:
            listening.shutdown()
            thread.join()


def test_changes_are_paid_at_the_tokens_where_segments_end(monkeypatch):
    tokenizer = tiny_models.tiny_tokenizer()
    texts = ["A quiet river 🦊 runs", "No."]
    ids = [tokenizer(texts[0]).input_ids, [*tokenizer(texts[1]).input_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]]
    rows = [
        {"segment_ends": [7, 15, len(texts[0])], "segment_changes": [0.5, -0.25, 1.0], "score": 1.25},
        {"segment_ends": [3], "segment_changes": [2.0], "score": 2.0},
    ]
    monkeypatch.setenv(served.TOKEN, "secret")
    with server(monkeypatch, (200, {"rewards": rows})) as asked:
        found = asyncio.run(served.rewards(tokenizer, ["Why?", "Well?"], ids))
    sent = {"prompts": ["Why?", "Well?"], "responses": texts, "ended": [False, True]}
    assert asked == [("/rewards", "Bearer secret", sent)] and [row for _, row in found] == rows
    for (paid, row), own, text in zip(found, ids, texts, strict=True):
        wholes = [tokenizer.decode(own[: n + 1], skip_special_tokens=True) for n in range(len(own))]
        expected = [0.0] * len(own)
        for end, change in zip(row["segment_ends"], row["segment_changes"]):
            holds = [n for n, whole in enumerate(wholes) if whole.startswith(text[:end])]
            expected[len(own) - 1 if end == len(text) else holds[0]] += change
        assert paid == expected and sum(paid) == row["score"]


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_quoted(monkeypatch):
    monkeypatch.setattr(served, "WAITS", (0, 0))
    busy = (503, {"error": "4 responses wait to be scored"})
    with server(monkeypatch, busy, busy, (200, {"rewards": []})) as asked:
        assert served.asked("get_segment_rewards", {}) == {"rewards": []}
    assert [path for path, _, _ in asked] == ["/get_segment_rewards"] * 3
    refused = [(401, {"error": "the token"})]
    for answers, words in ((refused, "status 401.*the token"), ([busy] * 3, "status 503.*4 responses wait")):
        with server(monkeypatch, *answers) as asked, pytest.raises(served.NoRewards, match=words):
            served.asked("rewards", {})
        assert len(asked) == len(answers)
    with pytest.raises(served.NoRewards, match=r"\(REWARDS_URL\) gives no answer.*start denserl serve-rewards"):
        served.asked("rewards", {})  # nobody listens there any more


def test_nothing_is_paid_where_there_is_nothing():
    assert served.token_rewards([], "", [], str) == [] and served.token_rewards([], "a", [1, 2], str) == [0.0, 0.0]
    # A server that counts further than the text is long.
    assert served.token_rewards([(9, 1.0), (12, 2.0)], "ab", [0, 1], lambda ids: "".join("ab"[i] for i in ids)) == [0.0, 3.0]
