"""`denserl evaluate --judge` as a user runs it, against a server that follows a rule: it prefers what is longer."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest
import tiny_models
from rule_server import Rule, serving

from denserl.cli import evaluate
from denserl.judging.templates import find_template

sys.path.append(str(Path(__file__).parent.parent / "evaluation"))
import suite_files  # noqa: E402

KEY = "a-key-of-nobody"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with tiny_models.restored_environment():
        yield


def longer(prompt: str, answer: str) -> float:
    return len(answer) / 20 - 1


def rules(**faults) -> list[Rule]:
    return [Rule(find_template(name), longer, **faults) for name in ("pairwise", "pairwise-token", "rating")]


def command(*words) -> str:
    """What a command that ends with status 2 says; nothing of one that ends well."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.suppress(SystemExit):
        evaluate.main([*map(str, words), "--bootstrap", "20", "--device", "cpu"])
        return ""
    assert "Traceback" not in stderr.getvalue()
    return stderr.getvalue()


def results(folder: Path) -> dict:
    """All that does not say when, and into which folder."""
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if name not in ("date", "options")}


def test_pairs_and_lists_are_judged_and_counted(tmp_path, capsys):
    suite_files.rmb(tmp_path / "rmb")
    with serving(*rules()) as server:
        assert not command("rmb", tmp_path / "rmb", "--judge", server.url, "--output_dir", tmp_path / "out")
    found, said = results(tmp_path / "out"), capsys.readouterr().out
    # As by length, but that equal answers are half of a pair.
    four = {"helpful_pairwise": 0.375, "harmless_pairwise": 1.0, "helpful_best_of_n": 0.5, "harmless_best_of_n": 0.0}
    assert {name: found[name] for name in four} == four and found["overall"] == pytest.approx(sum(four.values()) / 4)
    assert found["intervals"]["helpful_pairwise"] and found["questions"] == 2 and "calibration" not in found
    # 6 pairs and 7 losers, two of them equal to the other answer, in both orders.
    verdicts, [judge] = found["verdicts"], found["judge"]["judges"]
    assert (verdicts["comparisons"], verdicts["verdicts"], len(server.bodies)) == (13, 22, 22) and judge["calls"] == 22
    assert verdicts["position_consistency"] == 1 and verdicts["first_share"] == verdicts["first_share_of_verdicts"] == 0.5
    assert judge["judge"] == "rule" and found["judge"]["template"] == "pairwise" and len(found["judge"]["template_hash"]) == 16
    assert "template pairwise" in said and "rule: 22 answers" in said and "precision" not in found
    assert (tmp_path / "out/rule_verdicts.jsonl.gz").is_file() and (tmp_path / "out/rule_bon_result.json").is_file()


def test_four_answers_and_ties_are_rated(tmp_path):
    path = suite_files.rewardbench2(tmp_path / "rb2")
    answers = {"prompt": "Q", "answers": ["x", "x" * 30], "label": [0, 1]}
    stored = suite_files.write_lines(tmp_path / "stored.jsonl", [answers])
    with serving(*rules()) as server:
        words = ("--judge", server.url, "--output_dir", tmp_path / "out")
        assert not command("rewardbench2", path, *words)
        found = results(tmp_path / "out")
        # One and two characters are rated 1, three are rated 2, which the wrong one of Math has.
        assert [found[name] for name in ("Factuality", "Math", "Safety")] == [0.25, 0.0, 0.25] and found["Ties"] > 0.5
        assert found["judge"]["template"] == "rating" and found["ratings"]["unrated"] == 0
        assert "verdicts" not in found
        assert not command("bon_answers", stored, *words)
        assert results(tmp_path / "out")["best"] == 1.0
        assert "compares two answers" in command("rewardbench2", path, *words, "--judge_template", "pairwise")
        assert "rates answers one by one" in command("rewardbench2", path, *words, "--judge_verdict", "logprob")
        assert "--judge_orders one has no effect" in command("rewardbench2", path, *words, "--judge_orders", "one")


def test_a_run_goes_on_where_it_was_ended_and_a_whole_store_needs_no_server(tmp_path):
    path = suite_files.pairs(tmp_path)
    words = ("pairs", path, "--judge_votes", 3)
    with serving(*rules(noise=0.3)) as server:
        whole = (*words, "--judge", server.url, "--output_dir", tmp_path / "whole")
        assert "--judge_limit is 5" in command(*whole, "--judge_limit", 5) and not server.bodies
        assert not command(*whole)
        asked = len(server.bodies)
        # A store that was cut within a line.
        parted = tmp_path / "parted" / "judge_answers.jsonl"
        parted.parent.mkdir()
        parted.write_bytes((tmp_path / "whole/judge_answers.jsonl").read_bytes()[:2000])
        kept = parted.read_bytes().count(b"\n")
        assert not command(*words, "--judge", server.url, "--output_dir", tmp_path / "parted", "--judge_concurrency", 1)
        assert len(server.bodies) == 2 * asked - kept and 0 < kept < asked
    expected = results(tmp_path / "whole")
    assert results(tmp_path / "parted") == expected and expected["verdicts"]["agreement"] is not None
    (tmp_path / "whole/results.json").unlink()
    assert not command(*whole) and results(tmp_path / "whole") == expected


