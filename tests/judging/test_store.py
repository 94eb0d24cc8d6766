"""The store: what was answered is found again, whatever happened to the file's end; nothing else is taken for an answer."""

import json
import os
import time
import tracemalloc

import pytest
from judges import DECODING, question

from denserl.errors import UserError
from denserl.judging.contract import Decoding, Reply, Request
from denserl.judging.store import Store, key

ABOUT = {"judge": "http://h", "model": "m", "version": "1", "template": "pairwise", "template_hash": "0"}
REPLY = Reply("Both are fine.\n[[A]] \x1b[0m\u2028 \ud800", True, 20, 6, (("A", -0.25), ("B", -1.5)))


def own_key(request: Request) -> bytes:
    return key("m", "1", request)


def filled(path, count: int, text: str = "[[A]]") -> Store:
    store = Store(path)
    for number in range(count):
        request = question(f"question {number}")
        store.add(own_key(request), request, REPLY._replace(text=f"{text} {number}"), ABOUT)
    return store


def test_an_answer_is_found_again_as_it_came(tmp_path):
    path, request = tmp_path / "a" / "store.jsonl", question("Which?")
    store = Store(path)
    assert own_key(request) not in store
    store.add(own_key(request), request, REPLY, ABOUT)
    assert store.get(own_key(request)) == REPLY  # at once, too
    store.close()
    again = Store(path)
    assert again.get(own_key(request)) == REPLY and len(again) == 1
    assert again.model_of("http://h") == ("m", "1") and again.model_of("http://other") is None
    (line,) = path.read_text().splitlines()
    row = json.loads(line)
    assert {**ABOUT, **row} == row and row["decoding"] == DECODING._asdict() and row["sample"] == 0 and row["date"]


def test_a_key_is_of_all_that_an_answer_depends_on():
    base = question("Which?")
    others = [
        question("Which one?"),
        question("Which?", sample=1),
        Request([{"role": "system", "content": "Which?"}], DECODING),
        *(question("Which?", decoding=DECODING._replace(**change)) for change in (
            {"max_new_tokens": 65}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_logprobs": 5},
        )),
    ]  # fmt: skip
    keys = {key("m", "1", request) for request in [base, *others]} | {key("n", "1", base), key("m", "2", base)}
    assert len(keys) == 10
    # Of equal numbers it is one, as of equal messages whose fields stand in another order.
    assert key("m", "1", base) == key("m", "1", Request([{"content": "Which?", "role": "user"}], Decoding(64, 0, 1, 0)))


@pytest.mark.parametrize("cut", [1, 2, 60, 100])
def test_a_store_that_is_cut_in_a_line_goes_on(tmp_path, cut):
    path = tmp_path / "store.jsonl"
    filled(path, 3).close()
    os.truncate(path, path.stat().st_size - cut)
    store = Store(path)
    kept = [own_key(question(f"question {number}")) in store for number in range(3)]
    assert kept == [True, True, False]
    request = question("question 2")
    store.add(own_key(request), request, REPLY, ABOUT)
    store.close()
    assert Store(path).get(own_key(request)) == REPLY and len(path.read_bytes().splitlines()) == 3


def test_a_first_line_that_is_cut_is_dropped(tmp_path):
    path = tmp_path / "store.jsonl"
    filled(path, 1).close()
    os.truncate(path, 5)
    assert len(Store(path)) == 0 and path.stat().st_size == 0


@pytest.mark.parametrize("text", ['{"prompt": "a"}\n', "no line ends here", '[{"key": 1}]\n'])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="is no file of answers of judges"):
        Store(path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("text"),
        lambda row: row.update(text=None),
        lambda row: row.update(key="xyz"),
        lambda row: row.update(first=[1]),
        lambda row: row.update(first=[["A", None]]),
        lambda row: row.update(cut=0),
        lambda row: row.update(tokens="5"),
        lambda row: row.pop("judge"),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, change):
    path = tmp_path / "store.jsonl"
    filled(path, 2).close()
    first, second = path.read_text().splitlines()
    row = json.loads(second)
    change(row)
    path.write_text("\n".join([first, json.dumps(row), first, ""]))
    with pytest.raises(UserError, match="line 2 is no answer of a judge") as error:
        Store(path)
    assert "remove that line" in error.value.fix


def test_of_two_answers_the_first_one_counts(tmp_path):
    path = tmp_path / "store.jsonl"
    filled(path, 1, "[[A]]").close()
    first = path.read_text()
    filled(tmp_path / "other.jsonl", 1, "[[B]]").close()
    path.write_text(first + (tmp_path / "other.jsonl").read_text())
    assert Store(path).get(own_key(question("question 0"))).text == "[[A]] 0"


def test_a_store_is_open_once_at_a_time(tmp_path):
    """A lock of the file's, which holds between processes too."""
    path = tmp_path / "store.jsonl"
    store = filled(path, 1)
    with pytest.raises(UserError, match="is in use by another process"):
        Store(path)
    store.close()
    Store(path).close()


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        Store(tmp_path)


def test_ten_thousand_answers_are_read_in_seconds_and_not_kept_in_memory(tmp_path):
    path, text = tmp_path / "store.jsonl", "Some reasons. " * 70
    filled(path, 1, text).close()
    line, first = path.read_text(), own_key(question("question 0")).hex()
    path.write_text("".join(line.replace(first, f"{number:064x}") for number in range(10_000)))
    assert path.stat().st_size > 12e6
    tracemalloc.start()
    start = time.monotonic()
    store = Store(path)
    seconds, held = time.monotonic() - start, tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(store) == 10_000 and seconds < 10 and held < 4e6
    assert store.get((9_999).to_bytes(32, "big")).text == f"{text} 0"
