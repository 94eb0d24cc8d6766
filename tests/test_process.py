"""The benchmark of the world of sums: its commands, parsed and not run, and what it makes of chances and of responses."""

import json
import sys
from pathlib import Path

import numpy as np
import parsed_stages
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import process  # noqa: E402

# 4 + 2 = 6, then wrong, wrong, and mended by a second error.
ROWS = [
    {"problem": "4 + 2 - 1 + 3 - 1 ?", "steps": ["4 + 2 = 6", "6 - 1 = 4", "4 + 3 = 7", "7 - 1 = 7"]},
    {"problem": "4 + 2 - 1 + 3 ?", "steps": ["4 + 2 = 6", "6 - 1 = 5", "5 + 3 = 8"]},
    {"problem": "1 + 1 + 1 + 1 ?", "steps": ["1 + 1 = 2", "2 + 1 = 3", "3 + 1 = 4"]},
]


SEGMENTS = [{"paid": 1.0}, {"paid": -0.25}]


@pytest.fixture
def parsed(monkeypatch):
    """The commands that would have been run, each leaving what is read of it."""
    commands = []

    def stage(command, *words, **flags):
        options = parsed_stages.parsed(command, words, flags)
        commands.append((command, options))
        folder = Path(options.output_dir)
        if command == "make-world":
            (folder / "world.json").write_text("{}")
            (folder / "processbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        if command == "evaluate":
            numbers = ("best", "weighted", "majority", "oracle", "pass@1")
            (folder / "results.json").write_text(json.dumps(dict.fromkeys(numbers, 0.5)))
            chances = [{"chances": [0.9, 0.2 + 0.1 * i, 0.3, 0.1 + 0.2 * i][: len(row["steps"])]} for i, row in enumerate(ROWS)]
            text = "".join(json.dumps(row) + "\n" for row in chances)
            (folder / f"{Path(options.scorer[0]).name}_steps.jsonl").write_text(text)
        if command == "train-ppo":
            names = ("true_reward", "kl", "ended", "response_length")
            rows = [{"step": step, **{f"eval_{name}": step / 20 for name in names}} for step in (0, 20)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            samples = [
                {"step": s, "prompt": "user\n4 + 2 - 1 + 3 ?\n", "response": "4 + 2 = 6", "segments": []} for s in (0, 20)
            ]
            (folder / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))

    monkeypatch.setattr(process, "stage", stage)
    monkeypatch.setattr(process, "likelihoods", lambda model, rows: [np.ones(len(row["steps"])) for row in rows])
    return commands


@pytest.mark.long
def test_every_part_runs_the_commands_it_needs_once(parsed, tmp_path):
    options = process.Options(seeds=[0, 1], runs=tmp_path)
    process.main(options)
    results = json.loads((tmp_path / "process.json").read_text())
    assert set(results) == set(process.PARTS) and all(part["seeds"] == [0, 1] for part in results.values())
    assert results["judges"]["no signs, soft labels"]["Spearman with hard"]["mean"] == pytest.approx(1)
    assert results["ppo"]["outcome"]["solved before"]["mean"] == 0 and results["ppo"]["outcome"]["solved"]["mean"] == 1
    assert results["ppo"]["outcome"]["more than due"]["mean"] == -2
    ppo = [options for command, options in parsed if command == "train-ppo"]
    assert len(ppo) == 2 * len(process.ARMS) and {o.credit for o in ppo} == {"sum", "min", "prefix_min"}
    assert all(Path(o.model).name == "sft_erring" for o in ppo)
    done = len(parsed)
    process.main(options)
    assert len(parsed) == done


@pytest.mark.long
def test_a_judge_of_steps_finds_first_errors(tmp_path):
    world = process.World(1, tmp_path)
    found = world.evaluated(world.judge_of_steps(), "processbench", world.data / "processbench.jsonl")
    assert json.loads((found / "results.json").read_text())["macro_f1"] >= 0.9


def test_what_chances_say_by_hand():
    # First errors: at 1 and nowhere. Found: at 1; at 2, which is none; nowhere.
    chances = [[0.9, 0.4, 0.6, 0.9], [0.9, 0.9, 0.4], [0.5, 0.9, 0.9]]
    found = process.judgements(ROWS, chances)
    assert found["first errors found"] == 1 and found["right ones passed"] == 0.5 and found["F1"] == pytest.approx(2 / 3)
    # Of the two steps after the first error one is wrong, and is not found.
    assert found["later wrong steps found"] == 0
    assert found["all steps held for right"] == pytest.approx(8 / 10) and found["steps judged rightly"] == pytest.approx(8 / 10)


def test_steps_are_counted_against_those_that_are_due(tmp_path):
    path = tmp_path / "samples.jsonl"
    responses = ["4 + 2 = 6\n\n6 - 1 = 5\n\n5 + 3 = 8\n\n8 + 0 = 8", "4 + 2 = 7"]
    rows = [
        {"step": 5, "prompt": "user\n4 + 2 - 1 + 3 ?\n", "response": response, "segments": SEGMENTS} for response in responses
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"paid": 0.75, "steps": 2.5, "more than due": -0.5, "right steps": 3 / 5, "other steps": 1 / 5}
    assert process.written_steps(path)[5] == pytest.approx(expected)
