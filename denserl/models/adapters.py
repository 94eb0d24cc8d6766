"""Gradient checkpointing, faster kernels and LoRA adapters for a model that is to be trained."""

import re
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from denserl.errors import UserError, require
from denserl.models.config import AdapterConfig
from denserl.models.kernels import use_liger_kernel
from denserl.models.prototypes import PROTOTYPES

# Names of modules of a classifier that get no adapters: its head, and what objectives read beside it.
OTHER_THAN_TRUNK = r"(.*\.)?(score|lm_head|prototypes)(\..*)?"


def recompute_activations(model: PreTrainedModel, wanted: bool | None, device: str) -> None:
    """Turn on gradient checkpointing where it is wanted; None: on CUDA, if the model's class can. device: cpu or cuda.

    Raises:
        UserError: it is wanted and the class cannot.
    """
    can = model.supports_gradient_checkpointing
    name = type(model).__name__
    require(can or not wanted, f"`gradient_checkpointing`: {name} has none", "leave `gradient_checkpointing` out")
    if can and (wanted or (wanted is None and device == "cuda")):
        model.gradient_checkpointing_enable({"use_reentrant": False})


def prepare_layers(model: PreTrainedModel, config: AdapterConfig, device: str) -> None:
    """Gradient checkpointing (`recompute_activations`) and Liger's kernels, where asked for."""
    recompute_activations(model, config.gradient_checkpointing, device)
    if config.use_liger_kernel:
        use_liger_kernel(model)


def prepare_model(model: PreTrainedModel, config: AdapterConfig, task: str, device: str = "cpu"):
    """Gradient checkpointing (`recompute_activations`), Liger's kernels and LoRA adapters, where asked for.

    With adapters on a classifier the head is trained in full, and prototypes beside it. task: CAUSAL_LM or SEQ_CLS.
    """
    prepare_layers(model, config, device)
    if not config.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("`lora_rank` needs the package peft, which is not installed", "pip install 'denserl[lora]'") from error
    check_targets(model, config.lora_targets, task)
    lora = LoraConfig(
        task_type=task,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets or "all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        exclude_modules=OTHER_THAN_TRUNK if task == "SEQ_CLS" else None,
    )
    # Adapters have the model's precision: DeepSpeed needs one for all parameters.
    adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
    if hasattr(model, PROTOTYPES):
        model.prototypes.requires_grad_(True)
    return adapted


def save_adapters(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the adapters of a model, without the card of the library, which names the base by its path (card.py has one)."""
    model.create_or_update_model_card = lambda folder: None
    model.save_pretrained(str(folder))


def check_targets(model: PreTrainedModel, targets: list[str] | None, task: str) -> None:
    """UserError unless each target is the end of the name of layers that take adapters; peft ignores one among others."""
    names = adaptable(model, task)
    for target in targets or ():
        if not any(f".{name}".endswith(f".{target}") for name in names):
            known = sorted({name.split(".")[-1] for name in names})
            raise UserError(
                f"`lora_targets` {target}: the model has no such layer that takes adapters; it has {', '.join(known)}",
                "name some of them, or leave `lora_targets` out for all linear ones",
            )


def adaptable(model: PreTrainedModel, task: str) -> list[str]:
    """The names of the layers that adapters can be put on; of a classifier those of the trunk."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    found = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [name for name in found if task != "SEQ_CLS" or not re.fullmatch(OTHER_THAN_TRUNK, name)]
