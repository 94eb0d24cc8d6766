"""Adapters on a base in 4 bits: the same on one and two ranks, and after a resume, at the ZeRO stages that there are."""

import shutil

import pytest
import tiny_models
from ranks import run
from real_runs import differences
from test_zero3 import same_numbers

pytestmark = pytest.mark.long
ADAPTERS = {"load_in_4bit": True, "lora_rank": 4, "micro_batch_size": 4}
HALF_WAY = {
    "ppo": ("iteration-000002", {"save_every": 2, "keep_checkpoints": 5}),
    "rm": ("step-000004", {"save_steps": 4, "save_total_limit": 5}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    return tiny_models.save_language_model(tmp_path_factory.mktemp("base"), stops=60, hidden=64, inner=128)


@pytest.mark.parametrize("name, stage", [("sft", 0), ("sft", 2), ("rm", 1), ("ppo-of-groups", 2)])
def test_two_ranks(name, stage, trainings, base, tmp_path):
    one = run(trainings[name], tmp_path / "one", model=base, **ADAPTERS)
    two = run(trainings[name], tmp_path / "two", 2, zero_stage=stage, **ADAPTERS | {"model": base, "micro_batch_size": 2})
    same_numbers(one, two)


@pytest.mark.parametrize("name", HALF_WAY)
def test_two_ranks_go_on_from_a_checkpoint_to_the_bit(name, trainings, base, tmp_path):
    half, saving = HALF_WAY[name]
    options = ADAPTERS | saving | {"model": base, "zero_stage": 2, "micro_batch_size": 2}
    whole = run(trainings[name], tmp_path / "whole", 2, **options)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoints" / half, resumed / "checkpoints" / half)
    for file in whole.glob("*.jsonl"):
        shutil.copy(file, resumed)
    run(trainings[name], resumed, 2, resume=True, **options)
    assert not [found for found in differences(whole, resumed) if "checkpoints" not in found]
