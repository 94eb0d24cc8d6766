"""The script of rounds of PPO and MetaRM: its commands, parsed and not run; and, killed half way, all of it."""

import json
import sys
from pathlib import Path

import parsed_stages
import pytest
import yaml

from denserl.cli.demo_ways import SFT
from denserl.cli.options import parse
from denserl.cli.paper_scripts import read_table
from denserl.cli.pipeline import stage
from denserl.cli.record import resolved_settings
from denserl.errors import UserError
from denserl.trainer.meta_step import MetaStep

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples/scripts"))

import metarm_rounds  # noqa: E402


def options_of(folder: Path, **flags):
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return parse(metarm_rounds.Options, "metarm_rounds", [*argv, "--output_dir", str(folder)])


def leaves(folder: Path, options) -> None:
    """What is read of a command that has finished."""
    entries = [{"outcome": "failed"}, {"outcome": "finished", "settings": resolved_settings(options)}]
    (folder / "command.json").write_text(json.dumps(entries))
    rows = [{"step": 1, "separation": 0.4, "reward": 1.0}, {"step": 2, "separation": 0.5, "eval_accuracy": 0.7}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_command_is_understood_and_run_once(monkeypatch, tmp_path, capsys):
    commands = []

    def parsed(command, **flags):
        options = parsed_stages.parsed(command, (), flags)
        commands.append((command, options))
        leaves(Path(options.output_dir), options)

    monkeypatch.setattr(metarm_rounds, "stage", parsed)
    (tmp_path / "meta.yaml").write_text("meta_lr: 0.125\n")
    flags = {"model": "sft", "data": "pairs.jsonl", "prompts": "prompts.jsonl", "meta_config": tmp_path / "meta.yaml"}
    for _ in range(2):
        metarm_rounds.run(options_of(tmp_path / "runs", rounds=2, **flags))
    first, *rounds = ["train-rm", "train-ppo"], *2 * [["bon", "train-rm", "train-ppo"]]
    assert [command for command, _ in commands] == sum(rounds, first)
    plain, ppo, bon, meta, *_, last_meta, last_ppo = (options for _, options in commands)
    runs = str(tmp_path / "runs")
    assert plain.meta_data is None and ppo.reward_model == [f"{runs}/rm-0"] and bon.model == f"{runs}/ppo-0"
    assert meta.meta_data == [f"{runs}/samples-1/samples.jsonl"] and meta.meta_lr == 0.125 and meta.model == "sft"
    assert last_meta.meta_data == [f"{runs}/samples-2/samples.jsonl"] and last_ppo.reward_model == [f"{runs}/rm-2"]
    said = capsys.readouterr().out.splitlines()
    (tmp_path / "meta.yaml").write_text("meta_lr: 0.25\n")
    with pytest.raises(UserError, match=r"rm-1 was written with other settings \(meta_lr: 0.125, now 0.25\)"):
        metarm_rounds.run(options_of(tmp_path / "runs", rounds=2, **flags))
    assert said[-1].startswith("round 2: held-out accuracy 0.7000, last policy's responses told apart 0.4000")


def test_mistakes_name_the_script(tmp_path, capsys):
    with pytest.raises(SystemExit):
        metarm_rounds.main(["--model", "m", "--data", "d", "--prompts", "p", "--output_dir", str(tmp_path), "--turns", "2"])
    said = capsys.readouterr().err
    assert said.startswith("python examples/scripts/metarm_rounds.py: there is no option --turns")
    assert "python examples/scripts/metarm_rounds.py --help" in said


@pytest.mark.long
def test_all_of_it_goes_on_where_it_was_ended(monkeypatch, tmp_path):
    world, tiny = tmp_path / "world", read_table()["model_types"]["tiny"]
    stage("make-world", output_dir=world, seed=0, scale=0.02)
    sft = {"model": world / "base", "data": world / "sft.jsonl", "output_dir": tmp_path / "sft"}
    stage("train-sft", **SFT, **sft)
    configs = {
        "rm": {**tiny["rm"], "cache_dir": str(tmp_path / "cache"), "limit": 64, "logging_steps": 1},
        "ppo": {**tiny["ppo"], "iterations": 2, "max_new_tokens": 16, "eval_every": 0},
        "bon": {"max_new_tokens": 16, "limit": 8},
    }
    flags = {"model": tmp_path / "sft", "data": world / "preferences_train.jsonl", "prompts": world / "prompts_train.jsonl"}
    for name, settings in configs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        flags[f"{name}_config"] = tmp_path / f"{name}.yaml"
    options = options_of(tmp_path / "runs", rounds=1, **flags)
    begun, move = [], MetaStep.move

    def noted(command, **given):
        begun.append(command)
        return stage(command, **given)

    def killed(self, model, score, step, let_go):
        if step == 2:
            raise KeyboardInterrupt
        return move(self, model, score, step, let_go)

    monkeypatch.setattr(metarm_rounds, "stage", noted)
    with monkeypatch.context() as half_way, pytest.raises(KeyboardInterrupt):
        half_way.setattr(MetaStep, "move", killed)
        metarm_rounds.run(options)
    metarm_rounds.run(options)
    assert begun == ["train-rm", "train-ppo", "bon", "train-rm", "train-rm", "train-ppo"]
    rows = (tmp_path / "runs/samples-1/samples.jsonl").read_text().splitlines()
    assert len(rows) == 8 * 4 and (tmp_path / "runs/ppo-1/model.safetensors").is_file()
    separations = [
        json.loads(line).get("separation") for line in (tmp_path / "runs/rm-1/metrics.jsonl").read_text().splitlines()
    ]
    assert any(value is not None and 3 / 8 < value < 3 / 4 for value in separations)
