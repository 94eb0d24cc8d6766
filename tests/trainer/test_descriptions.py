"""Models taken out of checkpoints: to the bit what the run wrote where it ended at that step."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from exported_models import exported, is_what_the_run_wrote

from denserl.cli import train_rm, train_sft
from denserl.errors import UserError
from denserl.models.loading import load_policy
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer import descriptions

COMMANDS = {"train-sft": train_sft, "train-rm": train_rm}
SHORT = {"batch_size": 4, "micro_batch_size": 4, "lr": 1e-2, "warmup_ratio": 0.0, "save_steps": 2, "eval_steps": 2}
MLP = {"head_type": "mlp", "head_width": 8, "reg_type": "dpo", "lora_rank": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    tiny_models.save_language_model(root / "sft")
    pairs = tiny_models.boat_pairs(8)
    rows = {"pairs": pairs, "demos": [{"prompt": row["prompt"], "response": row["chosen"]} for row in pairs]}
    for name, found in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return root


def trained(files, command: str, output, **options):
    rows = files / ("demos.jsonl" if command == "train-sft" else "pairs.jsonl")
    settings = {"model": files / "sft", "data": rows, "eval_data": rows, "output_dir": output, "device": "cpu", **SHORT}
    tiny_models.run_command(COMMANDS[command], command, tiny_models.as_argv(settings | options))
    return output


@pytest.mark.parametrize(
    "command, options",
    [
        ("train-sft", {"dtype": "bf16"}),
        ("train-rm", {"zero_stage": 1}),
        ("train-rm", MLP),
        *(
            pytest.param(command, options, marks=pytest.mark.long)
            for command, options in [
                ("train-sft", {"lora_rank": 2, "zero_stage": 2}),
                ("train-rm", {**MLP, "lora_rank": 0, "zero_stage": 2, "dtype": "bf16"}),
                ("train-rm", {"freeze_trunk": True}),
                ("train-rm", {"disentangle": "length"}),
                ("train-rm", {"head_type": "label", "labels": ["+", "-"]}),
                ("train-rm", {"contrastive": "swav", "prototypes": 4}),
                ("train-rm", {"input": "pair", "head_type": "label", "label_ce": "full"}),
                ("train-rm", {"input": "pair", "head_type": "label", "lora_rank": 2}),
            ]
        ),
    ],
    ids=str,
)
def test_a_checkpoint_is_the_model_of_its_step(files, tmp_path, command, options):
    run = trained(files, command, tmp_path / "run", **options)
    is_what_the_run_wrote(run, exported(run / "checkpoints" / "step-000002", tmp_path / "model"))


@pytest.mark.long
def test_a_step_on_the_way_is_that_of_a_run_that_is_as_short_there(files, tmp_path):
    """At a constant rate, the second step of two passes is the last of one; where it was not evaluated, no mean is made up."""
    rate = {"lr_schedule": "cosine", "min_lr_ratio": 1.0}
    short = trained(files, "train-rm", tmp_path / "short", **rate)
    long = trained(files, "train-rm", tmp_path / "long", **rate, epochs=2, save_total_limit=5)
    step = long / "checkpoints" / "step-000002"
    is_what_the_run_wrote(short, exported(step, tmp_path / "model"))
    unseen = trained(files, "train-rm", tmp_path / "unseen", **rate, epochs=2, save_total_limit=5, eval_steps=4)
    found = exported(unseen / "checkpoints" / "step-000002", tmp_path / "other")
    assert tiny_models.same_weights(short, found)
    assert "mean" not in json.loads((found / "config.json").read_text())


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"lora_rank": 2, "advantage": "rloo", "samples_per_prompt": 2}, marks=pytest.mark.long)],
    ids=str,
)
def test_policy_and_critic_of_an_iteration(ppo, tmp_path, options):
    run = ppo(iterations=2, save_every=1, critic_lr=None if options else 1e-3, zero_stage=2, dtype="bf16", **options)
    found = exported(run / "checkpoints" / "iteration-000002", tmp_path / "model")
    if options:  # train-ppo writes no more than the adapters into their folder
        for path in (found / "adapter").iterdir():
            if not path.name.startswith("adapter_"):
                path.unlink()
    is_what_the_run_wrote(run, found)


def test_what_is_said_where_a_checkpoint_is_no_model_and_where_there_is_none(files, tmp_path):
    run = trained(files, "train-sft", tmp_path / "run")
    checkpoint = run / "checkpoints" / "step-000002"
    for load in (lambda path: load_policy(path, "fp32"), load_tokenizer):
        with pytest.raises(UserError) as error:
            load(str(checkpoint))
        assert f"denserl export --checkpoint {checkpoint} --output_dir" in error.value.fix
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        exported(run, tmp_path / "none")
    shutil.copytree(checkpoint, tmp_path / "before")
    shutil.rmtree(tmp_path / "before" / "model")
    manifest = json.loads((tmp_path / "before" / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("model/")}
    (tmp_path / "before" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was written by an earlier version"):
        exported(tmp_path / "before", tmp_path / "early")
    weights = files / "sft" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        tiny_models.save_language_model(files / "sft", seed=1)
        with pytest.raises(UserError, match="is not what the run began with"):
            exported(checkpoint, tmp_path / "other")
    finally:
        weights.write_bytes(kept)


class Hostile:
    """What makes a file where it is unpickled."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


@pytest.mark.parametrize(
    "dtype, name", [("fp32", "*_model_states.pt"), ("bf16", "*_model_states.pt"), ("bf16", "*_optim_states.pt")]
)
def test_nothing_that_a_file_of_weights_names_is_run(files, dtype, name, tmp_path):
    run = trained(files, "train-sft", tmp_path / "run", dtype=dtype)
    (tag,) = (run / "checkpoints" / "step-000002").glob("global_step*")
    (file,) = tag.glob(name)
    torch.save(torch.load(file, weights_only=False) | {"more": Hostile(tmp_path / "made")}, file)
    with pytest.raises(UserError, match="holds more than tensors"):
        descriptions._trained_weights(tag.parent, tag.name)
    assert not (tmp_path / "made").exists()


def test_code_of_a_model_is_not_run_because_a_checkpoint_says_so(files, tmp_path, monkeypatch):
    run = trained(files, "train-sft", tmp_path / "run")
    state = descriptions.read_state
    trusting = lambda folder: (found := state(folder)) | {"settings": found["settings"] | {"trust_remote_code": True}}  # noqa: E731
    monkeypatch.setattr(descriptions, "read_state", trusting)
    with pytest.raises(UserError, match="its model's code would be run"):
        descriptions.write_models(run / "checkpoints" / "step-000002", tmp_path / "model")
    assert not (tmp_path / "model").exists()
