"""The scripts in examples/scripts: each prints the command that is written out here by hand, or says what is wrong."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from denserl.cli import fit_normalizer, paper_scripts, train_ppo, train_rm
from denserl.cli.options import parse
from denserl.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"
COMMANDS = {"train-rm": train_rm, "fit-normalizer": fit_normalizer, "train-ppo": train_ppo}

# Published hyper-parameters: spec dense-rlhf, sections 3, 4 and 6; bandit means: section 4; names of models: section 7.
RM = """--data hendrydong/preference_700K --on_bad_row skip --output_dir runs/exp --epochs 1 --agg_func avg
    --lr 1e-6 --adam_betas 0.9 0.95 --weight_decay 0 --min_lr_ratio 0.1 --warmup_ratio 0.03 --batch_size 128
    --max_length 2048 --max_prompt_length 1728 --dtype bf16 --zero_stage 3 --max_grad_norm 1.0 --gradient_checkpointing
    --save_steps 256 --eval_steps 512"""
FIT = """--data hendrydong/preference_700K --on_bad_row skip --pairs 60000 --seed 42
    --agg_func avg --max_length 2048 --max_prompt_length 1728 --dtype bf16"""
PPO = """--data argilla/ultrafeedback-binarized-preferences-cleaned --on_bad_row skip --output_dir runs/exp
    --agg_func avg --actor_lr 5e-7 --critic_lr 9e-6 --adam_betas 0.9 0.95 --weight_decay 0 --min_lr_ratio 0.1
    --warmup_ratio 0.03 --rollout_batch_size 1024 --train_batch_size 128 --max_grad_norm 1.0 --zero_stage 2
    --max_prompt_length 1024 --max_new_tokens 1024 --temperature 1 --top_p 1 --gamma 1 --lam 0.95 --policy_clip 0.2
    --kl_coefficient 0.01 --reward_clip 10 --dtype bf16 --gradient_checkpointing --offload_optimizer --save_every 5"""
DENSE = "--assignment segment_normalization --normalizer location --value_clip 0.25"
BANDIT = "--reward_level bandit --read_at end_of_turn --assignment segment_last_avg --normalizer scalar --value_clip 0.2"
TYPE = {
    "phi3": "--model microsoft/Phi-3-mini-4k-instruct",
    "llama3": "--model RLHFlow/LLaMA3-SFT-v2",
    "llama31": "--model meta-llama/Llama-3.1-8B-Instruct",
}
FITS = {
    "phi3": "--fit phi3-instruct/preference700k_60000",
    "llama3": "--fit rlhflow_llama_3_sft_8b_v2/preference700k_60000",
    "llama31": "--fit meta_llama_3_1_instruct_8b/preference700k_60000",
}
PPO_SIZES = {
    "phi3": "--micro_batch_size 4 --sample_batch_size 16 --episodes 2",
    "llama3": "--micro_batch_size 2 --sample_batch_size 4 --episodes 1",
    "llama31": "--micro_batch_size 2 --sample_batch_size 4 --episodes 1",
}
PUBLISHED = [
    (
        "train-rm",
        "exp phi3-instruct preference_700K 1 peak 1.75 avg",
        f"{TYPE['phi3']} {RM} --micro_batch_size 8 --reward_level segment --entropy_threshold 1.75",
    ),
    (
        "train-rm",
        "exp rlhflow_llama_3_sft_8b_v2 preference_700K 1 peak 0 avg",
        f"{TYPE['llama3']} {RM} --micro_batch_size 4 --reward_level token",
    ),
    (
        "train-rm",
        "exp meta_llama_3_1_instruct_8b preference_700K 1 peak 1000 avg",
        f"{TYPE['llama31']} {RM} --micro_batch_size 4 --reward_level bandit",
    ),
    (
        "fit-normalizer",
        "yyqoni/Phi-3-mini-4k-instruct-segment-rm-700k peak 1.75 avg",
        f"""--reward_model yyqoni/Phi-3-mini-4k-instruct-segment-rm-700k {FIT}
        --sft_model microsoft/Phi-3-mini-4k-instruct --entropy_threshold 1.75
        --output_dir runs/fit/Phi-3-mini-4k-instruct-segment-rm-700k-1.75""",
    ),
    (
        "fit-normalizer",
        "yyqoni/rlhflow-llama-3-sft-8b-v2-token-rm-700k peak 0 avg",
        f"""--reward_model yyqoni/rlhflow-llama-3-sft-8b-v2-token-rm-700k {FIT}
        --sft_model RLHFlow/LLaMA3-SFT-v2 --entropy_threshold 0
        --output_dir runs/fit/rlhflow-llama-3-sft-8b-v2-token-rm-700k-0""",
    ),
    (
        "fit-normalizer",
        "yyqoni/meta-llama-3.1-instruct-8b-segment-rm-700k peak 2 avg",
        f"""--reward_model yyqoni/meta-llama-3.1-instruct-8b-segment-rm-700k {FIT}
        --sft_model meta-llama/Llama-3.1-8B-Instruct --entropy_threshold 2
        --output_dir runs/fit/meta-llama-3.1-instruct-8b-segment-rm-700k-2""",
    ),
    (
        "train-ppo",
        "exp phi3-instruct Ultrafeedback 2 peak 1.75 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["phi3"]} {PPO} {PPO_SIZES["phi3"]} {DENSE} {FITS["phi3"]} --reward_level segment --entropy_threshold 1.75
        --reward_model yyqoni/Phi-3-mini-4k-instruct-segment-rm-700k""",
    ),
    (
        "train-ppo",
        "exp phi3-instruct Ultrafeedback 2 peak 0 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["phi3"]} {PPO} {PPO_SIZES["phi3"]} {DENSE} {FITS["phi3"]} --reward_level token
        --reward_model yyqoni/Phi-3-mini-4k-instruct-token-rm-700k""",
    ),
    (
        "train-ppo",
        "exp phi3-instruct Ultrafeedback 2 peak 1000 avg segment_last_avg 0.2 preference700k_60000",
        f"""{TYPE["phi3"]} {PPO} {PPO_SIZES["phi3"]} {BANDIT} --reward_mean -0.51953125 --reward_std 2.15625
        --reward_model yyqoni/Phi-3-mini-4k-instruct-bandit-rm-700k""",
    ),
    (
        "train-ppo",
        "exp rlhflow_llama_3_sft_8b_v2 Ultrafeedback 1 peak 2 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["llama3"]} {PPO} {PPO_SIZES["llama3"]} {DENSE} {FITS["llama3"]} --reward_level segment --entropy_threshold 2
        --reward_model yyqoni/rlhflow-llama-3-sft-8b-v2-segment-rm-700k""",
    ),
    (
        "train-ppo",
        "exp rlhflow_llama_3_sft_8b_v2 Ultrafeedback 1 peak 0 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["llama3"]} {PPO} {PPO_SIZES["llama3"]} {DENSE} {FITS["llama3"]} --reward_level token
        --reward_model yyqoni/rlhflow-llama-3-sft-8b-v2-token-rm-700k""",
    ),
    (
        "train-ppo",
        "exp rlhflow_llama_3_sft_8b_v2 Ultrafeedback 1 peak 1000 avg segment_last_avg 0.2 preference700k_60000",
        f"""{TYPE["llama3"]} {PPO} {PPO_SIZES["llama3"]} {BANDIT} --reward_mean -0.81640625 --reward_std 2.953125
        --reward_model yyqoni/rlhflow-llama-3-sft-8b-v2-bandit-rm-700k""",
    ),
    (
        "train-ppo",
        "exp meta_llama_3_1_instruct_8b Ultrafeedback 1 peak 2 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["llama31"]} {PPO} {PPO_SIZES["llama31"]} {DENSE} {FITS["llama31"]} --reward_level segment
        --entropy_threshold 2
        --reward_model yyqoni/meta-llama-3.1-instruct-8b-segment-rm-700k""",
    ),
    (
        "train-ppo",
        "exp meta_llama_3_1_instruct_8b Ultrafeedback 1 peak 0 avg segment_normalization 0.25 preference700k_60000",
        f"""{TYPE["llama31"]} {PPO} {PPO_SIZES["llama31"]} {DENSE} {FITS["llama31"]} --reward_level token
        --reward_model yyqoni/meta-llama-3-1-instruct-8b-token-rm-700k""",
    ),
    (
        "train-ppo",
        "exp meta_llama_3_1_instruct_8b Ultrafeedback 1 peak 1000 avg segment_last_avg 0.2 preference700k_60000",
        f"""{TYPE["llama31"]} {PPO} {PPO_SIZES["llama31"]} {BANDIT} --reward_mean -0.828125 --reward_std 2.9375
        --reward_model yyqoni/meta-llama-3-1-instruct-8b-bandit-rm-700k""",
    ),
]
TINY_PPO = """--model runs/tiny-sft --data runs/world/prompts_train.jsonl
    --eval_prompts runs/world/prompts_heldout.jsonl --output_dir runs/exp --episodes 1 --agg_func avg
    --rollout_batch_size 64 --train_batch_size 32 --micro_batch_size 32 --ppo_epochs 2 --max_prompt_length 128
    --max_new_tokens 40 --kl_coefficient 0.2 --actor_lr 3e-4 --critic_lr 2e-3 --device cpu --zero_stage 0 --eval_every 5
    --save_every 0 --samples_logged 8 --true_reward denserl.world.language:true_reward"""
