"""A gate over frozen attributes: the same on one and two ranks at every ZeRO stage, after a resume, and read back."""

import shutil
from pathlib import Path

import pytest
import torch
from rank_hooks import gather_every_parameter
from ranks import run
from real_runs import differences
from safetensors.torch import load_file
from test_zero3 import same_numbers

from denserl.models.heads import Head
from denserl.models.loading import match_embeddings
from denserl.models.reward_models import new_reward_model
from denserl.models.tokenizers import load_tokenizer

GATED = {"head_type": "gated", "debias": "long", "head_width": 16, "epochs": 1}


@pytest.fixture(scope="session")
def attributes(world, tmp_path_factory) -> Path:
    """A model that rates three attributes, cut by the SFT model's entropies."""
    folder, tokenizer = tmp_path_factory.mktemp("attributes"), load_tokenizer(str(world.sft))
    head = Head("attributes", names=("help", "long", "style"), weights=(1.0, 0.0, 1.0))
    model = new_reward_model(str(world.sft), "fp32", head=head)
    match_embeddings(model, tokenizer)
    with torch.no_grad():
        model.score.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    stored = {"sft_model": str(world.sft), "entropy_threshold": world.threshold, "read_at": "end_of_turn"}
    model.config.segment_reward = {**model.config.segment_reward, **stored}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gate_alone_has_learned(folder: Path, start: Path) -> None:
    before, after = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = after.keys() - before.keys()
    assert {name.removeprefix("score.").partition(".")[0] for name in added} == {"gate", "transform"}
    # Column of the attribute that is left out: no objective any more.
    assert after["score.transform"][:, 1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.long
def test_two_ranks_at_zero_3(trainings, attributes, tmp_path):
    options = GATED | {"model": attributes, "head_dropout": 0}
    one = run(trainings["rm"], tmp_path / "one", **options)
    two = run(trainings["rm"], tmp_path / "two", 2, gather_every_parameter, zero_stage=3, micro_batch_size=2, **options)
    same_numbers(one, two)
    gate_alone_has_learned(two, attributes)


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks(stage, trainings, attributes, tmp_path):
    options = GATED | {"model": attributes, "head_dropout": 0}
    one = run(trainings["rm"], tmp_path / "one", **options)
    same_numbers(one, run(trainings["rm"], tmp_path / "two", 2, zero_stage=stage, micro_batch_size=2, **options))


@pytest.mark.long
@pytest.mark.parametrize("stage, ranks", [(0, 1), (3, 2)])
def test_goes_on_from_a_checkpoint(stage, ranks, trainings, attributes, tmp_path):
    """With what its attributes were freed of, which is not found anew; with dropout."""
    options = GATED | {"model": attributes, "zero_stage": stage, "micro_batch_size": 2}
    options |= {"save_steps": 2, "save_total_limit": 5}
    whole = run(trainings["rm"], tmp_path / "whole", ranks, **options)
    half = Path("checkpoints") / "step-000002"
    shutil.copytree(whole / half, tmp_path / "resumed" / half)
    for file in whole.glob("*.jsonl"):
        shutil.copy(file, tmp_path / "resumed")
    run(trainings["rm"], tmp_path / "resumed", ranks, resume=True, **options)
    assert not differences(whole, tmp_path / "resumed")
    gate_alone_has_learned(tmp_path / "resumed", attributes)
