"""Which models may run by Liger's kernels, with a stand-in for its package."""

import sys
from types import ModuleType

import pytest
import tiny_models
from transformers.models.llama import modeling_llama

from denserl.errors import UserError
from denserl.models import kernels


@pytest.fixture
def package(monkeypatch):
    """A liger-kernel that serves Llamas; what is asked of it is kept."""
    asked = []
    patches = ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)

    def apply(*args):
        asked.append(args)
        modeling_llama.LlamaMLP = None

    monkeypatch.setattr(kernels, "apply_liger_kernel", apply)
    return asked


def test_liger_is_asked_for_norms_and_mlps_alone(package):
    model = tiny_models.classifier("llama")
    kernels.use_liger_kernel(model)
    assert tiny_models.classifier("llama").model.layers[0].mlp is not None, "models that are made later are as ever"
    assert package == [(model, {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False})]


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