def test_the_key_is_in_no_file_and_a_wrong_one_ends_the_run(tmp_path, monkeypatch):
    path = suite_files.pairs(tmp_path)
    with serving(*rules(), key=KEY) as server:
        words = ("pairs", path, "--judge", server.url, "--judge_model", "rule", "--output_dir", tmp_path / "out")
        assert "no such key" in command(*words) and not server.bodies
        assert not command(*words, "--judge_key_env", "JUDGE_KEY")
        monkeypatch.delenv("JUDGE_KEY")
        assert "the environment variable JUDGE_KEY is not set" in command(*words, "--judge_key_env", "JUDGE_KEY")
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_several_judges_vote_on_a_suite_of_ones_own(tmp_path):
    rows = [
        {"id": 0, "topic": "t", "question": "Q", "true": ["long one", "long two"], "false": ["no", "not"]},
        {"id": 1, "topic": "t", "question": "R", "true": ["long one", "x"], "false": ["no"]},
    ]
    path = suite_files.write_lines(tmp_path / "rows.jsonl", rows)
    shorter = Rule(find_template("pairwise"), lambda prompt, answer: -len(answer) / 20)
    suite = Path(__file__).parent.parent.parent / "examples/my_suite.py"
    with serving(*rules()) as one, serving(shorter, model="other") as two, serving(*rules(), model="third") as three:
        judges = [server.url for server in (one, two, three)]
        assert not command(f"{suite}:facts", path, "--judge", *judges, "--output_dir", tmp_path / "out")
    found = results(tmp_path / "out")
    # Of three judges two prefer what is longer; a list is won if each better answer beats each worse one.
    assert found["accuracy"] == 0.5 and found["verdicts"]["comparisons"] == 6 and found["pair_accuracy"] == 5 / 6
    assert found["verdicts"]["verdicts"] == 6 * 2 * 3 and found["verdicts"]["agreement"] == 0.0
    assert [judge["judge"] for judge in found["judge"]["judges"]] == ["rule", "other", "third"]
    assert (tmp_path / "out/rule+other+third_verdicts.jsonl.gz").is_file()


def test_a_server_chooses_no_path(tmp_path):
    path = suite_files.pairs(tmp_path)
    with serving(*rules(), model="../../a judge\x1b") as server:
        assert not command("pairs", path, "--judge", server.url, "--output_dir", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if "judge%1B" in file.name) == [
        "..%2F..%2Fa judge%1B.json", "..%2F..%2Fa judge%1B_outputs.jsonl.gz", "..%2F..%2Fa judge%1B_verdicts.jsonl.gz"
    ]  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {"out", "pairs.jsonl"}


def test_log_probabilities_are_calibrated(tmp_path):
    path = suite_files.pairs(tmp_path)
    with serving(*rules(noise=0.2)) as server:
        words = ("pairs", path, "--judge", server.url, "--output_dir", tmp_path / "out")
        assert not command(*words, "--judge_verdict", "logprob") and (tmp_path / "out/reliability.png").is_file()
        # Two of three are won, each with .8.
        found = results(tmp_path / "out")
        assert found["accuracy"] == pytest.approx(2 / 3) and found["calibration"]["ece"] == pytest.approx(0.8 - 2 / 3)
        assert found["judge"]["template"] == "pairwise-token"
        assert not command(*words) and not (tmp_path / "out/reliability.png").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (("pairs", "{pairs}"), "neither --scorer nor --judge is given"),
        (("pairs", "{pairs}", "--judge", "{url}", "--scorer", "length"), "both --scorer and --judge are given"),
        (("pairs", "{pairs}", "--judge", "{url}", "--max_length", "9"), "no effect with --judge, which is no reward model"),
        (("pairs", "{pairs}", "--judge", "{url}", "--system_prompt", "x"), "no effect where a server judges"),
        (("pairs", "{pairs}", "--scorer", "length", "--judge_votes", "3"), "no effect without --judge"),
        (("pairs", "{pairs}", "--judge", "{url}", "--ensemble", "min"), "no effect with a single reward model"),
        (("pairs", "{pairs}", "--judge", "{url}", "--judge_template", "none"), "there is no template 'none'"),
        (("pairs", "{pairs}", "--judge", "{url}", "--judge_tries", "1"), "Connection refused"),
        (("processbench", "{steps}", "--judge", "{url}"), "no effect on processbench, which judges steps"),
    ],
)
def test_a_mistake_is_met_with_a_message(tmp_path, words, said):
    steps = suite_files.write_lines(tmp_path / "steps.jsonl", [{"problem": "Q", "steps": ["a"], "label": -1}])
    places = {"pairs": suite_files.pairs(tmp_path), "steps": steps, "url": "http://127.0.0.1:9/v1"}
    assert said in command(*(word.format(**places) for word in words), "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()
