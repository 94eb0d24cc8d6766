"""The study's commands, parsed and not run, and the ratings it gives the world's pairs."""

import json
import sys
from pathlib import Path

import parsed_stages
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import levels  # noqa: E402
import study  # noqa: E402

ENDS = [0.1, 0.4, 0.3]
SUBSET = {"n": 100, "accuracy": 0.5, "interval": [0.4, 0.6]}


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """The commands that the study would have run, by name, each leaving what the study reads of it."""
    commands = []

    def stage(command, *words, **flags):
        options = parsed_stages.parsed(command, words, flags)
        commands.append((command, options))
        folder = Path(options.output_dir)
        curve = {"n": [1, 2, 3], "kl": [0.0, 0.2, 0.4], "proxy": [0.0, 0.5, 0.9], "gold": ENDS}
        (folder / "results.json").write_text(
            json.dumps({"accuracy": 0.7, "subsets": {"Natural": {**SUBSET, "ties": 0}}, **curve})
        )
        rows = [{"eval_kl": i, "eval_reward": i, "eval_true_reward": value} for i, value in enumerate(ENDS)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for module in (study, levels):
        monkeypatch.setattr(module, "stage", stage)
    return commands


@pytest.mark.long
def test_every_part_runs_the_commands_it_needs_once(parsed, tmp_path, shared_data):
    options = study.Options(seeds=[0], data=shared_data, runs=tmp_path)
    study.main(options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [point["mean"] for point in results["best-of-n"]["GRM 0.05"]["gold"]] == ENDS
    assert [point["mean"] for point in results["ppo"]["token"]["gold"]] == ENDS
    assert results["accuracy"]["margin"]["mean"] == 0.7 and results["real"]["llmbar"]["GRM 0.05"] == {"Natural": SUBSET}
    assert all((tmp_path / f"{name}.png").stat().st_size for name in ("accuracy", "best_of_n", "ppo", "hh-harmless"))
    trained = [options for command, options in parsed if command == "train-rm"]
    # Six methods and two further members of the ensemble; a model for each level of PPO; the same on two real sets, of which
    # one has no ratings to take margins from.
    assert len(trained) == 8 + 3 + 8 + 7
    assert not [o for o in trained if o.use_margin and "hh-harmless" in o.data[0]]
    assert "margin" in results["real"]["ultrafeedback-1k"] and "margin" not in results["real"]["hh-harmless"]
    assert {(o.flip_frac, o.head_type, o.head_width) for o in trained} == {(0.25, "mlp", 64)}
    assert {o.reg_coef for o in trained if o.reg_type == "sft"} == {0.01, 0.05, 0.2}
    done = len(parsed)
    study.main(options)
    options.parts = ["ppo"]  # the others' results stay
    study.main(options)
    assert len(parsed) == done and json.loads((tmp_path / "results.json").read_text()) == results


def test_ratings_follow_true_rewards_and_leave_the_labels(tmp_path):
    good, bad = "Coupons keep baking cheap.", "Brands make baking costly."
    rows = [{"prompt": "Tell me about cheap baking.", "chosen": good, "rejected": bad}] * 400
    rows += [{"prompt": "Tell me about cheap baking.", "chosen": bad, "rejected": bad}] * 400
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rated = study.rated_pairs(path, seed=3)
    assert [(row["chosen"], row["rejected"]) for row in rated] == [(row["chosen"], row["rejected"]) for row in rows]
    gaps = [row["score_chosen"] - row["score_rejected"] for row in rated]
    assert all(gap in (0, 1, 2, 3, 4) for gap in gaps)
    # True rewards of 1 and -1 are rated 5 and 1, but for noise of 0.5 and the ends of the scale; equal ones differ by noise
    # alone.
    assert sum(gaps[:400]) / 400 > 3.5 and sum(gaps[400:]) / 400 < 0.5
