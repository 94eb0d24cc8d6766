"""The study of preference models: its commands, parsed and not run, and the table of what came out."""

import json
import sys
from pathlib import Path

import parsed_stages
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import levels  # noqa: E402
import preference_methods  # noqa: E402

JUDGED = {"accuracy": 0.8, "calibration": {"ece": 0.1}, "length_bias": {"correlation": 0.2}}
CURVE = {"n": [1, 2, 4, 64], "gold": [0.1, 0.4, 0.5, 0.3]}


@pytest.fixture
def parsed(monkeypatch):
    """The commands that would have been run, each leaving what is read of it."""

    def leave(command, options):
        folder = Path(options.output_dir)
        if command in ("evaluate", "bon"):
            (folder / "results.json").write_text(json.dumps(JUDGED | CURVE))
        if command == "train-ppo":
            names = ("true_reward", "kl", "response_length")
            rows = [{"step": step, **{f"eval_{name}": step / 20 for name in names}} for step in (0, 40, 20)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    commands, stage = parsed_stages.recorder(leave)
    for module in (preference_methods, levels):
        monkeypatch.setattr(module, "stage", stage)
    return commands


@pytest.mark.long
def test_every_part_runs_the_commands_it_needs_once(parsed, tmp_path):
    options = preference_methods.Options(seeds=[0, 1], runs=tmp_path)
    preference_methods.main(options)
    results = json.loads((tmp_path / "preference_methods.json").read_text())
    assert set(results) == set(preference_methods.PARTS) and all(part["seeds"] == [0, 1] for part in results.values())
    plain = {name: part["artefact: Bradley-Terry"] for name, part in results.items() if name != "few labels"}
    assert plain["judging"]["won by the artefact"]["mean"] == 0.8 and plain["best-of-n"]["best of 64"]["mean"] == 0.3
    assert plain["best-of-n"]["lost since best"]["mean"] == pytest.approx(0.2) and plain["ppo"]["lost since best"]["mean"] == 1
    # One language model a seed, and a world for each kind of pairs.
    made = [options for command, options in parsed if command == "make-world"]
    assert len([command for command, _ in parsed if command == "train-sft"]) == 2
    assert sorted((o.seed, o.length_bias, o.artefact) for o in made) == [
        (seed, length, artefact) for seed in (0, 1) for length, artefact in ((0, 0), (0, 0.5), (1, 0))
    ]
    # What ends rounds is not what they are compared by, and the labels of others are those of the same pairs.
    assert set(results["few labels"]) - {"seeds"} == {
        f"{kind}: {name}" for kind in preference_methods.WORLDS for name in preference_methods.FEW_LABELS
    }
    rounds = [options for command, options in parsed if command == "train-rm" and options.unlabelled_data]
    assert rounds and {Path(options.eval_data[0]).name for options in rounds} == {"preferences_val.jsonl"}
    done = len(parsed)
    preference_methods.main(options)
    assert len(parsed) == done
    table = (tmp_path / "preference_methods.md").read_text().splitlines()
    assert table[0] == "## judging, seeds 0 1" and "| fair: Bradley-Terry | 0.800 +- 0.000 |" in "\n".join(table)