TINY = [
    (
        "train-rm",
        "exp tiny world 2 peak 1 avg",
        """--model runs/tiny-sft --data runs/world/preferences_train.jsonl --output_dir runs/exp --epochs 2
        --eval_data runs/world/preferences_val.jsonl --reward_level segment --entropy_threshold 1 
        --agg_func avg --batch_size 16 --micro_batch_size 16 --lr 2e-3 --warmup_ratio 0.05 --max_length 256
        --max_prompt_length 128 --logging_steps 25 --device cpu --save_steps 0 --eval_steps 0""",
    ),
    (
        "fit-normalizer",
        "runs/tiny-token-rm/ peak 0 avg",
        """--reward_model runs/tiny-token-rm --sft_model runs/tiny-sft
        --data runs/world/preferences_train.jsonl --pairs 12000 --max_length 256 --entropy_threshold 0
        --max_prompt_length 128 --agg_func avg --device cpu --output_dir runs/fit/tiny-token-rm-0""",
    ),
    (
        "train-ppo",
        "exp tiny world 1 peak 1 avg segment_normalization 0.25 own",
        f"""{TINY_PPO} --reward_model runs/tiny-segment-rm --reward_level segment --entropy_threshold 1 --normalizer location
        --assignment segment_normalization --value_clip 0.25""",
    ),
    (
        "train-ppo",
        "exp tiny world 1 peak 1000 avg segment_last_avg 0.2 own",
        f"{TINY_PPO} --reward_model runs/tiny-bandit-rm {BANDIT}",
    ),
]
# One in three of the later ones; the others take as long again.
SOME = PUBLISHED[:6] + PUBLISHED[6::3] + TINY[:1]
OTHERS = [row for row in PUBLISHED + TINY if row not in SOME]
RM_ARGS = "exp phi3-instruct preference_700K 1 peak 1.75 avg"
PPO_ARGS = "{exp} phi3-instruct Ultrafeedback 2 peak {C} avg {kind} 0.25 preference700k_60000"


