"""Weights made whole, or fp32, for a while: all that ZeRO-3 has spread over ranks, or those of one layer at a time."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from denserl import distributed
from denserl.models.four_bit import computing_in, plain
from denserl.models.measured import hooked


def gathered(parameters: list[nn.Parameter], write: bool = False):
    """A context in which ZeRO-3 parameters are whole on every rank; does nothing for ordinary ones.

    write: what rank 0 writes into them stays.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state on rank 0, of what ZeRO-3 has spread copies on the host, gathered one at a time. Collective."""
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        with gathered([tensor]):
            # A copy on every rank would be one too many for the host.
            copied = hasattr(tensor, "ds_id") and distributed.rank() == 0
            state[name] = tensor.detach().cpu().clone() if copied else tensor.detach()
    return state


def merged_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Callable[[], Tensor]]]:
    """The weights of a model as it is without adapters: name, the parameter, and what gives the weight with adapters merged.

    The function is called on all ranks, each of which is given the whole weight (ZeRO-3), to be used before the next is.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, parameter in plain.named_parameters():
        inside, _, last = name.rpartition(".base_layer.")
        if inside:
            yield f"{inside}.{last}", parameter, functools.partial(_merged, plain.get_submodule(inside), parameter, last)
        elif ".lora_" not in name:
            yield name, parameter, functools.partial(_whole, parameter)


def _merged(layer: nn.Module, parameter: nn.Parameter, name: str) -> Tensor:
    if name != "weight":
        return _whole(parameter)
    with torch.no_grad(), gathered(list(layer.parameters())):
        own = plain(parameter)
        return own + sum(layer.get_delta_weight(adapter).to(own) for adapter in layer.active_adapters)


def _whole(parameter: nn.Parameter) -> Tensor:
    with gathered([parameter]):
        # What ZeRO-3 gathers it takes away again.
        return parameter.detach().clone() if hasattr(parameter, "ds_id") else plain(parameter.detach())


@contextlib.contextmanager
def widened(model: nn.Module):
    """Within the context a model's forward runs in fp32 with whole weights, a layer at a time; then all is as it was.

    Layers are the members of the outermost module lists. What stands beside them (embeddings, heads) is wide throughout.
    """
    layers = list({id(layer): layer for layer in _layers(model)}.values())
    inside = {id(p) for layer in layers for p in layer.parameters()}
    beside = [p for p in model.parameters() if id(p) not in inside]
    with _wide(beside), _wide_buffers(model), computing_in(model, torch.float32), contextlib.ExitStack() as hooks:
        for layer in layers:
            running = contextlib.ExitStack()

            def enter(module: nn.Module, args: tuple, running=running) -> None:
                running.enter_context(_wide(list(module.parameters())))

            def leave(module: nn.Module, args: tuple, output: object, running=running) -> None:
                running.close()

            hooks.enter_context(hooked(layer.register_forward_pre_hook(enter)))
            hooks.enter_context(hooked(layer.register_forward_hook(leave, always_call=True)))
        yield


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


@contextlib.contextmanager
def _wide(parameters: list[nn.Parameter]):
    with gathered(parameters), _in_fp32(parameters):
        yield


@contextlib.contextmanager
def _wide_buffers(model: nn.Module):
    """Buffers may be replaced, or written to in training mode: the values come back, too."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with _in_fp32([buffer for _, buffer in model.named_buffers()]):
            yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.data = before[name]


@contextlib.contextmanager
def _in_fp32(tensors: Iterable[Tensor]):
    narrow = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize < 4]
    for tensor, data in narrow:
        tensor.data = data.to(torch.float32)
    try:
        yield
    finally:
        for tensor, data in narrow:
            tensor.data = data
