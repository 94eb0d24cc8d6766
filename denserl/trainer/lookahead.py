"""Weights that are moved along a gradient for a while, and put back to the bit: whole ones, and ZeRO-3's shares of them.

Nothing here goes through an engine, so that its gradients, its accumulation and its optimiser know nothing of it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from denserl import distributed


class RankGradient:
    """The gradient of a sum of terms over micro-batches and all ranks: fp32, of each weight what this rank holds of it.

    Args:
        parameters: those to take it by, the same ones in the same order on every rank.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        self._sums = [torch.zeros_like(held(p), dtype=torch.float32) for p in parameters]

    def add(self, term: Tensor) -> None:
        """Add the gradient of a 0-d tensor, whose graph is freed. Under ZeRO-3 collective."""
        shared = [(number, p) for number, p in enumerate(self.parameters) if hasattr(p, "ds_id")]
        # A whole gradient of all that is spread over the ranks would not fit on one of them: each leaves as it comes.
        hooks = [p.register_hook(partial(self._add_share, number)) for number, p in shared]
        try:
            # Other than `backward` it fills no `grad`, and wakes none of the hooks by which engines gather those.
            found = torch.autograd.grad(term, self.parameters, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        for total, gradient, p in zip(self._sums, found, self.parameters, strict=True):
            if gradient is not None and not hasattr(p, "ds_id"):
                total += gradient

    def total(self) -> list[Tensor]:
        """The sums over all ranks. Collective."""
        return [
            total if hasattr(p, "ds_id") else distributed.all_sum(total)
            for total, p in zip(self._sums, self.parameters, strict=True)
        ]

    def _add_share(self, number: int, gradient: Tensor) -> Tensor:
        """Keep this rank's share of a gradient, summed over ranks; returns what takes no memory in its place."""
        total = self._sums[number]
        whole = total.new_zeros(len(total) * distributed.world_size())
        whole[: gradient.numel()] = gradient.flatten()
        total += distributed.all_sum(whole).view(distributed.world_size(), -1)[distributed.rank()]
        return gradient.new_zeros(()).expand_as(gradient)


class Moved:
    """Weights that have been moved by lr times a gradient, until `back`.

    Args:
        gradient: as `RankGradient.total` gives it; its tensors are let go one by one.
        seed: of the rounding of weights below fp32 (`rounded`), the same on every rank.
        let_go: lets an engine part with whole weights that it has gathered, which are then no longer those of the shares.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], gradient: list[Tensor], lr: float, seed: int, let_go: Callable[[], None]
    ):
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        self._let_go = let_go
        random = torch.Generator(gradient[0].device).manual_seed(seed)
        gradient.reverse()
        for parameter in parameters:
            weights, slope = held(parameter), gradient.pop()
            self._before.append((parameter, weights.clone()))
            weights.copy_(rounded(weights.float().add_(slope, alpha=lr), weights.dtype, random))
        self._let_go()

    def back(self) -> None:
        """Put every weight back."""
        for parameter, weights in self._before:
            held(parameter).copy_(weights)
        self._before = []
        self._let_go()


def held(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter, without graph: all of it, or under ZeRO-3 its share, flat."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_id") else parameter.data


def rounded(values: Tensor, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """fp32 values in another precision; in bf16 up or down with the chance that makes it right on average.

    The next bf16 number is up to a 128th away, so that a small step would else be lost in nearly every weight.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype)
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=random)
    moved = ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), moved, values).to(dtype)
