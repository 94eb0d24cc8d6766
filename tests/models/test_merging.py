"""Adapters merged into whole models: the same bits as the run that trained them wrote, or a message."""

import json
import re
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from denserl.errors import UserError
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.heads import Head, stored_head
from denserl.models.loading import load_policy, match_embeddings
from denserl.models.merging import merge_adapters
from denserl.models.reward_models import attach_lm_head, load_reward_model, new_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.supervised import save_trained

pytest.importorskip("peft")
MLP = Head("mlp", layers=2, width=6)
RATINGS = Head("attributes", names=("short", "true"), weights=(0.25, 0.75))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save_language_model(tmp_path_factory.mktemp("sft"))


def trained(base, output, head: Head | None = None, lm_head: bool = False, dtype: str = "fp32"):
    """What a run with adapters on the model `base` would write, with weights that are drawn instead of learned."""
    tokenizer = load_tokenizer(str(base))
    if head is None:
        model = load_policy(str(base), dtype)
    else:
        model = new_reward_model(str(base), dtype, head=head)
        model.config.update({"mean": 0.5, "std": 2.0})
    match_embeddings(model, tokenizer)
    if lm_head:
        attach_lm_head(model, str(base), dtype)
    model = prepare_model(model, AdapterConfig(lora_rank=2), "CAUSAL_LM" if head is None else "SEQ_CLS")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_trained(SimpleNamespace(model=model, processing_class=tokenizer, args=SimpleNamespace(should_save=True)), str(output))
    return learned


def equal(model, folder) -> bool:
    """Whether a model's weights are those of a folder, to the bit; a tied one is in the folder once."""
    own, stored = model.state_dict(), load_file(folder / "model.safetensors")
    names = set(own) - set(model.all_tied_weights_keys)
    return names == set(stored) and all(torch.equal(own[name], stored[name]) for name in names)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("head", [Head(), MLP, RATINGS], ids=lambda head: head.kind)
def test_a_reward_model_is_merged_as_the_run_merged_it(base, tmp_path, head, dtype):
    learned = trained(base, tmp_path, head, lm_head=True, dtype=dtype)
    assert not [name for name in learned if "lm_head" in name]
    assert [name for name in learned if ".score." in name] and not [
        name for name in learned if "score" in name and "lora" in name
    ]
    model, tokenizer = merge_adapters(str(base), str(tmp_path / "adapter"))
    assert str(model.dtype) == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]
    assert equal(model, tmp_path)
    assert stored_head(model.config, "merged") == head and (model.config.mean, model.config.std) == (0.5, 2.0)
    assert tokenizer.get_vocab() == load_tokenizer(str(base)).get_vocab()


def test_heads_get_no_adapters_and_are_refused_by_name(base):
    model = new_reward_model(str(base), "fp32", head=MLP)
    attach_lm_head(model, str(base), "fp32")
    for head in ("lm_head", "1"):  # score.1 is the MLP's first layer
        with pytest.raises(UserError, match=f"`lora_targets` {head}: the model has no such layer that takes adapters"):
            prepare_model(model, AdapterConfig(lora_rank=2, lora_targets=["q_proj", head]), "SEQ_CLS")
    model = prepare_model(model, AdapterConfig(lora_rank=2), "SEQ_CLS")
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted and not any("lm_head" in name or "score" in name for name in adapted)


def test_a_policy_is_merged_as_the_run_merged_it(base, tmp_path):
    trained(base, tmp_path)
    model, _ = merge_adapters(str(base), str(tmp_path / "adapter"))
    assert equal(model, tmp_path)


