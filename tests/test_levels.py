"""The comparison of levels and assignments: its commands, parsed and not run, and what it makes of their evaluations."""

import json
import math
import sys
from pathlib import Path

import parsed_stages
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import levels  # noqa: E402

TRUE = {0: 0.0, 10: 0.4, 20: 0.6, 40: 0.5}


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """The commands that would have been run, each leaving what is read of it; differences learn twice as fast."""
    commands = []

    def stage(command, *words, **flags):
        options = parsed_stages.parsed(command, words, flags)
        commands.append((command, options))
        folder = Path(options.output_dir)
        if command == "fit-normalizer":
            (folder / "normalizer.png").touch()
        if command == "train-rm":
            (folder / "metrics.jsonl").write_text(json.dumps({"eval_accuracy": 0.7}) + "\n")
            (folder / "config.json").write_text(json.dumps({"std": 3.0}))
        if command == "train-ppo":
            faster = 2 if options.assignment in ("difference", "difference_end") else 1
            names = ("kl", "normalised_reward", "response_length", "segments")
            rows = [
                {"step": step, "eval_true_reward": TRUE[min(faster * step, 40)], **{f"eval_{name}": step for name in names}}
                for step in TRUE
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            twice = "Coupons keep baking cheap. Coupons keep baking cheap."
            sample = {"prompt": "user\nTell me about cheap baking.\nassistant\n", "response": twice}
            (folder / "eval_samples.jsonl").write_text("".join(json.dumps({"step": s, **sample}) + "\n" for s in TRUE))

    monkeypatch.setattr(levels, "stage", stage)
    monkeypatch.setattr(levels, "check_segments", lambda *args: {"f1": 0.9, "spearman": 0.8})
    return commands


@pytest.mark.long
def test_every_part_runs_the_commands_it_needs_once(parsed, tmp_path):
    options = levels.Options(seeds=[0, 1], coefficients=[0.2], runs=tmp_path)
    levels.main(options)
    results = json.loads((tmp_path / "levels.json").read_text())
    assert set(results) == set(levels.PARTS) and results["models"]["f1"]["mean"] == 0.9
    assert all(part["seeds"] == [0, 1] for part in results.values())
    found = results["credit"]["0.2"]
    assert len(found) == 10
    # The best true reward of 0.6 is reached after 20 iterations of 64, by differences after 10.
    assert found["bandit"]["rollouts to 0.6"]["mean"] == 1280 and found["segment, difference"]["rollouts to 0.6"]["mean"] == 640
    assert found["segment, difference"]["share of the rollouts to the best of: bandit"]["values"] == [0.5, 0.5]
    assert found["segment, even"]["repeats at end"]["mean"] == 0.5 and found["bandit"]["lost since best"][
        "mean"
    ] == pytest.approx(0.1)
    ppo = [options for command, options in parsed if command == "train-ppo"]
    # Ten arms, five for longer, five in three kinds of world, six in that of long responses, nine more lambdas, four more ways
    # against repetitions; two seeds.
    assert len(ppo) == 2 * (10 + 5 + 5 * 3 + 6 + 9 + 4)
    assert [(o.reward_level, o.reward_std) for o in ppo if o.prefix_differences] == 2 * [("segment", 3.0)]
    assert {o.true_reward.split(":")[1] for o in ppo} == {"true_reward", "true_reward_sum", "true_reward_asked"}
    # Location lines go with what pays single segments, and with nothing else.
    assert all((o.fit is not None) == (o.assignment in ("even", "even_mean")) for o in ppo)
    sums = [o for command, o in parsed if command == "train-rm" and o.agg_func == "sum"]
    assert len(sums) == 2 and all(o.reward_level == "segment" for o in sums)
    assert {o.iterations for o in ppo} == {40, 120} and {o.lam for o in ppo} == {0.8, 0.9, 0.95, 1.0}
    assert all((tmp_path / f"{kind}-40-0.2-kl.png").stat().st_size for kind in levels.KINDS)
    done = len(parsed)
    levels.main(options)
    assert len(parsed) == done and json.loads((tmp_path / "levels.json").read_text()) == results


def test_between_evaluations_rewards_run_straight():
    run = [{"rollouts": x, "true": y, "kl": x / 320} for x, y in ((0, 0.0), (320, 0.4), (640, 0.3), (960, 0.7))]
    assert levels.when(run, "true", 0.3) == pytest.approx(240)
    assert levels.when(run, "true", 0.5) == pytest.approx(800)
    assert levels.when(run, "true", 0.71) is None
    assert levels.when(run, "kl", 1.5, "true") == pytest.approx(0.35)
    assert levels.when(run, "true", -0.5) == 0


def test_intervals_are_students():
    summary = levels.summarise([1.0, 2.0, 3.0, None])
    # The 97.5 % quantile of Student's t with 2 degrees of freedom is 4.3027, the standard error 1 / sqrt(3).
    assert (summary["mean"], summary["n"]) == (2.0, 3)
    assert summary["half_width"] == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert levels.shown(summary) == "2.000 +- 2.484 (3 of 4)"
    assert levels.shown(levels.summarise([None])) == "-"
