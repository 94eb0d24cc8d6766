"""Weights in 4 bits: what is held, how it is read, and what is made of it; with the real bitsandbytes where it is installed."""

import json
import sys

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from denserl.errors import UserError
from denserl.memory.formulas import Sharding, Size, weights
from denserl.models.adapters import prepare_model
from denserl.models.config import AdapterConfig
from denserl.models.four_bit import form_of, four_bit_bytes, four_bit_layers, is_four_bit, plain, to_quantise
from denserl.models.gathering import merged_weights
from denserl.models.loading import load_policy
from denserl.models.measured import measured
from denserl.models.packing import is_packed
from denserl.models.reward_models import new_reward_model
from denserl.models.saving import save_merged
from denserl.models.scoring import token_logprob_entropy
from denserl.trainer.config import OptimisationConfig, SFTConfig
from denserl.trainer.start import start_run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def real():
    """Skips where the packages are not there."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny_models.save_language_model(tmp_path_factory.mktemp("base"), hidden=64, inner=128))


def test_without_the_package_the_command_that_installs_it_is_said(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="`load_in_4bit` needs the package bitsandbytes") as error:
        load_policy(base, "fp32", four_bit=True)
    assert error.value.fix == "pip install 'denserl[4bit]'"


def test_the_package_is_missed_before_data_is_read(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = SFTConfig(
        model=base, data=["none"], output_dir=str(tmp_path / "run"), device="cpu", lora_rank=2, load_in_4bit=True
    )
    with pytest.raises(UserError, match="needs the package bitsandbytes"):
        start_run(config)
    assert not (tmp_path / "run").exists()


def test_they_are_not_spread_over_ranks():
    with pytest.raises(UserError, match="`load_in_4bit` with `zero_stage` 3") as error:
        OptimisationConfig(lora_rank=2, load_in_4bit=True, zero_stage=3).check()
    assert "`zero_stage` 2" in error.value.fix
    OptimisationConfig(lora_rank=2, load_in_4bit=True, zero_stage=2).check()
    with pytest.raises(UserError, match="`load_in_4bit` has no effect without `lora_rank`"):
        OptimisationConfig(load_in_4bit=True).check()


@pytest.mark.parametrize(
    "numbers, expected",
    [
        # Half a byte a number; a byte for each 64 of them; four for each 256 such bytes; 16 + 256 + 1 numbers in fp32.
        (64, 32 + 1 + 4 + 4 * 273),
        (64 * 256, 8192 + 256 + 4 + 4 * 273),
        (64 * 257, 8224 + 257 + 8 + 4 * 273),
        (4096 * 14336, 29_360_128 + 917_504 + 14_336 + 4 * 273),
    ],
)
def test_bytes_by_hand(numbers, expected):
    assert four_bit_bytes(numbers) == expected


def test_a_size_counts_them_apart():
    size = Size(10_000, 100, (4096, 2048))
    expected = (10_000 - 4096 - 2048) * 2 + four_bit_bytes(4096) + four_bit_bytes(2048)
    assert weights(size, Sharding(8, 2, 2)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("load", [load_policy, new_reward_model], ids=["policy", "reward model"])
def test_what_is_held_is_what_is_planned(base, load, dtype, real):
    """Bytes of all tensors of the loaded model, and which of its layers they are."""
    model, whole = load(base, dtype, four_bit=True), load(base, dtype)
    held = 0
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        of_scales = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code] if state else []
        held += sum(tensor.nbytes for tensor in (weight, *of_scales))
    assert held == weights(Size.of(model), Sharding(1, 0, DTYPES[dtype].itemsize))
    names = {name for name, module in model.named_modules() if is_four_bit(getattr(module, "weight", None))}
    chosen = to_quantise(whole)
    assert names == {name for name, module in whole.named_modules() if any(module is layer for layer in chosen)}
    assert len(names) == 7 and Size.of(model).parameters == sum(p.numel() for p in whole.parameters())
    assert Size.of(model).four_bit == tuple(layer.weight.numel() for layer in chosen)
    assert model.dtype == DTYPES[dtype] and is_packed(model) and not measured(model).unpacked


def by_hand(state, packed: torch.Tensor) -> torch.Tensor:
    """A weight from its halves of bytes and the scales of its blocks, number by number."""
    means = [state.state2.code[level].item() for level in state.absmax.long()]
    scales = [mean * state.state2.absmax[i // 256].item() + state.offset.item() for i, mean in enumerate(means)]
    halves = [half for byte in packed.flatten().tolist() for half in (byte >> 4, byte & 15)]
    return torch.tensor([state.code[half].item() * scales[i // 64] for i, half in enumerate(halves)]).view(state.shape)


def test_numbers_are_read_as_they_were_written(base, real):
    model, whole = load_policy(base, "fp32", four_bit=True), load_policy(base, "fp32")
    layer = model.model.layers[0].mlp.down_proj
    found, stored = plain(layer.weight), whole.model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(found, by_hand(layer.weight.quant_state, layer.weight.data))
    # No further from what is stored than half the widest gap between two values of NF4, and the rounding of its scale.
    blocks = stored.detach().view(-1, 64)
    most = blocks.abs().amax(1, keepdim=True)
    assert ((found.view(-1, 64) - blocks).abs() <= (0.5 * 0.304 + 0.06) * most).all()
    assert form_of(layer.weight).shape == stored.shape and form_of(stored) is stored


def test_a_model_is_the_stock_one_of_its_own_numbers_also_in_its_gradients(base, real):
    """To rounding; after passes without gradient as well, in which some CPUs would get other weights."""
    model, whole = load_policy(base, "fp32", four_bit=True), load_policy(base, "fp32")
    names = [name for name, module in model.named_modules() if is_four_bit(getattr(module, "weight", None))]
    ids, mask = tiny_models.padded(tiny_models.random_rows([6, 9]))
    found = []
    with torch.no_grad():
        for name in names:
            whole.get_submodule(name).weight.copy_(plain(model.get_submodule(name).weight))
        before = [weight.clone() for weight in model.parameters()]
        for one in (model, whole):
            token_logprob_entropy(one, ids, mask, 2)
    for one in (model, whole):
        logprobs = token_logprob_entropy(one, ids, mask, 2)[0]
        logprobs.sum().backward()
        found.append((logprobs.detach(), one.model.embed_tokens.weight.grad))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)
    assert all(torch.equal(weight, kept) for weight, kept in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_servers_are_given_the_numbers_that_train(base, tmp_path, dtype, real):
    """Weight by weight, and as a model: dequantised, with the product of the adapters added."""
    model = prepare_model(load_policy(base, dtype, four_bit=True), AdapterConfig(lora_rank=2, lora_alpha=6), "CAUSAL_LM")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    state, expected = dict(model.named_parameters()), {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            own, a, b = module.base_layer.weight, module.lora_A["default"].weight, module.lora_B["default"].weight
            expected[f"{name}.weight"] = plain(own) + (6 / 2 * (b @ a)).to(own.quant_state.dtype)
    assert len(expected) == 7
    for name, weight in state.items():
        short = name.removeprefix("base_model.model.")
        if "lora_" not in name and ".base_layer." not in name:
            expected[short] = weight
    found = {name: (weight(), form_of(parameter)) for name, parameter, weight in merged_weights(model)}
    assert found.keys() == expected.keys()
    for name, (weight, form) in found.items():
        torch.testing.assert_close(weight, expected[name])
        assert weight.shape == form.shape and weight.dtype == form.dtype == DTYPES[dtype]
    save_merged(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == expected.keys() and all(stored[name].equal(weight) for name, (weight, _) in found.items())
    again = load_policy(str(tmp_path), dtype)
    assert not [*four_bit_layers(again)] and not hasattr(again.config, "quantization_config")


def test_blocks_that_reach_over_rows_are_refused(tmp_path, real):
    narrow = tiny_models.save_language_model(tmp_path, hidden=64, inner=48)
    with pytest.raises(UserError, match="LlamaForCausalLM has layers of 48 inputs, .* blocks of 64"):
        load_policy(str(narrow), "fp32", four_bit=True)


def test_a_base_that_is_stored_quantised_is_refused(tmp_path):
    folder = tiny_models.save_language_model(tmp_path, hidden=64, inner=128)
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(UserError, match="is stored quantised"):
        load_policy(str(folder), "fp32", four_bit=True)


def test_transposed_layers_are_refused(tmp_path, real):
    tiny_models.language_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="GPT2LMHeadModel has layers of another class, Conv1D"):
        load_policy(str(tmp_path), "fp32", four_bit=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_cuda_the_numbers_are_those_of_the_host(base, dtype, real):
    """A model is quantised on the host; what is read of it, and what it computes, is the same on the device."""
    model = load_policy(base, dtype, four_bit=True)
    ids, mask = tiny_models.padded(tiny_models.random_rows([6, 9]))
    weight = model.model.layers[0].mlp.down_proj.weight
    host = plain(weight), token_logprob_entropy(model, ids, mask, 2)[0]
    model.cuda()
    weight = model.model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(plain(weight).cpu(), host[0], rtol=1e-2 if dtype == "bf16" else 1e-6, atol=1e-6)
    found = token_logprob_entropy(model, ids.cuda(), mask, 2)[0]
    torch.testing.assert_close(found.cpu(), host[1], rtol=0, atol=0.1 if dtype == "bf16" else 1e-4)
    found.sum().backward()
    assert model.model.embed_tokens.weight.grad.abs().max() > 0
