"""Weights under adapters held in 4 bits (QLoRA, arXiv 2305.14314): quantised by bitsandbytes when a model is loaded."""

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from denserl.errors import UserError, require
from denserl.models.measured import stock_model

# Weights that share a scale, and scales that share one of their own; bitsandbytes' for double quantisation.
BLOCK, SCALES = 64, 256
# fp32 tables that each weight has for itself: the 16 values of NF4, the 256 of its scales, and the scales' mean.
TABLES = 4 * (16 + 256 + 1)


class Stored(NamedTuple):
    """Where a model in 4 bits stands as it was before."""

    path: str
    trust_remote_code: bool


def check_four_bit() -> None:
    """UserError where bitsandbytes is not installed."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            "`load_in_4bit` needs the package bitsandbytes, which is not installed", "pip install 'denserl[4bit]'"
        ) from error


def quantised(config: PreTrainedConfig, path: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given for linear layers in NF4, doubly quantised, computing in the model's own type.

    The head, and what is tied to the embeddings, stay as they are.

    Raises:
        UserError: bitsandbytes is not installed, or the model at `path`, of which this is the config, is stored quantised.
    """
    require(
        getattr(config, "quantization_config", None) is None,
        f"`load_in_4bit`: {path} is stored quantised (quantization_config), and adapters are merged into weights as stored",
        "give the model from which it was quantised",
    )
    check_four_bit()
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    # Like other models, on the host until an engine takes it.
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def settle(model: PreTrainedModel, base: Stored) -> None:
    """Keep 4-bit layers as they were loaded, and on the model from where (`stored_base`).

    On some CPUs bitsandbytes would pack them anew in the first pass without gradient: rounded once more, and through the result
    no gradient passes.

    Raises:
        UserError: blocks reach from one row of a weight into the next, which bitsandbytes reads wrongly on CPUs; or layers are
            of a class whose weights are stored transposed.
    """
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False
        require(
            layer.source_cls is nn.Linear,
            f"`load_in_4bit`: {type(model).__name__} has layers of another class, {layer.source_cls.__name__}",
            "leave `load_in_4bit` out",
        )
        require(
            layer.in_features % BLOCK == 0,
            f"`load_in_4bit`: {type(model).__name__} has layers of {layer.in_features} inputs, and weights are quantised in "
            f"blocks of {BLOCK} inputs",
            f"use a model whose sizes are multiples of {BLOCK}, or leave `load_in_4bit` out",
        )
    model.stored_base = base


def config_as_stored(model: PreTrainedModel) -> PreTrainedConfig:
    """A model's config, without what says that it is in 4 bits."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    return config


def stored_base(model: nn.Module) -> Stored | None:
    """Of a model in 4 bits that was loaded here, which may be wrapped; None of any other."""
    return getattr(stock_model(model), "stored_base", None)


def four_bit_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers whose weight is in 4 bits, those inside adapters included."""
    return (module for module in model.modules() if is_four_bit(getattr(module, "weight", None)))


@contextlib.contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype):
    """Within the context 4-bit layers compute in a type."""
    before = [(layer, layer.compute_dtype) for layer in four_bit_layers(model)]
    for layer, _ in before:
        layer.compute_dtype = dtype
    try:
        yield
    finally:
        for layer, own in before:
            layer.compute_dtype = own


def is_four_bit(weight: Any) -> bool:
    """Whether a parameter holds a weight in 4 bits."""
    return getattr(weight, "quant_state", None) is not None


def to_quantise(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, loaded as it is, that would be in 4 bits: what the library chooses."""
    kept = get_keys_to_not_convert(model)
    layers = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    return [module for name, module in layers if should_convert_module(name, kept)]


def form_of(weight: Tensor) -> Any:
    """What has the shape and the type that a weight was quantised from; itself where it is not in 4 bits."""
    return weight.quant_state if is_four_bit(weight) else weight


def plain(weight: Tensor) -> Tensor:
    """A weight in the type that it was quantised from; itself where it is not in 4 bits."""
    if not is_four_bit(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def four_bit_bytes(numbers: int) -> int:
    """Bytes of a weight of so many numbers: half a byte each, one for each block's scale, and what these are read with."""
    scales = math.ceil(numbers / BLOCK)
    return math.ceil(numbers / 2) + scales + 4 * math.ceil(scales / SCALES) + TABLES
