"""Memory of a forward and backward pass, counted by running the stock class on torch's meta device: shapes without numbers.

What stays between passes (weights, gradients, optimiser state, cache) is in formulas.py.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PreTrainedModel

from denserl.errors import UserError
from denserl.models.scoring import token_logprob_entropy, token_rewards

COUNTED_ATTENTION = "denserl_counted"


class LiveBytes(TorchDispatchMode):
    """Adds up the storages of the tensors that are made on a device in this context, as long as they live.

    What a kernel takes and gives back inside one operation is not seen.

    Args:
        device: type of the device, e.g. meta.
        known: tensors from before, whose storages are not to be counted.

    Attributes: now, most: bytes that live now, and the most that lived at once.
    """

    def __init__(self, device: str, known: Iterable[Tensor] = ()):
        super().__init__()
        self.device, self.now, self.most = device, 0, 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            weakref.finalize(storage, self._release, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _release(self, size: int) -> None:
        self.now -= size


def policy_bytes(model: PreTrainedModel, rows: int, length: int, response: int, train: bool) -> int:
    """The most that a pass of a language model over `rows` sequences needs beside its weights and gradients, in bytes.

    Args:
        model: on the meta device (see `loading.empty_policy`), with its adapters and gradient checkpointing, if any.
        length, response: tokens of a sequence, and how many of them log-probabilities are asked for; at most length - 1.
        train: forward and backward, without entropies; else a forward without gradient, with them.
    """

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        return token_logprob_entropy(model, ids, mask, length - response, response, with_entropy=not train)[0]

    return _pass_bytes(model, forward, rows, length, train)


def classifier_bytes(model: PreTrainedModel, rows: int, length: int, train: bool) -> int:
    """The same for a reward model or critic."""
    return _pass_bytes(model, lambda ids, mask: token_rewards(model, ids, mask), rows, length, train)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """What one token adds to the cache of keys and values: in most families 2 x layers x key heads x their width x bytes."""
    _count_attention(model)
    ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
    with torch.no_grad():
        cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def _pass_bytes(
    model: PreTrainedModel, forward: Callable[[Tensor, Tensor], Tensor], rows: int, length: int, train: bool
) -> int:
    """The most bytes alive in forward(input_ids, attention_mask), and in its backward pass when training."""
    _count_attention(model)
    model.train(train)
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    known = [*model.parameters(), *model.buffers(), ids]
    if train:
        # A gradient that is already there: what the backward pass adds to it is passing.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        known += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    try:
        with LiveBytes("meta", known) as live, torch.set_grad_enabled(train):
            output = forward(ids, torch.ones(rows, length, dtype=torch.long))
            if train:
                output.sum().backward()
    except (NotImplementedError, RuntimeError) as error:
        # Some mixtures of experts and attention with values of another width do not run without numbers.
        raise UserError(
            f"{type(model).__name__} in {model.dtype} cannot be planned: its passes do not run on torch's meta device "
            f"({str(error).splitlines()[0]})",
            "try the other `dtype`, or plan with a model of the same sizes from another family",
        ) from error
    return live.most


def _count_attention(model: PreTrainedModel) -> None:
    if model.config.get_text_config()._attn_implementation != "eager":
        model.set_attn_implementation(COUNTED_ATTENTION)


def _counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kw: Any
) -> tuple[Tensor, None]:
    """Attention that keeps what fused kernels keep (queries, keys, values, output, a number for each query and head).

    Packing joins the outputs of its sequences, which makes a copy.
    """
    output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=True)[0]
    return torch.cat([output.transpose(1, 2)], 1), None


AttentionInterface.register(COUNTED_ATTENTION, _counted_attention)