def ppo_args(exp="exp", C="1.75", kind="segment_normalization") -> str:
    return PPO_ARGS.format(exp=exp, C=C, kind=kind)


def dry(name: str, args: str):
    """The options of the printed command, its launcher, and the notes."""
    lines, notes = paper_scripts.plan(name, shlex.split(args), check_files=False)
    words = [word for line in lines for word in line]
    at = words.index("-m")
    assert words[at + 1] == COMMANDS[name].__name__
    return options(name, words[at + 2 :]), words[:at], notes


def options(name: str, argv: list[str]):
    return parse(COMMANDS[name].Options, name, argv)


def script(name: str, args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a script with this test's interpreter first on the path."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env}
    command = ["bash", str(SCRIPTS / paper_scripts.RECIPES[name].script), *shlex.split(args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("name, args, expected", SOME + [pytest.param(*row, marks=pytest.mark.long) for row in OTHERS])
def test_command_is_the_one_written_by_hand(name, args, expected):
    found, launcher, _ = dry(name, args)
    assert found == options(name, shlex.split(expected))
    assert launcher == ["python"]


@pytest.mark.parametrize(
    "name, args, expected", SOME[:9:3] + [pytest.param(*row, marks=pytest.mark.long) for row in SOME if row not in SOME[:9:3]]
)
def test_script_prints_a_command_that_can_be_pasted(name, args, expected, tmp_path):
    run = script(name, args + " --gpus 8 --output_dir 'a b'", tmp_path, DRY_RUN="1")
    assert run.returncode == 0 and not run.stderr
    pasted = subprocess.run(
        ["bash", "-c", 'torchrun() { printf "%s\\0" "$@"; }\n' + run.stdout], capture_output=True, text=True, check=True
    )
    launch = ["--standalone", "--nproc_per_node", "8", "-m", COMMANDS[name].__name__]
    words = pasted.stdout.split("\0")[:-1]
    assert words[:5] == launch
    assert options(name, words[5:]) == options(name, [*shlex.split(expected), "--output_dir", "a b"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind, normalizer",
    [
        ("segment_normalization", "location"),
        ("same_segment_last", "location"),
        ("every_segment_last", "location"),
        ("segment_last_avg", "scalar"),
        ("segment_last_logsumexp", "scalar"),
    ],
)
def test_reward_type_sets_assignment_and_normaliser(kind, normalizer):
    found, _, _ = dry("train-ppo", ppo_args(kind=kind))
    assert (found.assignment, found.normalizer) == (kind, normalizer)
    assert found.reward_mean is None  # the published means belong to the bandit reward models


def test_iterations_replace_episodes():
    found, _, _ = dry("train-ppo", ppo_args() + " --iterations 7")
    assert (found.iterations, found.episodes) == (7, 1.0)


@pytest.mark.parametrize(
    "exp, C, flags",
    [
        ("ppo_no_normalization", "1.75", "--normalizer none"),
        ("length_norm_ppo", "0", "--length_norm"),
        ("ppo-end_penalty_m0d05", "1.75", "--penalise_unfinished --penalty 0.05"),
        ("end_penalty_m1d5_x", "1.75", "--penalise_unfinished --penalty 1.5"),
        ("ppo_len_thres_800", "1.75", "--penalise_longer_than 800"),
        (
            "no_normalization_end_penalty_m0d1_len_thres_64",
            "1000",
            "--normalizer none --penalise_unfinished --penalty 0.1 --penalise_longer_than 64",
        ),
    ],
)
def test_words_in_the_name_become_flags_and_one_note(exp, C, flags):
    found, _, notes = dry("train-ppo", ppo_args(exp=exp, C=C))
    plain = shlex.split(f"{ppo_args(C=C)} --output_dir runs/{exp} {flags}")
    lines, _ = paper_scripts.plan("train-ppo", plain, check_files=False)
    same = options("train-ppo", [word for line in lines for word in line][3:])
    if "none" in flags:  # what only another normaliser would use is left out
        same.fit = same.reward_mean = same.reward_std = None
    assert found == same
    assert len(notes) == 1 and flags in notes[0] and exp in notes[0]


@pytest.mark.parametrize(
    "exp", ["plain", "lengths_norm", "no_normalizations", "length_normal", "end_penalty_0d05", "len_thres_x"]
)
def test_other_names_change_nothing_but_the_folder(exp):
    found, _, notes = dry("train-ppo", ppo_args(exp=exp))
    usual, _, _ = dry("train-ppo", ppo_args())
    assert found.output_dir == f"runs/{exp}" and not notes
    found.output_dir = usual.output_dir
    assert found == usual


def test_words_mean_nothing_to_the_reward_model():
    found, _, notes = dry("train-rm", RM_ARGS.replace("exp", "exp_length_norm_no_normalization", 1))
    usual, _, _ = dry("train-rm", RM_ARGS)
    found.output_dir = usual.output_dir
    assert found == usual and not notes


def test_further_flags_win_and_own_dataset_and_gpus():
    args = (
        RM_ARGS.replace("preference_700K", "my/pairs.jsonl") + " --lr 3e-6 --gpus=2 --no-gradient_checkpointing --zero-stage 2"
    )
    found, launcher, _ = dry("train-rm", args)
    assert (found.data, found.lr, found.gradient_checkpointing, found.zero_stage) == (["my/pairs.jsonl"], 3e-6, False, 2)
    assert found.on_bad_row == "stop"
    assert launcher == ["torchrun", "--standalone", "--nproc_per_node", "2"]


def test_config_file_wins_over_the_table(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("lr: 2.0e-6\nbatch_size: 64\n")
    found, _, _ = dry("train-rm", f"{RM_ARGS} --config {config} --batch_size 32")
    assert (found.lr, found.batch_size) == (2e-6, 32)


def test_published_bandit_means_are_not_for_another_reward_model():
    found, _, _ = dry("train-ppo", ppo_args(C="1000", kind="segment_last_avg") + " --reward_model runs/mine")
    assert (found.reward_model, found.reward_mean, found.reward_std) == (["runs/mine"], None, None)


@pytest.mark.parametrize(
    "C, kind, further, read_at",
    [
        ("1000", "segment_last_avg", "", "end_of_turn"),
        # Where it is read does not depend on how its rewards are paid or normalised.
        ("1000", "segment_normalization", "--normalizer none", "end_of_turn"),
        ("1000", "segment_last_avg", "--read_at last_token", "last_token"),
        ("1000", "segment_last_avg", "--reward_model runs/mine", None),
        ("1000", "segment_last_avg", "--reward_model runs/mine --read_at end_of_turn", "end_of_turn"),
        ("1.75", "segment_normalization", "", None),
        ("0", "segment_normalization", "", None),
    ],
)
def test_the_tables_bandit_models_are_read_at_the_end_of_turn(C, kind, further, read_at):
    found, _, _ = dry("train-ppo", f"{ppo_args(C=C, kind=kind)} {further}")
    assert found.read_at == read_at


def test_constants_are_not_for_another_normaliser():
    found, _, _ = dry("train-ppo", ppo_args() + " --normalizer none")
    assert (found.normalizer, found.fit) == ("none", None)


def test_a_local_reward_model_is_fitted_as_the_model_type_of_its_sft_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"segment_reward": {"sft_model": "microsoft/Phi-3-mini-4k-instruct"}}))
    found, _, notes = dry("fit-normalizer", "runs/mine peak 2 avg")
    expected = f"--reward_model runs/mine {FIT} --entropy_threshold 2 --output_dir runs/fit/mine-2"
    assert found == options("fit-normalizer", shlex.split(expected))
    assert notes == []
    (folder / "config.json").write_text(json.dumps({"segment_reward": {"sft_model": str(tmp_path / "runs/tiny-sft")}}))
    found, _, _ = dry("fit-normalizer", "runs/mine peak 2 avg")
    assert found.data == ["runs/world/preferences_train.jsonl"] and found.pairs == 12000


@pytest.mark.parametrize(
    "config",
    [
        None,
        "no json",
        "{}",
        '{"segment_reward": {"sft_model": "other"}}',
        '{"segment_reward": 3}',
        '{"segment_reward": {"sft_model": []}}',
    ],
)
def test_reward_model_of_no_known_type(config, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="config.json.*(phi3-instruct|yyqoni)") as error:
        dry("fit-normalizer", f"{tmp_path} peak 1.75 avg")
    assert "denserl fit-normalizer" in error.value.fix


@pytest.mark.parametrize(
    "name, args, found, fix",
    [
        ("train-rm", "exp phi3-instruct preference_700K 1 peak 1.75", "6 arguments .*expected 7: EXP MODEL_TYPE", "e.g. bash"),
        ("train-rm", f"{RM_ARGS} more --lr 1", "8 arguments", "e.g. bash"),
        (
            "train-rm",
            RM_ARGS.replace("phi3-instruct", "phi4"),
            "MODEL_TYPE is 'phi4'",
            "phi3-instruct, .*tiny.*model_types.yaml",
        ),
        ("train-rm", RM_ARGS.replace("peak", "valley"), "SEGMENT_METHOD is 'valley'.*peak", "use peak"),
        ("train-rm", RM_ARGS.replace("avg", "max"), "AGG_FUNC is 'max'.*avg", "use avg"),
        ("train-rm", RM_ARGS.replace("1.75", "high"), "C is 'high'", "0 is the token level, 1000 bandit"),
        ("train-rm", RM_ARGS.replace("1.75", "nan"), "C is 'nan'", "1000 bandit"),
        ("train-rm", RM_ARGS.replace("1.75", "-1"), "C is '-1'", "1000 bandit"),
        ("train-rm", RM_ARGS.replace(" 1 ", " one "), "EPOCHS is 'one'", "e.g. 1"),
        ("train-rm", RM_ARGS.replace("exp", "a/b", 1), "EXP is 'a/b'", "slashes"),
        ("train-rm", RM_ARGS.replace("exp", "..", 1), "EXP is '..'", "slashes"),
        ("train-rm", RM_ARGS.replace("exp", "''", 1), "EXP is ''", "slashes"),
        ("train-rm", f"{RM_ARGS} --gpus all", "--gpus is 'all'", "--gpus 8"),
        ("train-rm", f"{RM_ARGS} --gpus", "--gpus is ''", "--gpus 8"),
        ("train-rm", "tiny-sft tiny world 1 peak 1 avg", "write into runs/tiny-sft, which holds its --model", "another EXP"),
        ("train-rm", "world tiny world 1 peak 1 avg", "write into runs/world, which holds its --data", "another EXP"),
        ("fit-normalizer", "nobody/rm peak 1.75 avg", "RM_PATH nobody/rm is neither .*yyqoni/Phi-3", "train_seg_rm.sh"),
        ("fit-normalizer", "runs/tiny-bandit-rm peak 1000 avg", "no line to fit", "without a fit"),
        ("train-ppo", ppo_args().replace("preference700k_60000", "mine"), "FIT_TAG is 'mine'.*own, preference700k", "use own"),
        ("train-ppo", ppo_args(kind="even"), "REWARD_TYPE is 'even'.*segment_last_logsumexp", "use segment_normalization"),
        ("train-ppo", ppo_args().replace("0.25", "-0.25"), "VALUE_CLIP is '-0.25'", "e.g."),
        ("train-ppo", ppo_args().replace(" 2 ", " two "), "EPISODES is 'two'", "e.g."),
        ("train-ppo", ppo_args(exp="length_norm"), "length_norm and C is 1.75.*token level only", "C = 0"),
    ],
)
def test_mistakes(name, args, found, fix):
    with pytest.raises(UserError, match=found) as error:
        dry(name, args)
    assert re.search(fix, error.value.fix)


def test_missing_level_and_missing_key_of_an_entry(tmp_path, monkeypatch):
    table, changed = paper_scripts.TABLE.read_text(), tmp_path / "model_types.yaml"
    monkeypatch.setattr("denserl.cli.paper_scripts.table.TABLE", changed)
    changed.write_text(table.replace("      token: yyqoni/Phi-3-mini-4k-instruct-token-rm-700k\n", ""))
    with pytest.raises(UserError, match="phi3-instruct has no reward model of the token level"):
        dry("train-ppo", ppo_args(C="0"))
    found, _, _ = dry("train-ppo", ppo_args(C="0") + " --reward_model runs/mine")
    assert found.reward_model == ["runs/mine"]
    changed.write_text(table.replace("    sft_model: runs/tiny-sft\n", ""))
    with pytest.raises(UserError, match="model type tiny lacks sft_model"):
        dry("train-ppo", ppo_args())


def test_missing_local_inputs_name_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ppo = "exp tiny world 1 peak 0 avg segment_normalization 0.25 own".split()
    for made, maker in [
        ("runs/tiny-sft", "denserl train-sft --model runs/world/base"),
        ("runs/tiny-token-rm", "train_seg_rm.sh tiny-token-rm tiny world 1 peak 0 avg"),
        ("runs/world/prompts_train.jsonl", "denserl make-world --output_dir runs/world"),
        ("runs/world/prompts_heldout.jsonl", "denserl make-world --output_dir runs/world"),
    ]:
        with pytest.raises(UserError, match=f"{made} does not exist") as error:
            paper_scripts.plan("train-ppo", ppo)
        assert maker in error.value.fix
        Path(made).parent.mkdir(parents=True, exist_ok=True)
        Path(made).touch()
    paper_scripts.plan("train-ppo", ppo)


def test_commands_that_make_local_inputs_parse():
    for made, command in paper_scripts.read_table()["made_by"].items():
        program, name, *argv = shlex.split(command)
        if program == "denserl":
            found = parse(importlib.import_module(f"denserl.cli.{name.replace('-', '_')}").Options, name, argv)
        else:
            assert program == "bash" and (SCRIPTS / Path(name).name).is_file()
            recipe = next(key for key, value in paper_scripts.RECIPES.items() if value.script == Path(name).name)
            found, _, _ = dry(recipe, shlex.join(argv))
        assert made == found.output_dir


@pytest.mark.parametrize("name", list(COMMANDS))
def test_usage_without_arguments_shows_an_example_that_works(name, capsys):
    paper_scripts.main([name])
    shown = capsys.readouterr().out
    example = next(line for line in shown.splitlines() if "e.g. bash" in line).split(".sh ", 1)[1]
    dry(name, example)
    assert all(argument in shown for argument in paper_scripts.RECIPES[name].arguments)


def test_unknown_recipe(capsys):
    for argv in ([], ["train"]):
        with pytest.raises(SystemExit) as stop:
            paper_scripts.main(argv)
        assert stop.value.code == 2 and "train-rm, fit-normalizer, train-ppo" in capsys.readouterr().err


def test_becomes_the_printed_command(monkeypatch, capsys):
    ran = []
    monkeypatch.delenv("DRY_RUN", raising=False)
    monkeypatch.setattr(os, "execv", lambda path, argv: ran.append((path, argv)))
    for gpus in ("", "--gpus 2"):
        paper_scripts.main(["train-rm", *shlex.split(f"{RM_ARGS} {gpus}")])
    (python, plain), (same, several) = ran
    assert python == same == sys.executable
    assert plain[:3] == [sys.executable, "-m", "denserl.cli.train_rm"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert several[: len(launch) + 2] == [*launch, "-m", "denserl.cli.train_rm"]
    assert plain[3:] == several[len(launch) + 2 :]
    assert options("train-rm", plain[3:]).lr == 1e-6
    shown = capsys.readouterr().out
    assert shown.index("python -m denserl.cli.train_rm") < shown.index("torchrun --standalone --nproc_per_node 2 -m")


def test_scripts_pass_on_exit_status_and_messages(tmp_path):
    wrong = script("train-rm", "exp phi4 world 1 peak 1 avg", tmp_path, DRY_RUN="")
    assert wrong.returncode == 2 and wrong.stderr.startswith("train_seg_rm.sh: MODEL_TYPE is 'phi4'")
    assert "fix: " in wrong.stderr and "Traceback" not in wrong.stderr
    of_command = script("train-rm", f"{RM_ARGS} --lr fast", tmp_path, DRY_RUN="0")
    assert of_command.returncode == 2 and "lr" in of_command.stderr and "Traceback" not in of_command.stderr


def test_a_printed_command_leaves_torch_alone(tmp_path):
    code = f"import sys; from denserl.cli import paper_scripts; paper_scripts.main(['train-rm', *{RM_ARGS.split()}])"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "DRY_RUN": "1"}, cwd=tmp_path).returncode == 0
