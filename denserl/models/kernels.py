"""Layers that train in less time and memory on CUDA, by Liger's Triton kernels."""

import importlib.util
import sys

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from denserl.errors import UserError, require

# Of what Liger has, norms and MLPs: rotary positions are no layers of their own, and losses are the project's.
LIGER = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def check_liger(device: str) -> None:
    """UserError where Liger's kernels cannot run: not on CUDA, or without their package."""
    require(
        device == "cuda",
        f"`use_liger_kernel` on {device}: Liger's kernels are written in Triton, and run on a GPU alone",
        "leave `use_liger_kernel` out, or use `device` cuda",
    )
    if importlib.util.find_spec("liger_kernel") is None:
        found = "`use_liger_kernel` needs the package liger-kernel, which is not installed"
        raise UserError(found, "pip install 'denserl[liger]'")


def use_liger_kernel(model: PreTrainedModel) -> None:
    """Let norms and MLPs run by the kernels of liger-kernel, which change its layers for good, and no other model's.

    Raises:
        UserError: it has none for the model's type.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    require(
        model.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN,
        f"`use_liger_kernel`: liger-kernel has nothing for models of the type {model.config.model_type}",
        "leave `use_liger_kernel` out",
    )
    # It would change models that are made later, too, those on the CPU among them.
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    apply_liger_kernel(model, LIGER)
    names.update(before)