@pytest.mark.parametrize("head", [None, MLP], ids=["policy", "reward model"])
def test_a_vocabulary_that_grew_grows_again(tmp_path, head):
    """The base has no pad token to use, so that training gave it one."""
    base = tiny_models.save_language_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(base)
    tiny_models.without_free_tokens(base)
    trained(base, tmp_path / "out", head, lm_head=head is not None)
    model, tokenizer = merge_adapters(str(base), str(tmp_path / "out" / "adapter"))
    assert len(tokenizer) == 321 and model.get_input_embeddings().num_embeddings == 384
    assert equal(model, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert head is None or not [name for name in stored if "lm_head" in name]


def test_adapters_of_others_come_without_config_and_tokenizer(base, tmp_path):
    """PEFT alone writes neither: a stock head, and the base model's tokenizer."""
    trained(base, tmp_path, Head())
    for path in (tmp_path / "adapter").iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    model, _ = merge_adapters(str(base), str(tmp_path / "adapter"))
    assert equal(model, tmp_path)


def edited(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def without(part):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


@pytest.mark.parametrize(
    "head, change, found",
    [
        (Head(), without("score"), "no reward head (score), which cannot be made up"),
        (MLP, without("score"), "no reward head (score), which cannot be made up"),
        (MLP, without("score.3.bias"), "another head than its config.json describes: base_model.model.score.3.bias"),
        (None, without("layers.0.self_attn.q_proj.lora_A"), "do not fit"),
        (None, lambda w: w.update({"base_model.model.extra.lora_A.weight": torch.zeros(2, 2)}), "do not fit"),
        (None, without("lora_"), "holds no LoRA weights"),
    ],
    ids=["no head", "no mlp", "half an mlp", "one missing", "one too many", "none at all"],
)
def test_adapters_that_are_not_whole_are_refused(base, tmp_path, head, change, found):
    trained(base, tmp_path, head)
    edited(tmp_path / "adapter", change)
    with pytest.raises(UserError) as error:
        merge_adapters(str(base), str(tmp_path / "adapter"))
    assert found in error.value.found


def test_another_base_model_is_refused(base, tmp_path):
    trained(base, tmp_path / "run")
    other = tiny_models.save_language_model(tmp_path / "other", hidden=16)
    with pytest.raises(UserError, match="do not fit .*other") as error:
        merge_adapters(str(other), str(tmp_path / "run" / "adapter"))
    assert re.search(r"[-`]+model\b", error.value.fix)


def test_a_reward_models_adapters_are_no_base(base, tmp_path):
    trained(base, tmp_path / "run", Head())
    for change, found in (({"task_type": "QUESTION_ANS"}, "for task_type"), ({"peft_type": "IA3"}, "for peft_type")):
        path = tmp_path / "run" / "adapter" / "adapter_config.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(UserError, match=found):
            merge_adapters(str(base), str(tmp_path / "run" / "adapter"))
        path.write_text(before)


def test_folders_without_adapters_are_named(base, tmp_path):
    trained(base, tmp_path / "run", Head())
    with pytest.raises(UserError, match="holds no adapters") as error:
        merge_adapters(str(base), str(tmp_path / "run"))
    assert str(tmp_path / "run" / "adapter") in error.value.fix
    with pytest.raises(UserError, match="holds no adapters") as error:
        merge_adapters(str(base), str(base))
    assert re.search(r"[-`]+lora_rank", error.value.fix)


@pytest.mark.parametrize("head", [None, Head()])
def test_adapters_are_no_whole_model(base, tmp_path, head):
    trained(base, tmp_path, head)
    for load in (load_policy, load_reward_model):
        with pytest.raises(UserError, match="holds adapters .* and no whole model") as error:
            load(str(tmp_path / "adapter"), "fp32")
        assert f"denserl merge --model BASE --adapter {tmp_path / 'adapter'}" in error.value.fix


def test_damaged_and_pickled_adapters_are_not_read(base, tmp_path):
    trained(base, tmp_path, Head())
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or half written"):
        merge_adapters(str(base), str(tmp_path / "adapter"))
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(UserError, match="pickled adapters are not read"):
        merge_adapters(str(base), str(tmp_path / "adapter"))
