"""LoRA, gradient checkpointing and bf16, each alone and all together: each trains, goes on from a checkpoint to the bit, and
what is written says what the model in memory said.
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from rank_hooks import each, gather_every_parameter, keep_outputs, outputs
from ranks import run
from real_runs import differences
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from denserl.models.loading import load_policy
from denserl.models.reward_models import load_reward_model, new_reward_model

LORA = {"lora_rank": 4, "lora_alpha": 32}
VARIANTS = {"lora": LORA, "checkpointing": {"gradient_checkpointing": True}, "bf16": {"dtype": "bf16"}}
VARIANTS["all"] = {key: value for variant in VARIANTS.values() for key, value in variant.items()}
PPO = {"iterations": 2, "save_every": 1, "micro_batch_size": 4}
SUPERVISED = {"epochs": 1, "save_steps": 2, "save_total_limit": 5, "micro_batch_size": 2}
SHORT = {"ppo": PPO, "rm": SUPERVISED, "meta": SUPERVISED, "sft": SUPERVISED}
HALF_WAY = {"ppo": "iteration-000001", "rm": "step-000002", "meta": "step-000002", "sft": "step-000002"}
REWARD_MODELS = ("rm", "meta")
# ZeRO stage and ranks.
LAYOUTS = [(0, 1), (3, 2)]
# Merged adapters say the same to rounding: one product of weights where there were two. In bf16 each merged weight is cut to 8
# significant bits, so that outputs are off by some units of 2^-8 of the largest; the adapters in `adapter/` lose nothing.
MERGED = {torch.float32: 1e-5, torch.bfloat16: 2**-5}


def trained(name: str, variant: str, layout: tuple[int, int], trainings, folder: Path) -> Path:
    """The output of a run of which a copy went on from its checkpoint half way; both end with the same bits."""
    zero_stage, ranks = layout
    options = SHORT[name] | VARIANTS[variant] | {"zero_stage": zero_stage}
    if "lora_rank" in options and name != "ppo":
        # Dropout takes random numbers, with which a resumed run must go on.
        options["lora_dropout"] = 0.1
    before = partial(each, gather_every_parameter, partial(keep_outputs, folder / "outputs.pt"))
    whole = run(trainings[name], folder / "whole", ranks, before, **options)
    half = Path("checkpoints") / HALF_WAY[name]
    shutil.copytree(whole / half, folder / "resumed" / half)
    for file in whole.glob("*.jsonl"):
        shutil.copy(file, folder / "resumed")
    run(trainings[name], folder / "resumed", ranks, gather_every_parameter, resume=True, **options)
    assert not differences(whole, folder / "resumed")
    return whole


def loaded(name: str, folder: Path, dtype: torch.dtype) -> list[Tensor]:
    """The outputs of a written model, loaded by denserl's strict loader and by the stock class."""
    classifier = name in REWARD_MODELS or folder.name == "critic"
    stock, strict = AutoModelForCausalLM, load_policy
    if classifier:
        stock, strict = AutoModelForSequenceClassification, load_reward_model
    return [outputs(strict(str(folder), dtype)), outputs(stock.from_pretrained(folder, dtype=dtype))]


def with_adapter(name: str, start: Path, adapter: Path, dtype: torch.dtype) -> Tensor:
    """The outputs of the model that training started from under the adapters that were written, put together by peft."""
    from peft import PeftModel

    base = (new_reward_model if name in REWARD_MODELS else load_policy)(str(start), dtype)
    return outputs(PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False))


def largest_difference(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def says_the_same(name: str, variant: str, layout: tuple[int, int], trainings, world, folder: Path) -> None:
    whole = trained(name, variant, layout, trainings, folder)
    in_memory = torch.load(folder / "outputs.pt")
    dtype, adapter = torch.bfloat16 if variant in ("bf16", "all") else torch.float32, whole / "adapter"
    assert adapter.is_dir() == (variant in ("lora", "all"))
    parts = {"model": whole, "critic": whole / "critic"}
    assert in_memory.keys() == ({"model", "critic"} if name == "ppo" else {"model"})
    for part, expected in in_memory.items():
        merged = adapter.is_dir() and part == "model"
        strict, stock = loaded(name, parts[part], dtype)
        same = MERGED[dtype] if merged else 0.0
        assert largest_difference(strict, expected) <= same
        # The head of the stock class rounds to 8 bits, ours not at all.
        rounds = dtype == torch.bfloat16 and (name in REWARD_MODELS or part == "critic")
        assert largest_difference(stock, expected) <= (max(same, 2**-8) if rounds else same)
    if adapter.is_dir():
        assert torch.equal(with_adapter(name, world.sft, adapter, dtype), in_memory["model"])


# A reward model with adapters, in one process: tests/trainer/test_reward_trainer.py; PPO's critic is one, too.
@pytest.mark.parametrize("name", ["ppo", pytest.param("rm", marks=pytest.mark.long)])
def test_all_together(name, trainings, world, tmp_path):
    says_the_same(name, "all", (0, 1), trainings, world, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHORT)
def test_a_variant(name, variant, layout, trainings, world, tmp_path):
    says_the_same(name, variant, layout, trainings, world, tmp_path)
