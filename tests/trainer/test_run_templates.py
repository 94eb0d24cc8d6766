"""The chat template of a run: one date from its start on, stored with what it writes and taken over from the reward model."""

import json

import pytest
import tiny_models
from transformers import AutoTokenizer

from denserl.cli import train_ppo, train_rm, train_sft
from denserl.data import templates
from denserl.errors import UserError
from denserl.trainer import start

DATE = "{{ '<|im_start|>today ' + strftime_now('%Y-%m-%d') + '<|im_end|>\n' }}"


@pytest.fixture
def on_day(monkeypatch):
    def set_day(day):
        for module in (templates, start):
            monkeypatch.setattr(module, "today", lambda: day)

    return set_day


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose template writes the date, pairs, and answers."""
    root = tmp_path_factory.mktemp("dated")
    model = tiny_models.save_language_model(root / "sft")
    path = model / "chat_template.jinja"
    path.write_text(DATE + path.read_text())
    rows = tiny_models.boat_pairs(10)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return root


def run(command, folder, output, **options):
    settings = {
        "model": folder / "sft",
        "data": folder / ("answers.jsonl" if command is train_sft else "pairs.jsonl"),
        "output_dir": output,
        "batch_size": 4,
        "micro_batch_size": 4,
        "max_length": 96,
        "save_steps": 2,
        "device": "cpu",
    }
    if command is train_rm:
        settings |= {"cache_dir": folder / "cache", "max_prompt_length": 64, "eval_steps": 0}
    tiny_models.run_command(command, "train", tiny_models.as_argv(settings | options))
    return output


def kept(folder):
    return json.loads((folder / "tokenizer_config.json").read_text()).get("template_date")


@pytest.mark.parametrize("command", [train_sft, pytest.param(train_rm, marks=pytest.mark.long)])
def test_a_run_that_is_resumed_on_a_later_day_keeps_its_date(folder, tmp_path, on_day, command):
    on_day("2026-03-05")
    output = run(command, folder, tmp_path / "run")
    assert kept(output) == "2026-03-05"
    on_day("2026-03-06")
    run(command, folder, output, resume=True)
    assert kept(output) == "2026-03-05"
    assert "today 2026-03-05<" in AutoTokenizer.from_pretrained(output).apply_chat_template(
        [{"role": "user", "content": "Boats?"}], tokenize=False
    )
    with pytest.raises(UserError, match="template_date: 2026-03-05, now 2026-03-06"):
        run(command, folder, output, resume=True, template_date="2026-03-06")


def test_another_template_or_system_prompt_is_refused_at_a_resume(folder, tmp_path):
    file, moved = tmp_path / "one.jinja", tmp_path / "moved.jinja"
    file.write_text((folder / "sft" / "chat_template.jinja").read_text().replace("today", "day"))
    options = {"template_date": "2026-03-05", "system_prompt": "Be brief."}
    output = run(train_sft, folder, tmp_path / "run", chat_template=file, **options)
    file.rename(moved)
    run(train_sft, folder, output, chat_template=moved, **options, resume=True)
    with pytest.raises(UserError, match="system_prompt: Be brief., now Be long."):
        run(train_sft, folder, output, chat_template=moved, **{**options, "system_prompt": "Be long."}, resume=True)
    moved.write_text(moved.read_text().replace("day", "date"))
    with pytest.raises(UserError, match=r"chat_template: \w{16}, now \w{16}"):
        run(train_sft, folder, output, chat_template=moved, **options, resume=True)


def test_ppo_samples_after_the_prompts_that_its_reward_model_was_trained_on(folder, tmp_path, on_day, caplog):
    on_day("2026-03-05")
    reward_model = run(train_rm, folder, tmp_path / "rm", reward_level="bandit")
    on_day("2026-03-06")

    def ppo(name, **options):
        caplog.clear()
        settings = {
            "model": folder / "sft",
            "reward_model": reward_model,
            "data": folder / "pairs.jsonl",
            "output_dir": tmp_path / name,
            "iterations": 1,
            "rollout_batch_size": 4,
            "train_batch_size": 4,
            "micro_batch_size": 4,
            "max_new_tokens": 4,
            "zero_stage": 0,
            "save_every": 0,
            "device": "cpu",
        }
        tiny_models.run_command(train_ppo, "train-ppo", tiny_models.as_argv(settings | options))
        return kept(tmp_path / name), "writes conversations otherwise" in caplog.text

    instructed = run(train_rm, folder, tmp_path / "instructed", reward_level="bandit", system_prompt="Be brief.")
    assert ppo("taken over", reward_model=instructed) == ("2026-03-06", False)
    saved = AutoTokenizer.from_pretrained(tmp_path / "taken over")
    assert "system\nBe brief.<" in saved.apply_chat_template([{"role": "user", "content": "Boats?"}], tokenize=False)
    assert ppo("refused", reward_model=instructed, system_prompt="Be long.") == ("2026-03-06", True)
    assert ppo("same") == ("2026-03-05", False)
    assert ppo("other", template_date="2026-03-06") == ("2026-03-06", True)
    assert ppo("told", system_prompt="Be brief.") == ("2026-03-05", True)
