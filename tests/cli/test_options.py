"""Parsing, config files, ranges and the way a command ends when the user is mistaken."""

import importlib
import re

import pytest

from denserl.cli.launch import launch
from denserl.cli.main import COMMANDS
from denserl.cli.names import OTHER_NAMES, check_names
from denserl.cli.options import help_of, parse, with_flags
from denserl.cli.train_ppo import Options as PPO
from denserl.cli.train_rm import Options
from denserl.cli.words import presets
from denserl.config import FIRST, options_of
from denserl.errors import UserError
from denserl.files import make_folder

NEEDED = ["--model", "m", "--data", "d.jsonl", "--output_dir", "out"]


def options(*flags: str) -> Options:
    return parse(Options, "train-rm", [*NEEDED, *flags])


def test_a_config_file_stands_for_its_flags_and_later_flags_win(tmp_path):
    config = tmp_path / "rm.yaml"
    config.write_text("lr: 2e-5\nuse_margin: true\neval_data: [a.jsonl, b.jsonl]\nmicro_batch_size: 2\n")
    for given in (["--config", str(config)], [f"--config={config}"]):
        parsed = options(*given, "--micro_batch_size", "8")
        assert (parsed.lr, parsed.use_margin, parsed.eval_data) == (2e-5, True, ["a.jsonl", "b.jsonl"])
        assert parsed.micro_batch_size == 8


def test_on_and_off_in_a_config_file_are_words_of_options_that_have_them(tmp_path):
    config = tmp_path / "ppo.yaml"
    for text, value in (("off", "off"), ("on", "on"), ("'off'", "off"), ("no", "off")):
        config.write_text(f"advantage_norm: {text}\npenalise_unfinished: {text.strip(chr(39))}\n")
        parsed = parse(PPO, "train-ppo", [*NEEDED, "--reward_model", "r", "--config", str(config)])
        assert parsed.advantage_norm == value and parsed.penalise_unfinished == (value == "on")


