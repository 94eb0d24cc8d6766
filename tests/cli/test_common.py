"""Parsing, config files, ranges and the way a command ends when the user is mistaken."""

import dataclasses
import importlib

import pytest

from denserl.cli.common import RANGES, check_names, check_ranges, launch, make_folder, parse
from denserl.cli.main import COMMANDS
from denserl.cli.train_rm import Options
from denserl.errors import UserError

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
        ("warmup_ratio", "-1", "--warmup_ratio is -1.0; it must be at least 0 and at most 1"),
        ("warmup_ratio", "2", "--warmup_ratio is 2.0; it must be at least 0 and at most 1"),
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


def test_every_range_is_of_an_option_that_some_command_has():
    fields = {
        field.name
        for command in COMMANDS
        for field in dataclasses.fields(importlib.import_module(f"denserl.cli.{command.replace('-', '_')}").Options)
    }
    assert set(RANGES) <= fields


def test_defaults_are_in_range():
    check_ranges(options())


def test_a_mistake_ends_with_a_message_and_status_2(capsys):
    def run(_):
        raise UserError("found this", "do that")

    with pytest.raises(SystemExit) as end:
        launch(Options, "train-rm", run, NEEDED)
    assert end.value.code == 2
    assert capsys.readouterr().err == "denserl train-rm: found this\n  fix: do that\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    def run(_):
        raise FileNotFoundError(2, "No such file or directory", "nvcc")

    with pytest.raises(FileNotFoundError):
        launch(Options, "train-rm", run, NEEDED)


@pytest.mark.parametrize("flag", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made_is_named(flag):
    with pytest.raises(UserError, match=f"--{flag} /dev/null/x: Not a directory"):
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
