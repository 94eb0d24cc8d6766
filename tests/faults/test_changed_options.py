"""Options that changed since the checkpoint: harmless ones are logged, harmful ones refused by name, and nothing is touched."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from on_ranks import ended, start_ranks
from real_runs import checkpoints

# Option -> another value.
REFUSED_PPO = {
    "entropy_threshold": 0,
    "zero_stage": 2,
    "iterations": 8,
    "actor_lr": 1e-4,
    "max_new_tokens": 6,
    "rollout_batch_size": 16,
    "train_batch_size": 8,
    "ppo_epochs": 1,
    "kl_coefficient": 0.5,
    "gamma": 0.9,
    "seed": 7,
    "ema_decay": 0.9,
    "assignment": "repeat",
    "normalizer": "none",
}
REFUSED_RM = {
    "entropy_threshold": 5.0,
    "reward_level": "token",
    "zero_stage": 0,
    "epochs": 4,
    "lr": 1e-4,
    "batch_size": 10,
    "label_smoothing": 0.1,
    "use_margin": True,
    "flip_frac": 0.5,
    "head_type": "mlp",
    "reg_type": "sft",
    "max_prompt_length": 40,
    "seed": 7,
    "columns": "prompt=prompt",
    "warmup_ratio": 0.5,
}
# The words under which an option is refused where they are not its name: a threshold may be a flag or the reward model's.
WORDS = {"entropy_threshold": ["threshold of reward_model: 5.3, now 0"]}
LONG = [("ppo-zero0", "reward_model"), ("rm-zero2", "model")]
HARMLESS_PPO = {"save_every": 3, "keep_checkpoints": 1, "samples_logged": 1, "eval_every": 3, "micro_batch_size": 4}
HARMLESS_RM = {"save_steps": 3, "save_total_limit": 1, "logging_steps": 2, "eval_steps": 5, "score_tokens": 4096}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(half, words: list[str], **options) -> None:
    """The run ends with status 2 and these words, and has changed no file."""
    before = contents(half.output)
    code, said = half.training.run(half.output, **options)
    assert code == 2 and "Traceback" not in said and "fix:" in said, said[-3000:]
    message = said[said.rindex("was written with other settings") :]
    assert all(word in message for word in words), message
    assert contents(half.output) == before


@pytest.mark.long
@pytest.mark.parametrize(("option", "value"), REFUSED_PPO.items(), ids=REFUSED_PPO)
def test_a_harmful_change_of_ppo_is_refused_by_name(option, value, half_done):
    refused(half_done("ppo-zero0"), WORDS.get(option, [f"{option}: "]), **{option: value})


@pytest.mark.long
@pytest.mark.parametrize(("option", "value"), REFUSED_RM.items(), ids=REFUSED_RM)
def test_a_harmful_change_of_a_reward_model_is_refused_by_name(option, value, half_done):
    refused(half_done("rm-zero2"), [f"{option}: "], **{option: value})


def test_all_harmful_changes_are_named_at_once(half_done):
    refused(
        half_done("ppo-zero0"),
        ["zero_stage: 0, now 2", "gamma: 1.0, now 0.9", "seed: 42, now 7"],
        zero_stage=2,
        gamma=0.9,
        seed=7,
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [("ppo-zero0", "model"), *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)],
)
def test_other_weights_are_refused_and_the_same_ones_elsewhere_are_not(name, option, half_done, world, tmp_path):
    half = half_done(name)
    (output,) = tmp_path.glob("run")
    path = Path(half.training.arguments(output)[half.training.arguments(output).index(f"--{option}") + 1])
    moved = shutil.copytree(path, tmp_path / "moved")
    code, said = half.training.run(half.output, **{option: moved})
    assert code == 0 and f"{option} was " in said and str(path) in said, said[-3000:]
    other = tmp_path / "other"
    if option == "model":
        tiny_models.save_language_model(other, seed=5, stops=60 * name.startswith("ppo"))
    else:
        shutil.copytree(path, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    half.output.joinpath("model.safetensors").unlink()
    refused(half, [f"weights of {option}: "], **{option: other})


@pytest.mark.parametrize("name", ["ppo-zero0", pytest.param("rm-zero2", marks=pytest.mark.long)])
def test_another_content_of_the_data_is_refused(name, half_done, tmp_path):
    half = half_done(name)
    arguments = half.training.arguments(half.output)
    lines = Path(arguments[arguments.index("--data") + 1]).read_text().splitlines()
    changed = tmp_path / "data.jsonl"
    changed.write_text("\n".join([*lines[:-1], lines[-1].replace("oats", "oars").replace("oat", "oar")]) + "\n")
    refused(half, ["content of "], data=changed)


@pytest.mark.parametrize("name", ["ppo-zero0", pytest.param("rm-zero2", marks=pytest.mark.long)])
def test_another_number_of_ranks_is_refused(name, half_done, tmp_path):
    half = half_done(name)
    before = contents(half.output)
    codes, said = ended(start_ranks(half.training, half.output))
    assert codes == [2, 2], said[-3000:]
    assert "ranks: 1, now 2" in said and "Traceback" not in said
    assert contents(half.output) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [("ppo-zero0", HARMLESS_PPO), pytest.param("rm-zero2", HARMLESS_RM, marks=pytest.mark.long)],
    ids=["ppo", "rm"],
)
def test_harmless_changes_are_logged(name, options, half_done):
    half = half_done(name)
    shutil.rmtree(checkpoints(half.output)[-1])
    newest = checkpoints(half.output)[-1].name
    code, said = half.training.run(half.output, **options)
    assert code == 0, said[-3000:]
    for option, value in options.items():
        then = half.training.settings.get(option)
        line = next(line for line in said.splitlines() if line.startswith(f"{option} was "))
        assert (
            line == f"{option} was {then if then is not None else line.split()[2]} when {newest} was written; now it is {value}"
        )
