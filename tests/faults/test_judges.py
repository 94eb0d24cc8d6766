"""Judges behind servers that fail, and commands that are killed: one and the same results; a key that is nowhere.

Places: what both orders do, measured on many pairs.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rule_server import Rule, RuleBackend, serving

from denserl.judging.asking import Asker
from denserl.judging.comparing import Orders, TextJudge, text_vote
from denserl.judging.contract import Comparison, Decoding
from denserl.judging.store import Store
from denserl.judging.templates import find_template
from denserl.world.language import FRAMES, TOPICS, WISHES, make_prompt, response_reward, sample_response

KEY = "k3y-that-is-nowhere"
RULE = Rule(find_template("pairwise"), noise=0.2, position_bias=0.3, invalid=0.05)
FAULTS = ("busy", "hang", "cut", (500, "out of memory"), None, None, None, None)
SECONDS = 400  # of a run, on a machine that has much else to do
UNEQUAL = {"options", "date"}  # in results of runs that end alike


def write_pairs(path: Path, count: int) -> Path:
    """Pairs of answers of the embedded world of different worth."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        while count:
            prompt = make_prompt(rng.choice(TOPICS), rng.choice(WISHES), rng.randrange(len(FRAMES)))
            answers = sorted((sample_response(rng, prompt) for _ in range(2)), key=lambda text: response_reward(prompt, text))
            if response_reward(prompt, answers[0]) < response_reward(prompt, answers[1]):
                file.write(json.dumps({"prompt": prompt, "chosen": answers[1], "rejected": answers[0]}) + "\n")
                count -= 1
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 60)


def start(pairs: Path, url: str, output: Path, *more: str, key: str = KEY) -> subprocess.Popen:
    options = {"judge": url, "output_dir": output, "judge_key_env": "JUDGE_KEY", "judge_timeout": 1.5, "judge_tries": 4}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "denserl.cli.evaluate", "pairs", str(pairs), *flags, *more]
    environment = {**os.environ, "JUDGE_KEY": key}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def judge(pairs: Path, url: str, output: Path, *more: str) -> str:
    """What a run says that ends well."""
    running = start(pairs, url, output, *more)
    said = running.communicate(timeout=SECONDS)[0]
    assert running.returncode == 0, said[-3000:]
    return said


def results(output: Path) -> dict:
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if name not in UNEQUAL}


def stored(output: Path) -> dict[str, str]:
    """Texts by their keys, each once."""
    lines = [json.loads(line) for line in (output / "judge_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line["text"] for line in lines}


@pytest.fixture(scope="module")
def undisturbed(pairs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    with serving(RULE, key=KEY) as server:
        judge(pairs, server.url, output, "--judge_votes", "3")
    return output


@pytest.mark.long
def test_faults_and_kills_end_in_the_results_of_an_undisturbed_run(pairs, undisturbed, tmp_path):
    """Another port and concurrency, half of the requests disturbed, killed on the way; then no server is needed any more."""
    options = ("--judge_votes", "3", "--judge_concurrency", "24")
    with serving(RULE, faults=FAULTS, key=KEY, delay=0.02) as server:
        running = start(pairs, server.url, tmp_path, *options)
        while len(server.bodies) < 0.4 * len(stored(undisturbed)):
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.01)
        running.kill()
        running.communicate()
        assert not (tmp_path / "results.json").exists()
        judge(pairs, server.url, tmp_path, *options)
        assert len(server.bodies) <= len(stored(undisturbed)) + 24  # what was under way is asked again, nothing else
    assert results(tmp_path) == results(undisturbed) and stored(tmp_path) == stored(undisturbed)
    (tmp_path / "results.json").unlink()
    judge(pairs, server.url, tmp_path, *options, "--judge_tries", "1")
    assert results(tmp_path) == results(undisturbed)


@pytest.mark.long
def test_a_key_is_in_no_file_and_no_list_of_processes(pairs, tmp_path):
    with serving(RULE, faults=((500, f"you said {KEY}"), None), key=KEY) as server:
        running = start(pairs, server.url, tmp_path)
        while not server.bodies:
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.01)
        listed = Path(f"/proc/{running.pid}/cmdline").read_bytes()
        said = running.communicate(timeout=SECONDS)[0]
    assert running.returncode == 0 and "you said (token)" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and {header["authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in said and KEY.encode() not in listed and b"JUDGE_KEY" in listed


@pytest.mark.long
def test_a_refusal_ends_the_run_with_the_words_of_the_server(pairs, tmp_path):
    """At once: it does not wait for what hangs."""
    with serving(RULE, faults=("hang", (403, "not for you"))) as server:
        running = start(pairs, server.url, tmp_path, "--judge_timeout", str(3 * SECONDS))
        said = running.communicate(timeout=SECONDS)[0]
    assert running.returncode == 2 and "Traceback" not in said
    assert re.search(f"the judge at {server.url} answered 403: 'not for you'", said)
    assert not server.bodies and len(server.headers) <= 9 and not (tmp_path / "results.json").exists()


@pytest.mark.long
def test_a_wrong_key_ends_the_run_with_the_words_of_the_server(pairs, tmp_path):
    with serving(RULE, key=KEY) as server:
        running = start(pairs, server.url, tmp_path, key="an0ther")
        said = running.communicate(timeout=SECONDS)[0]
    assert running.returncode == 2 and "Traceback" not in said and "an0ther" not in said
    assert re.search(f"the judge at {server.url} answered 401: .*no such key", said) and len(server.headers) == 1


@pytest.mark.long
def test_both_orders_take_a_preference_for_places_out(tmp_path):
    """Of 1500 pairs, every other with the better answer first: how often the first one is preferred, by one order and both."""
    rows = [json.loads(line) for line in open(write_pairs(tmp_path / "pairs.jsonl", 1500), encoding="utf-8")]
    comparisons = []
    for number, row in enumerate(rows):
        answers = [row["chosen"], row["rejected"]][:: 1 if number % 2 else -1]
        comparisons.append(Comparison([{"role": "user", "content": row["prompt"]}], *answers))
    asker = Asker(RuleBackend(RULE), "rule", Store(tmp_path / "answers.jsonl"))

    def share(orders: Orders) -> float:
        judge = TextJudge(RULE.template, [asker], Decoding(100), text_vote(RULE.template), orders)
        decided = [found.score for found in judge.compare(comparisons) if found.score in (0, 1)]
        return sum(decided) / len(decided)

    assert share("given") == pytest.approx(0.65, abs=0.03) and abs(share("both") - 0.5) < 0.03
