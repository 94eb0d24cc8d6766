"""What a judge is asked: what its store does not hold, once, after the cost is said; and nothing that fails is an answer."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from judges import RuleBackend, question

from denserl import distributed
from denserl.errors import UserError
from denserl.judging.asking import TOGETHER, Asker, Cost, Limit
from denserl.judging.contract import Reply
from denserl.judging.store import Store

QUESTIONS = [question(f"question {number} ?") for number in (1, 2, 3, 2, 1)]


def echo(request) -> str:
    return f"to {request.messages[0]['content']}"


def texts(path) -> list[str]:
    return sorted(json.loads(line)["text"] for line in path.read_text().splitlines())


def test_each_question_is_asked_once_and_answers_stand_in_the_order_of_questions(tmp_path):
    backend = RuleBackend(echo)
    asker = Asker(backend, "rule", Store(tmp_path / "s"))
    assert [reply.text for reply in asker.ask(QUESTIONS)] == [f"to question {number} ?" for number in (1, 2, 3, 2, 1)]
    assert len(backend.asked) == 3
    asker.ask(QUESTIONS[:2])
    assert len(backend.asked) == 3
    # Four words in each of three answers, that are said to have ten tokens of prompt.
    assert asker.cost == Cost(3, 30, 12)


def test_more_questions_than_are_held_at_a_time(tmp_path):
    backend = RuleBackend(echo)
    many = [question(f"{number}") for number in range(TOGETHER + 3)]
    found = Asker(backend, "rule", Store(tmp_path / "s")).ask(many, lambda reply: int(reply.text.split()[1]))
    assert found == list(range(TOGETHER + 3)) and len(backend.asked) == TOGETHER + 3


def test_a_full_store_needs_no_judge(tmp_path):
    store = Store(tmp_path / "s")
    first = Asker(RuleBackend(echo), "rule", store)
    first.ask(QUESTIONS)
    again = Asker(RuleBackend(echo, fails_at=0), "rule", store, Limit(0))
    assert [reply.text for reply in again.ask(QUESTIONS)] == [f"to question {number} ?" for number in (1, 2, 3, 2, 1)]
    # What it costs is of the answers, whenever they were given.
    assert again.cost == first.cost and again.describe() == first.describe()


def test_the_cost_is_said_before_the_first_call(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    backend = RuleBackend(lambda request: caplog.text)
    asker = Asker(backend, "rule", Store(tmp_path / "s"))
    # Three different ones, of three words each.
    said = "rule: 3 answers to ask for, at most, of 5 questions: about 9 tokens of prompts, at most 192 of answers"
    assert all(said in reply.text for reply in asker.ask(QUESTIONS))
    asker.ask(QUESTIONS)
    asker.plan(QUESTIONS)
    assert caplog.text.count("answers to ask for") == 1  # nothing is said where nothing is asked


def test_over_the_limit_nothing_is_asked(tmp_path):
    backend, limit = RuleBackend(echo), Limit(2)
    asker = Asker(backend, "rule", Store(tmp_path / "s"), limit)
    with pytest.raises(UserError, match="3 answers of judges are to be asked for, and `judge_limit` is 2") as error:
        asker.ask(QUESTIONS)
    assert not backend.asked and "`judge_limit` 3" in error.value.fix and not (tmp_path / "s").exists()
    asker.ask(QUESTIONS[:2])
    assert len(backend.asked) == 2


def test_what_is_planned_is_set_aside_once(tmp_path):
    limit = Limit(3)
    asker = Asker(RuleBackend(echo), "rule", Store(tmp_path / "s"), limit)
    asker.plan(QUESTIONS)
    asker.plan(QUESTIONS[:3])
    assert len(asker.ask(QUESTIONS)) == 5 and limit.planned == 3


def test_who_comes_second_to_a_new_store_is_refused_before_the_first_call(tmp_path):
    backends = [RuleBackend(echo), RuleBackend(echo)]
    one, other = (Asker(backend, "rule", Store(tmp_path / "s")) for backend in backends)
    one.plan(QUESTIONS)
    with pytest.raises(UserError, match="in use by another process"):
        other.ask(QUESTIONS)
    assert not backends[1].asked
    # One that comes when the first has ended finds what that was answered.
    one.ask(QUESTIONS)
    one.store.close()
    late = Asker(backends[1], "rule", other.store)
    assert len(late.ask(QUESTIONS)) == 5 and not backends[1].asked


def test_a_limit_is_of_all_judges_together(tmp_path):
    store, limit = Store(tmp_path / "s"), Limit(5)
    one, other = (Asker(RuleBackend(echo, name), name, store, limit) for name in "ab")
    one.plan(QUESTIONS)
    with pytest.raises(UserError, match="6 answers"):
        other.plan(QUESTIONS)


def test_a_failure_is_no_answer_and_what_was_answered_is_kept(tmp_path):
    path = tmp_path / "s"
    store = Store(path)
    with pytest.raises(UserError, match="the server is away") as error:
        Asker(RuleBackend(echo, fails_at=2), "rule", store).ask(QUESTIONS)
    assert error.value.fix == "start it; what has been answered is kept, and the same command goes on"
    assert texts(path) == ["to question 2 ?", "to question 3 ?"]
    store.close()
    backend = RuleBackend(echo)
    asker = Asker(backend, "rule", Store(path))
    asker.ask(QUESTIONS)
    assert [echo(request) for request in backend.asked] == ["to question 1 ?"]
    assert texts(path) == [f"to question {number} ?" for number in (1, 2, 3)] and asker.cost == Cost(3, 30, 12)


def test_an_answer_is_kept_when_it_comes(tmp_path):
    path = tmp_path / "s"
    held = []

    def rule(request):
        held.append(len(path.read_bytes().splitlines()))
        return "[[A]]"

    Asker(RuleBackend(rule), "rule", Store(path)).ask(QUESTIONS)
    assert held == [0, 1, 2]


def test_answers_are_those_of_one_model_and_version(tmp_path):
    store = Store(tmp_path / "s")
    for name, version in (("a", "1"), ("a", "2"), ("b", "1")):
        backend = RuleBackend(lambda request, said=name + version: said, name)
        backend.version = version
        assert {reply.text for reply in Asker(backend, "rule", store).ask(QUESTIONS)} == {name + version}


def test_lines_say_whom_and_what(tmp_path):
    path = tmp_path / "s"
    Asker(RuleBackend(echo), "http://h", Store(path)).ask(QUESTIONS[:1], about={"template": "t", "template_hash": "0"})
    row = json.loads(path.read_text())
    kept = {"judge": "http://h", "model": "rule", "version": "1", "template": "t", "template_hash": "0", "cut": False}
    assert kept.items() <= row.items() and row["tokens"] == 4 and row["prompt_tokens"] == 10


def test_what_is_remembered_is_of_the_store_alone(tmp_path):
    backend = RuleBackend(lambda request: Reply(echo(request), True, 1, 2, (("A", -1.0),)))
    asker = Asker(backend, "rule", Store(tmp_path / "s"))
    asker.ask(QUESTIONS[1:3])
    assert asker.recall(QUESTIONS, lambda reply: reply.first) == [None, (("A", -1.0),), (("A", -1.0),), (("A", -1.0),), None]
    assert len(backend.asked) == 2


@pytest.fixture
def on_ranks(monkeypatch):
    """Runs a function of the rank on three of them, threads that meet where ranks exchange objects."""
    own, count = threading.local(), 3
    barrier, told = threading.Barrier(count, timeout=20), [None] * count

    def gather(entry):
        told[own.rank] = entry
        barrier.wait()
        found = list(told)
        barrier.wait()
        return found

    monkeypatch.setattr(distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    monkeypatch.setattr(distributed, "gather_objects", gather)

    def run(function):
        def of_rank(rank: int):
            own.rank = rank
            return function(rank)

        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(of_rank, range(count)))

    return run


@pytest.mark.parametrize("shared, expected", [(False, [200, 0, 0]), (True, [67, 67, 66])])
def test_ranks_are_told_the_same_and_share_the_work_of_a_model_that_each_has(tmp_path, on_ranks, shared, expected):
    # More than they answer before answers are kept, each twice.
    questions = [question(f"{number % 200}") for number in range(400)]
    backends, store = [RuleBackend(echo) for _ in range(3)], Store(tmp_path / "s")

    def ask(rank: int):
        asker = Asker(backends[rank], "rule", store if rank == 0 else None, shared=shared)
        asker.plan(questions[:10])
        return [reply.text for reply in asker.ask(questions)], asker.cost

    one, *others = on_ranks(ask)
    assert [len(backend.asked) for backend in backends] == expected
    assert one == ([f"to {number % 200}" for number in range(400)], Cost(200, 2000, 400)) and others == [one, one]


@pytest.mark.parametrize("failing", [0, 2])
def test_what_goes_wrong_on_one_rank_ends_all(tmp_path, on_ranks, failing):
    store = Store(tmp_path / "s")

    def ask(rank: int) -> str:
        backend = RuleBackend(echo, fails_at=0 if rank == failing else None)
        asker = Asker(backend, "rule", store if rank == 0 else None, shared=True)
        with pytest.raises(UserError) as error:
            asker.ask([question(f"{number}") for number in range(10)])
        return error.value.found

    assert on_ranks(ask) == ["the server is away"] * 3
