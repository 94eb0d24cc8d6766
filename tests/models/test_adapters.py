"""Adapters: which layers can have them, by peft's own word, and what is said where none of those is named."""

import json

import pytest
import tiny_models
import torch

from denserl.errors import UserError
from denserl.models.adapters import adaptable, prepare_model, recompute_activations
from denserl.models.config import AdapterConfig
from denserl.models.reward_models import new_reward_model

GPT2 = ["c_attn", "c_fc", "c_proj", "wpe", "wte"]
LLAMA = ["down_proj", "embed_tokens", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def made(family: str, task: str):
    return tiny_models.classifier(family) if task == "SEQ_CLS" else tiny_models.language_model(family)


@pytest.mark.parametrize(
    "family, task, expected",
    [
        ("gpt2", "CAUSAL_LM", ["c_attn", "c_fc", "c_proj", "lm_head", "wpe", "wte"]),
        ("gpt2", "SEQ_CLS", GPT2),
        ("llama", "CAUSAL_LM", sorted([*LLAMA, "lm_head"])),
        ("llama", "SEQ_CLS", LLAMA),
    ],
)
def test_layers_that_are_listed_are_those_that_peft_takes(family, task, expected):
    assert sorted({name.split(".")[-1] for name in adaptable(made(family, task), task)}) == expected
    taken, leaves = [], set()
    for name, module in made(family, task).named_modules():
        leaves |= {name.split(".")[-1]} if not [*module.children()] and [*module.parameters()] else set()
    for leaf in sorted(leaves):
        try:
            prepare_model(made(family, task), AdapterConfig(lora_rank=2, lora_targets=[leaf]), task)
        except UserError as error:
            assert f"`lora_targets` {leaf}: " in error.found and ", ".join(expected) in error.found
        else:
            taken.append(leaf)
    assert taken == expected


def test_each_target_must_be_there_and_may_be_written_with_what_stands_before_it():
    model = tiny_models.language_model("llama")
    with pytest.raises(UserError, match="`lora_targets` qq_proj: the model has no such layer"):
        prepare_model(model, AdapterConfig(lora_rank=2, lora_targets=["q_proj", "qq_proj"]), "CAUSAL_LM")
    model = prepare_model(model, AdapterConfig(lora_rank=2, lora_targets=["1.self_attn.q_proj"]), "CAUSAL_LM")
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 1


def test_without_targets_all_layers_of_the_trunk_are_adapted_whatever_their_class():
    model = prepare_model(tiny_models.classifier("gpt2"), AdapterConfig(lora_rank=2), "SEQ_CLS")
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"c_attn", "c_fc", "c_proj"}


@pytest.mark.parametrize("family", ["granite", "cohere"])
def test_a_family_without_a_classifier_is_named_with_what_is_missing(family, tmp_path):
    tiny_models.language_model(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"transformers has no sequence classifier of its family, (?i:{family})") as error:
        new_reward_model(str(tmp_path), torch.float32)
    assert "a family that has one" in error.value.fix


def test_that_is_known_before_any_entropies(tmp_path, monkeypatch):
    from denserl.cli import train_rm
    from denserl.trainer import reward_pairs

    sft = tiny_models.save_language_model(tmp_path / "sft")
    config = json.loads((sft / "config.json").read_text()) | {"model_type": "granite", "architectures": ["GraniteForCausalLM"]}
    (sft / "config.json").write_text(json.dumps(config))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_models.boat_pairs(4)))
    monkeypatch.setattr(reward_pairs, "prepare_pairs", pytest.fail)
    settings = {"model": sft, "data": rows, "eval_data": rows, "output_dir": tmp_path / "rm", "device": "cpu"}
    with tiny_models.restored_environment(), pytest.raises(UserError, match="no sequence classifier"):
        tiny_models.run_command(train_rm, "train-rm", tiny_models.as_argv(settings))


@pytest.mark.parametrize(
    "wanted, device, on",
    [(None, "cpu", False), (None, "cuda", True), (True, "cpu", True), (True, "cuda", True), (False, "cuda", False)],
)
def test_activations_are_recomputed_on_cuda_unless_it_is_said(wanted, device, on, monkeypatch):
    model = tiny_models.language_model("llama")
    recompute_activations(model, wanted, device)
    assert model.model.layers[0].gradient_checkpointing is on
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    model = tiny_models.language_model("llama")
    if wanted:
        with pytest.raises(UserError, match="`gradient_checkpointing`: LlamaForCausalLM has none"):
            recompute_activations(model, wanted, device)
    else:
        recompute_activations(model, wanted, device)
        assert model.model.layers[0].gradient_checkpointing is False
