"""The script that judges policies on three suites: its commands, parsed and not run; and all of it, judged by a rule."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from rule_server import Rule, serving

from denserl.cli.options import parse
from denserl.judging.templates import find_template

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples/scripts/evaluate_policies.sh"
# In the place of the command: notes its arguments, and leaves the results that the script reads.
NOTES = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
if words[0] == "judge":
    folder = pathlib.Path(words[words.index("--output_dir") + 1])
    folder.mkdir(parents=True)
    policies = {{name: {{"headline": {{"name": "rate", "value": 12.345}}}} for name in ("ppo", "sft")}}
    (folder / "results.json").write_text(json.dumps({{"policies": policies}}))
"""


def script(path: Path, *words: object) -> subprocess.CompletedProcess:
    """The script, with what is in a folder found first."""
    told = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(["bash", str(SCRIPT), *map(str, words)], capture_output=True, text=True, env=told)


def questions(folder: Path) -> Path:
    """Two questions of each suite, and answers of a baseline."""
    asked = ("Say hi", "Name a colour.")
    alpaca = [{"instruction": text, "output": "Well.", "generator": "base", "dataset": "own"} for text in asked]
    arena = [{"uid": text, "category": "arena-hard-v0.1", "cluster": "c", "prompt": text} for text in asked]
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": {"answer": "Well."}}] for text in asked]
    baseline = [{"uid": text, "model": "base", "messages": messages} for text, messages in zip(asked, said)]
    turns = [{"question_id": 81 + n, "category": "writing", "turns": [text, "And then?"]} for n, text in enumerate(asked)]
    files = {"arenahard": arena, "arenahard-baseline": baseline, "mtbench": turns}
    folder.mkdir()
    (folder / "alpacaeval.json").write_text(json.dumps(alpaca))
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_command_of_the_script_is_understood(tmp_path):
    (tmp_path / "denserl").write_text(NOTES.format(python=sys.executable, log=str(tmp_path / "log")))
    (tmp_path / "denserl").chmod(0o755)
    asked, config = questions(tmp_path / "questions"), tmp_path / "judge.yaml"
    (asked / "mtbench-reference.jsonl").touch()
    config.write_text("judge: https://host/v1\njudge_model: gpt-4o\njudge_key_env: JUDGE_KEY\n")
    done = script(tmp_path, asked, config, tmp_path / "out", "runs/ppo/", "runs/with space/sft", "--", "--max_new_tokens", 8)
    assert done.returncode == 0, done.stderr
    commands = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [words[:2] for words in commands[-3:]] == [["judge", suite] for suite in ("alpacaeval", "arenahard", "mtbench")]
    parsed = [parse(importlib.import_module(f"denserl.cli.{name}").Options, name, words) for name, *words in commands]
    answers, judged = parsed[:6], parsed[6:]
    assert {(each.model, each.suite) for each in answers} == {
        (model, judging.suite) for model in ("runs/ppo", "runs/with space/sft") for judging in judged
    }
    assert {each.max_new_tokens for each in answers} == {8}
    for judging in judged:
        judging.check()
        assert judging.answers == [each.output_dir for each in answers if each.suite == judging.suite]
        assert judging.judge_model == ["gpt-4o"] and judging.judge_key_env == "JUDGE_KEY"
    assert judged[2].references == str(asked / "mtbench-reference.jsonl")
    assert done.stdout.splitlines()[0].split("\t")[:2] == ["ppo", "alpacaeval rate 12.35"]


def test_mistakes_in_calling_the_script_are_told(tmp_path):
    for words, message in (((), "usage: "), (("q", "j", "o"), "usage: "), (("q", "j", "o", "a/x", "b/x"), "are called x")):
        done = script(tmp_path, *words)
        assert done.returncode != 0 and message in done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_script_makes_one_table_of_three_suites(tmp_path):
    tiny_models.save_language_model(tmp_path / "ppo", stops=60)
    first, *more = (
        Rule(find_template(name), lambda prompt, text: len(text) / 500)
        for name in ("alpacaeval", "arenahard", "mtbench-single")
    )
    asked, config = questions(tmp_path / "questions"), tmp_path / "judge.yaml"
    with serving(first, *more) as server:
        config.write_text(f"judge: {server.url}\n")
        words = (asked, config, tmp_path / "out", tmp_path / "ppo", "--", "--max_new_tokens", 12)
        found = script(Path(sys.executable).parent, *words)
        assert found.returncode == 0, found.stderr
        calls = len(server.bodies)
        again = script(Path(sys.executable).parent, *words)
        assert again.stdout == found.stdout and len(server.bodies) == calls
    (row,) = (line.split("\t") for line in found.stdout.splitlines() if "\t" in line)
    assert row[0] == "ppo" and len(row) == 4
    for cell, name in zip(row[2:], ("arenahard", "mtbench"), strict=True):
        results = json.loads((tmp_path / f"out/judged/{name}/results.json").read_text())
        assert cell.endswith(f" {round(results['policies']['ppo']['headline']['value'], 2)}")
