"""Options that would be ignored are refused; defaults, and what has an effect, are not. The rest is in tests/bad_input."""

import importlib
from typing import get_args

import pytest

from denserl.cli.main import COMMANDS
from denserl.cli.options import parse
from denserl.config import Only, options_of
from denserl.errors import UserError
from denserl.ppo_utils.assignment import ALIASES, KINDS
from denserl.ppo_utils.config import NORMALIZERS, Assignment, normalizer_kind
from denserl.rewards.aggregation import AGGREGATIONS
from denserl.rewards.config import Aggregation

OPTIONS = {name: importlib.import_module(f"denserl.cli.{name.replace('-', '_')}").Options for name in COMMANDS}
NEEDED = {
    "inspect": "d.jsonl",
    "train-sft": "--model m --data d.jsonl --output_dir o",
    "train-rm": "--model m --data d.jsonl --output_dir o",
    "fit-normalizer": "--reward_model m --data d.jsonl",
    "strength": "--reward_model a b --data d.jsonl --output_dir o",
    "train-ppo": "--model m --reward_model r --data d.jsonl --output_dir o",
    "check-model": "m",
    "new-model": "--data d.jsonl --output_dir o",
    "plan": "--model m",
    "import-gguf": "m.gguf --output_dir o",
    "merge": "--model m --adapter a --output_dir o",
    "export": "--reward_model m --layout hf --output_dir o",
    "push": "--model m --push_to_hub a/b",
    "answer": "alpacaeval --model m --output_dir o",
    "bon": "--model m --reward_model r --true_reward a:b --data d.jsonl --output_dir o",
    "judge": "alpacaeval a.json --baseline b.json --annotations j.json --output_dir o",
    "evaluate": "pairs d.jsonl --scorer m --output_dir o",
}


def parsed(command: str, flags: str = ""):
    return parse(OPTIONS[command], command, [*NEEDED.get(command, "").split(), *flags.split()])


def test_every_condition_is_of_an_option_that_the_command_has():
    for options in OPTIONS.values():
        names = {option.name for option in options_of(options)}
        named = {n for option in options_of(options) for mark in option.marks if isinstance(mark, Only) for n in mark.of}
        assert named <= names


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_pass(command):
    parsed(command).check()


@pytest.mark.parametrize(
    "command, flags",
    [
        ("train-rm", "--lora_rank 4 --lora_alpha 16 --lora_targets q_proj --lora_dropout 0.1"),
        ("train-rm", "--offload_optimizer --zero_stage 2"),
        ("train-rm", "--reg_type dpo --reg_coef 0.1 --reg_beta 0.2 --reg_logp mean --pos_reg 0.1"),
        ("train-rm", "--reg_type sft_plain --reg_coef 0.001 --lora_rank 4"),
        ("train-rm", "--head_type mlp --head_layers 2 --head_width 64 --head_dropout 0.2 --freeze_trunk"),
        ("train-rm", "--eval_size 10 --eval_steps 5"),
        ("train-rm", "--eval_data some/dataset --eval_split validation --eval_steps 5"),
        ("train-rm", "--data some/dataset --split validation"),
        ("train-sft", "--eval_data e.jsonl --eval_steps 5"),
        ("train-sft", "--eval_steps 0"),
        ("fit-normalizer", "--fit p.json"),
        ("train-ppo", "--kl_target 1 --kl_horizon 5"),
        ("train-ppo", "--entropy_coef 0.01 --entropy_target 30"),
        ("train-ppo", "--ptx_data t.txt --ptx_coef 0.5"),
        ("train-ppo", "--ptx_data some/dataset --split validation"),
        ("train-ppo", "--penalise_unfinished --penalty 1"),
        ("train-ppo", "--penalise_longer_than 10 --penalty 1"),
        ("train-ppo", "--assignment segment_last_logsumexp --tau 2"),
        ("train-ppo", "--normalizer scalar --reward_mean 1 --reward_std 2"),
        ("train-ppo", "--reward_level bandit --reward_mean 1 --reward_std 2"),
        ("train-ppo", "--reward_level bandit --normalizer location --fit p.json"),
        ("train-ppo", "--eval_prompts e.jsonl --eval_limit 3 --eval_every 1 --true_reward a:b"),
        ("train-ppo", "--episodes 3"),
        ("train-ppo", "--reward_model r s --ensemble mean_std --ensemble_weight 2"),
        ("train-ppo", "--eval_prompts e.jsonl --gold_reward_model g"),
        ("bon", "--reward_model r s --ensemble min --gold_reward_model g"),
        ("evaluate", "--scorer a b --ensemble mean_std --ensemble_weight 2 --entropy_threshold 1.5 --sft_model s"),
        ("plan", "--offload_optimizer"),
        ("inspect", "--kind steps --neutral good"),
        ("inspect", "--rating_columns help"),
        ("inspect", "--model m --sample 0 --max_length 100 --dtype bf16"),
    ],
)
def test_what_has_an_effect_passes(command, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").touch()
    parsed(command, flags)


def test_a_file_has_no_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").touch()
    with pytest.raises(UserError, match="--split validation has no effect where there are no splits"):
        parsed("train-rm", "--split validation")


@pytest.mark.parametrize(
    "level, assignment, given, kind",
    [
        ("segment", None, None, "scalar"),
        ("token", None, None, "scalar"),
        ("segment", "even", None, "location"),
        ("token", "segment_normalization", None, "location"),
        ("segment", "score_last", None, "scalar"),
        ("segment", "segment_last_avg", None, "scalar"),
        ("segment", "difference_end", "location", "location"),
        ("bandit", None, None, "scalar"),
        ("bandit", "even", None, "scalar"),
        ("bandit", None, "none", "none"),
    ],
)
def test_the_normaliser_of_an_assignment(level, assignment, given, kind):
    assert normalizer_kind(level, assignment, given) == kind


def test_every_assignment_and_alias_has_a_normaliser():
    assert set(NORMALIZERS) == {*KINDS, *ALIASES} == set(get_args(Assignment))


def test_every_aggregation_can_be_asked_for():
    assert get_args(Aggregation) == AGGREGATIONS
