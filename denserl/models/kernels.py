"""Layers that train in less time and memory on CUDA: by Liger's Triton kernels, or compiled by torch."""

import functools
import importlib.util

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_layers import GradientCheckpointingLayer

from denserl.errors import UserError, require
from denserl.models.packing import KERNELS, packed_attention

# Of what Liger has, norms, MLPs and rotary positions: losses are the project's.
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}


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
    """Let norms, MLPs and rotary positions run by the kernels of liger-kernel, which change the model's layers for good.

    Raises:
        UserError: it has none for the model's type.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    require(
        model.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN,
        f"`use_liger_kernel`: liger-kernel has nothing for models of the type {model.config.model_type}",
        "leave `use_liger_kernel` out",
    )
    apply_liger_kernel(model, LIGER)


def check_compiled(recomputed: bool) -> None:
    """UserError for layers that are to be compiled where activations are recomputed, which torch keeps the compiler out of."""
    require(
        not recomputed,
        "`torch_compile` beside recomputed activations: torch does not compile what it recomputes",
        "turn `gradient_checkpointing` off, or leave `torch_compile` out",
    )


def compile_layers(model: nn.Module) -> None:
    """Compile every layer, for rows of any length, in two parts: between them stands attention, which is laid out in Python."""
    for name, kernel in KERNELS.items():
        attention = functools.partial(packed_attention, kernel=kernel)
        AttentionInterface.register(name, torch.compiler.disable(attention))
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)