def test_a_preset_of_the_package_is_found_by_its_file_name(tmp_path, monkeypatch, caplog):
    """Unless there is a file of this name; flags win, and the log says which file it was."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    given = [*NEEDED, "--reward_model", "r", "--config", "ppo_max.yaml", "--lam", "0.95"]
    parsed = parse(PPO, "train-ppo", given)
    assert (parsed.advantage_norm, parsed.lr_schedule, parsed.lam) == ("off", "inverse_sqrt", 0.95)
    assert f"options from {presets()['ppo_max.yaml']}" in caplog.messages
    (tmp_path / "ppo_max.yaml").write_text("lam: 0.5\ngamma: 0.5\n")
    parsed = parse(PPO, "train-ppo", given)
    assert (parsed.advantage_norm, parsed.gamma, parsed.lam) == (None, 0.5, 0.95)
    assert caplog.messages[-1] == "options from ppo_max.yaml"
    with pytest.raises(UserError, match=r"--config: ppo_min.yaml is no file, and no preset(.|\n)*: ppo_max.yaml"):
        parse(PPO, "train-ppo", ["--config", "ppo_min.yaml"])
    with pytest.raises(UserError, match="nothing is no file, and no preset"):
        options("--config")
    with pytest.raises(UserError, match="presets/ppo_max.yaml: there is no option kl_coefficient"):
        options("--config", str(presets()["ppo_max.yaml"]))
    assert list(presets(PPO)) == ["ppo_max.yaml"] and not presets(Options)


@pytest.mark.parametrize("config", [["--config", "ppo_max.yaml"], ["--config=ppo_max.yaml"]])
def test_an_option_without_effect_that_stands_in_a_file_is_said_to_stand_there(config):
    given = [*NEEDED, "--reward_model", "r", "--advantage", "reinforce", *config]
    with pytest.raises(UserError, match="--lam 0.9 has no effect") as error:
        parse(PPO, "train-ppo", given)
    assert error.value.fix.endswith("; --lam stands in --config ppo_max.yaml, of which a copy may be changed")
    with pytest.raises(UserError, match="--lam 0.8 has no effect") as error:
        parse(PPO, "train-ppo", [*given, "--lam", "0.8"])
    assert "stands in" not in error.value.fix


@pytest.mark.parametrize("text, found", [("- a\n", "holds a list"), ("a: [1", "is not YAML")])
def test_a_config_file_that_is_none(tmp_path, text, found):
    config = tmp_path / "rm.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=found):
        options("--config", str(config))
    with pytest.raises(UserError, match="is no file"):
        options("--config", str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("micro_batch_size", "0", "--micro_batch_size is 0; it must be at least 1"),
        ("batch_size", "-4", "--batch_size is -4; it must be at least 1"),
        ("epochs", "0", "--epochs is 0.0; it must be above 0"),
        ("logging_steps", "0", "--logging_steps is 0; it must be at least 1"),
        ("warmup_ratio", "-1", "--warmup_ratio is -1.0; it must be at least 0 and below 1"),
        ("warmup_ratio", "2", "--warmup_ratio is 2.0; it must be at least 0 and below 1"),
        ("lora_rank", "-1", "--lora_rank is -1; it must be at least 0"),
        ("seed", "-1", "--seed is -1; it must be at least 0"),
        ("max_grad_norm", "0", "--max_grad_norm is 0.0; it must be above 0"),
        ("label_smoothing", "0.5", "--label_smoothing is 0.5; it must be"),
        ("entropy_threshold", "nan", "--entropy_threshold is nan; it must be at least 0"),
        ("lr", "inf", "--lr is inf; it must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_named(flag, value, message):
    with pytest.raises(UserError) as error:
        options(f"--{flag}={value}")
    assert error.value.found.startswith(message)
    assert f"--{flag}" in error.value.fix


def test_a_mistake_ends_with_a_message_and_status_2(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(_):
        raise UserError("found this", "do that")

    with pytest.raises(SystemExit) as end:
        launch(Options, "train-rm", run, NEEDED)
    assert end.value.code == 2
    assert capsys.readouterr().err == "denserl train-rm: found this\n  fix: do that\n"


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(_):
        raise FileNotFoundError(2, "No such file or directory", "nvcc")

    with pytest.raises(FileNotFoundError):
        launch(Options, "train-rm", run, NEEDED)


@pytest.mark.parametrize("flag", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made_is_named(flag):
    with pytest.raises(UserError, match=f"`{flag}` /dev/null/x: Not a directory"):
        make_folder(flag, "/dev/null/x")


@pytest.mark.parametrize("betas", [("0.9", "1.5"), ("-0.1", "0.9")])
def test_betas_out_of_range_are_named(betas):
    with pytest.raises(UserError, match="--adam_betas has"):
        options("--adam_betas", *betas)


@pytest.mark.parametrize("flag", ["--micro_batchsize=4", "--micro-batchsize", "--no_micro_batchsize"])
def test_an_unknown_flag_is_met_with_the_one_that_was_meant(flag):
    with pytest.raises(UserError, match="no option --.*; did you mean --micro_batch_size?"):
        options(flag)
    with pytest.raises(UserError, match="no option --xyzzy\n") as error:
        check_names(Options, "THE LIST", ["--xyzzy"])
    assert "THE LIST" in error.value.fix


def test_known_flags_pass_in_every_spelling():
    check_names(
        Options, "", ["--micro-batch-size=4", "--micro_batch_size", "-4", "--no-use_margin", "--help", "--tyro-write-x"]
    )


def test_null_in_a_config_file_leaves_the_default(tmp_path):
    config = tmp_path / "rm.yaml"
    config.write_text("lr: null\nmicro_batch_size: 2\n")
    assert options("--config", str(config)) == options("--micro_batch_size", "2")


def test_the_rank_that_the_deepspeed_launcher_adds_is_dropped():
    assert options("--local_rank=3") == options()


COMMANDS_OPTIONS = {name: importlib.import_module(f"denserl.cli.{name.replace('-', '_')}").Options for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command):
    options_class = COMMANDS_OPTIONS[command]
    texts = help_of(options_class)
    assert [option.name for option in options_of(options_class) if not texts.get(option.name)] == []


@pytest.mark.parametrize("command", ["train-sft", "train-rm", "train-ppo", "fit-normalizer", "evaluate", "bon"])
def test_help_lists_first_what_everyone_sets(command, capsys):
    with pytest.raises(SystemExit) as end:
        parse(COMMANDS_OPTIONS[command], command, ["--help"])
    shown = capsys.readouterr().out
    # Boxes are drawn with other characters where the terminal knows no better ones.
    headings = re.findall(r"^\W*([A-Za-z ]+) options\W*$", shown, re.MULTILINE)
    assert end.value.code == 0 and headings[0] == "main" and len(headings) > 3
    main = shown.split("main options")[1].split(f"{headings[1]} options")[0]
    firsts = [option.name for option in options_of(COMMANDS_OPTIONS[command]) if FIRST in option.marks]
    assert 5 <= len(firsts) <= 16 and "--config" in main
    assert all(name in main or name.upper() in shown for name in firsts)  # positional arguments stand by themselves


@pytest.mark.parametrize(
    "command, other, own",
    [
        ("train-rm", "learning_rate", "lr"),
        ("train-ppo", "learning_rate", "actor_lr"),
        ("train-rm", "per_device_train_batch_size", "micro_batch_size"),
        ("train-sft", "output", "output_dir"),
        ("train-ppo", "model_name_or_path", "model"),
        ("train-ppo", "init_kl_coef", "kl_coefficient"),
        ("train-ppo", "num_generations", "samples_per_prompt"),
        ("bon", "num_generations", "samples"),
    ],
)
def test_names_of_other_libraries_get_a_hint(command, other, own):
    with pytest.raises(UserError, match=f"no option --{other}; did you mean --{own}\\?"):
        parse(COMMANDS_OPTIONS[command], command, [f"--{other}", "1"])


def test_hints_lead_to_options_and_hide_none():
    every = {option.name for options_class in COMMANDS_OPTIONS.values() for option in options_of(options_class)}
    assert {own for owns in OTHER_NAMES.values() for own in owns} <= every
    assert not every & set(OTHER_NAMES)


def test_a_wrong_key_in_a_config_file_is_named_with_the_file(tmp_path):
    config = tmp_path / "rm.yaml"
    config.write_text("lr: 1e-5\nlearning_rate: 1e-5\n")
    with pytest.raises(UserError, match=r"rm.yaml: there is no option learning_rate; did you mean lr\?"):
        options("--config", str(config))


def test_options_in_backticks_are_shown_as_flags_and_other_words_as_they_are():
    shown = with_flags(UserError("`lr` of `foo`", "leave `micro_batch_size` out", True), Options)
    assert (shown.found, shown.fix, shown.one_rank) == ("--lr of `foo`", "leave --micro_batch_size out", True)


@pytest.mark.parametrize(
    "words, value",
    [
        ([], None),
        (["--gradient_checkpointing"], True),
        (["--no-gradient_checkpointing"], False),
        (["--no-gradient-checkpointing"], False),
        (["--gradient_checkpointing", "False"], False),
        (["--gradient-checkpointing", "--lr", "1"], True),
    ],
)
def test_a_switch_that_is_left_to_the_device_is_spelled_like_any_other(words, value, tmp_path):
    assert options(*words).gradient_checkpointing is value
    config = tmp_path / "c.yaml"
    config.write_text(f"gradient_checkpointing: {'null' if value is None else str(value).lower()}\n")
    assert options("--config", str(config)).gradient_checkpointing is value


def test_help_shows_how_it_is_switched(capsys):
    with pytest.raises(SystemExit):
        options("--help")
    assert "--gradient_checkpointing | --no-gradient_checkpointing" in " ".join(capsys.readouterr().out.split())


def test_a_first_word_behind_no_option_is_told_which_goes_before_it():
    with pytest.raises(UserError, match="'rows.jsonl' stands behind no option") as error:
        check_names(Options, "denserl train-rm --help", ["rows.jsonl", *NEEDED])
    assert error.value.fix == "write --data before it; denserl train-rm --help lists all"
    check_names(importlib.import_module("denserl.cli.evaluate").Options, "denserl evaluate --help", ["pairs", "rows.jsonl"])
