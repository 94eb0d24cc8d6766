"""Models of the hub at a revision: what is loaded is what that commit holds, wherever a hub name is read."""

import json
import shutil

import pytest
import tiny_models
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from denserl.cli import train_sft
from denserl.errors import UserError
from denserl.memory.config import PlanConfig
from denserl.models.loading import load_config, load_policy, local_folder
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.ppo_config import PPOConfig

NAME = "someone/tiny"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def commits(tmp_path, monkeypatch) -> dict:
    """Revision -> the folder of what it holds, in the cache of a hub that is not reached: models of other seeds."""
    repository = tmp_path / "hub" / ("models--" + NAME.replace("/", "--"))
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        tiny_models.save_language_model(repository / "snapshots" / commit, seed=seed)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return {revision: repository / "snapshots" / commit for revision, commit in COMMITS.items()}


def test_every_loader_takes_the_revision_in_the_name(commits):
    first, second = (load_file(folder / "model.safetensors") for folder in commits.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, expected in ((NAME, first), (f"{NAME}@v2", second), (f"{NAME}@{COMMITS['v2']}", second)):
        loaded = load_policy(name, "fp32").state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
        assert load_tokenizer(name).eos_token and load_config(name).model_type == "llama"
    assert local_folder(f"{NAME}@v2") == commits["v2"] and local_folder(NAME) == commits["main"]
    shutil.rmtree(commits["main"])
    assert load_config(f"{NAME}@v2").model_type == "llama"
    with pytest.raises(UserError, match="v3"):
        load_policy(f"{NAME}@v3", "fp32")


def test_a_run_takes_its_models_at_the_revision(commits, tmp_path):
    """At learning rate 0 the output is what was loaded, and a resumed run compares by content."""
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Tell me.", "response": "The kettle hums."}) + "\n")
    options = {"model": NAME, "data": data, "lr": 0, "batch_size": 1, "micro_batch_size": 1, "save_steps": 1, "device": "cpu"}

    def run(**more):
        with tiny_models.restored_environment():
            argv = tiny_models.as_argv({**options, "output_dir": tmp_path / "run", "epochs": 1, **more})
            tiny_models.run_command(train_sft, "train-sft", argv)

    run(revision="v2")
    written, second = (load_file(path / "model.safetensors") for path in (tmp_path / "run", commits["v2"]))
    assert all(torch.equal(written[name], tensor) for name, tensor in second.items())
    run(model=commits["v2"], resume=True)
    with pytest.raises(UserError, match=r"weights of model: \w+, now \w+"):
        run(resume=True)


def test_the_option_is_for_hub_names_alone(tmp_path):
    options = {"data": ["rows.jsonl"], "output_dir": str(tmp_path / "out"), "revision": "v2"}
    pinned = PPOConfig(model=NAME, reward_model=[str(tmp_path), "other/rm", "other/rm2@v1"], **options)
    assert pinned.model == f"{NAME}@v2"
    assert pinned.reward_model == [str(tmp_path), "other/rm@v2", "other/rm2@v1"]
    pinned.check()
    with pytest.raises(UserError, match="`revision` v2 has no effect where no model is a hub name"):
        PPOConfig(model=str(tmp_path), reward_model=[f"{NAME}@v1"], **options).check()
    with pytest.raises(UserError, match="has no effect"):
        PlanConfig(model=str(tmp_path), revision="v2").check()
