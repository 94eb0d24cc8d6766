"""What was found out about a loaded model by running it (probe.py measures): how it is run, and what it does to logits.

It is kept on the model itself, so that copies have it too.
"""

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from denserl.errors import UserError

# A map that is taken for what a model does to its logits deviates from it by no more, relative to each logit.
EXACT = 1e-5


@dataclass(frozen=True)
class LogitMap:
    """What a model does to its head's output, element by element: x scale, then cap * tanh(x / cap) where there is a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class Measured(NamedTuple):
    """What a model was found to do. A reason is empty where there is nothing to say.

    logits: None of a classifier.
    attention: the kernel that it has where it runs on padded batches; without padding, flash attention as well.
    unpacked: why it runs on padded batches, and not without padding (packing.py).
    row_by_row: why, without padding, its attention goes row by row on CUDA in narrow types, too (varlen.py).
    masked: why it is decoded under masks on CUDA in narrow types, too, and not by a kernel (decoding.py).
    generates: why it is sampled from with transformers' `generate`, and not by decoding.py.
    unsampled: why it cannot be sampled from.
    unsteady: why it cannot be trained where scores or ratios are used: two passes in training mode differ.
    longest: the most tokens of a row whose positions mean the same in every row; None without such a bound.
    apart: how far results were apart that should be equal, by what was compared (see probe.py).
    """

    logits: LogitMap | None = LogitMap()
    attention: str = "sdpa"
    unpacked: str = ""
    row_by_row: str = ""
    masked: str = ""
    generates: str = ""
    unsampled: str = ""
    unsteady: str = ""
    longest: int | None = None
    apart: dict[str, float] = {}


def stock_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a wrapped one, or itself."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def remember(model: PreTrainedModel, found: Measured) -> None:
    """Keep on a model what was found."""
    model.measured = found


def measured(model: nn.Module) -> Measured | None:
    """What is kept on a model, which may be wrapped; None of one that was not loaded by loading.py."""
    stock = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    return getattr(stock, "measured", None)


def logit_map(model: nn.Module) -> LogitMap:
    """What a language model does to its head's output; measured at the first call where nothing is kept of it."""
    stock = stock_model(model)
    if measured(stock) is None:
        remember(stock, Measured(measure_logit_map(stock)))
    return measured(stock).logits


def check_longest(model: nn.Module, tokens: int) -> None:
    """UserError for rows of more tokens than those whose positions mean the same in every row."""
    found = measured(model)
    if found is not None and found.longest is not None and tokens > found.longest:
        raise UserError(
            f"{type(stock_model(model)).__name__}: a row has {tokens} tokens; beyond {found.longest}, a row's positions change "
            "what its first tokens mean, so that numbers would depend on the rows beside it",
            f"keep rows within {found.longest} tokens: `max_length`, or `max_prompt_length` and `max_new_tokens`",
        )


def check_steady(model: nn.Module) -> None:
    """UserError for a model of which two passes in training mode differ: its scores and ratios would be random."""
    found = measured(model)
    if found is not None and found.unsteady:
        raise UserError(
            f"{type(stock_model(model)).__name__} is random in training mode, also without dropout ({found.unsteady})",
            "use another model; denserl check-model PATH says what was measured of one",
        )


@contextlib.contextmanager
def hooked(handle: RemovableHandle):
    """A hook that ends with the context."""
    try:
        yield
    finally:
        handle.remove()


def measure_logit_map(model: PreTrainedModel) -> LogitMap:
    """The map between a language-model head's output and the model's logits, found by giving values of ours for the output.

    Raises:
        UserError: the logits do not come from the head alone, or by no map of LogitMap's kind; with what was measured.
    """
    head, given = model.get_output_embeddings(), []
    if head is None:
        raise _no_map(model, "it names no output embeddings")

    def give(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(_grid(output))
        return given[-1]

    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    # With gradients, which show whether weights take part after the head: they would be left out of training.
    with torch.enable_grad(), hooked(head.register_forward_hook(give)):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    if logits.requires_grad:
        raise _no_map(model, "weights of its own follow the head")
    if len(given) != 1:
        raise _no_map(model, f"its head is called {len(given)} times in a forward pass")
    if logits.shape != given[0].shape:
        raise _no_map(model, f"the head gives {tuple(given[0].shape)}, the model {tuple(logits.shape)}")
    found = _fitted(given[0], logits)
    error = ((found(given[0]) - logits).abs() / logits.abs().clamp(min=1e-6)).max().item()
    if not error <= EXACT:
        raise _no_map(model, f"{found}, which comes nearest, is off by {error:.2g} of a logit")
    return found


def _grid(output: Tensor) -> Tensor:
    """fp32 values of both signs and many sizes, in another order at each position, of the shape of the head's output."""
    sizes = torch.logspace(-3, 6, 37, device=output.device)
    values = torch.cat([sizes, -sizes])
    place = torch.arange(output.numel(), device=output.device).view(output.shape)
    # 5 is prime to the number of values; each position begins elsewhere.
    return values[(place * 5) % len(values)]


def _fitted(given: Tensor, logits: Tensor) -> LogitMap:
    """The map of LogitMap's kind that the smallest and the largest values show."""
    small, large = given.abs().flatten().argmin(), given.flatten().argmax()
    scale = (logits.flatten()[small] / given.flatten()[small]).item()
    most = logits.flatten()[large].item()
    is_capped = most < 0.5 * scale * given.flatten()[large].item()
    # A factor of 1 that was rounded on the way is none.
    return LogitMap(1.0 if abs(scale - 1) < EXACT else scale, most if is_capped else None)


def _no_map(model: PreTrainedModel, found: str) -> UserError:
    return UserError(
        f"{type(model).__name__}: its log-probabilities cannot be computed from its hidden states: {found}",
        "use another model; denserl check-model PATH says what was measured of one",
    )
