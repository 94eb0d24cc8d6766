"""Gradient checkpointing and LoRA adapters for a model that is to be trained."""

import torch
from transformers import PreTrainedModel

from denserl.errors import UserError
from denserl.models.config import AdapterConfig

# Names of modules of a classifier that get no adapters: its head, and the language model's head that an objective reads.
OTHER_THAN_TRUNK = r"(.*\.)?(score|lm_head)(\..*)?"


def prepare_model(model: PreTrainedModel, config: AdapterConfig, task: str):
    """Gradient checkpointing and LoRA adapters, where asked for. With adapters on a classifier the head is trained in full.

    task: CAUSAL_LM or SEQ_CLS.
    """
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("`lora_rank` needs the package peft, which is not installed", "pip install 'denserl[lora]'") from error
    lora = LoraConfig(
        task_type=task,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets or "all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        exclude_modules=OTHER_THAN_TRUNK if task == "SEQ_CLS" else None,
    )
    try:
        # Adapters have the model's precision: DeepSpeed needs one for all parameters.
        return get_peft_model(model, lora, autocast_adapter_dtype=False)
    except ValueError as error:
        modules = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        found = f"`lora_targets` {config.lora_targets}: {error}; the model's linear layers are {', '.join(sorted(modules))}"
        raise UserError(found, "name some of them, or leave `lora_targets` out for all") from error
