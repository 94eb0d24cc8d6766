"""Which models may run by Liger's kernels, with a stand-in for its package; and compiled layers, as torch traces them."""

import functools
import sys
from types import ModuleType

import pytest
import tiny_models
import torch
from transformers import AttentionInterface

from denserl.data.batching import pad_responses
from denserl.errors import UserError
from denserl.models import kernels
from denserl.models.packing import KERNELS, packed_attention
from denserl.models.scoring import token_rewards


@pytest.fixture
def package(monkeypatch):
    """A liger-kernel that serves Llamas; what is asked of it is kept."""
    asked = []
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    monkeypatch.setattr(kernels, "apply_liger_kernel", lambda *args: asked.append(args))
    return asked


def test_liger_is_asked_for_layers_and_for_no_loss(package):
    model = tiny_models.classifier("llama")
    kernels.use_liger_kernel(model)
    assert package == [(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})]


def test_a_type_of_model_that_liger_does_not_know_is_refused(package):
    with pytest.raises(UserError, match="nothing for models of the type gpt2"):
        kernels.use_liger_kernel(tiny_models.classifier("gpt2"))
    assert not package


def test_liger_without_a_gpu_or_its_package_is_refused(monkeypatch):
    with pytest.raises(UserError, match="run on a GPU alone"):
        kernels.check_liger("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        kernels.check_liger("cuda")


@pytest.fixture
def traced(monkeypatch):
    """Compiled as far as torch's tracer goes, which makes graphs and runs them as they are."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(compiled, backend="eager"))
    yield
    for name, kernel in KERNELS.items():
        AttentionInterface.register(name, functools.partial(packed_attention, kernel=kernel))


def scores_and_gradients(model, seed: int) -> list[torch.Tensor]:
    prompts, responses = tiny_models.random_rows([5, 3], seed=seed) * 2, tiny_models.random_rows([4, 9, 2, 6 + seed], seed=seed)
    batch = pad_responses(prompts, responses, 0)
    scores = token_rewards(model, *batch[:2], batch.shared) * batch.attention_mask
    gradients = torch.autograd.grad(scores.square().sum(), list(model.parameters()), allow_unused=True)
    return [scores.detach(), *(gradient for gradient in gradients if gradient is not None)]


def test_compiled_layers_give_the_same_scores_and_gradients(traced):
    """For rows of other lengths, too, which are not compiled for again."""
    model = tiny_models.probed(tiny_models.classifier("llama")).train()
    expected = [scores_and_gradients(model, seed) for seed in range(3)]
    kernels.compile_layers(model)
    graphs = torch._dynamo.utils.counters["stats"]
    before, made = graphs["unique_graphs"], []
    for seed in range(3):
        for one, other in zip(scores_and_gradients(model, seed), expected[seed], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
        made.append(graphs["unique_graphs"] - before)
    assert made[0] > 0 and made[1] == made[2]
