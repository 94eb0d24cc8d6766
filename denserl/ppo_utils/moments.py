"""Means and variances of streams of numbers, over all that has been seen of each by all ranks together.

What is done with them is in normalizer.py; which streams a run has is in trainer/ppo_rewards.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from denserl.distributed import all_sum

PREFIX = "moments."
# A count before anything was seen that still divides.
NOTHING = 1e-24
# A spread below the rounding of fp32 numbers is none.
ROUNDING = 1e-6


class Moments(NamedTuple):
    """Of one stream, 0-d fp64 each."""

    mean: Tensor
    std: Tensor  # with T - 1 in the denominator; 1 of less than two numbers, and where all are the same


@dataclass
class RunningMoments:
    """The moments of streams, by name (Secrets of RLHF I, arXiv 2307.04964; Chan, Golub and LeVeque 1983).

    state: (3,) fp64 of each stream that was seen: mean, biased variance, count.
    """

    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, streams: Mapping[str, Tensor]) -> None:
        """Take in new numbers of some streams, the same names on every rank; one reduction, nothing is read back.

        streams: of any shape each, the numbers of this rank. Those that are not finite are left out.
        """
        if not streams:
            return
        device = next(iter(streams.values())).device
        state = torch.stack([self._of(name).to(device) for name in streams])
        sums = torch.stack([_sums(numbers, mean) for numbers, mean in zip(streams.values(), state[:, 0], strict=True)])
        self.state |= zip(streams, merged(state, all_sum(sums)), strict=True)

    def of(self, name: str) -> Moments:
        """The moments of one stream; mean 0 and std 1 before its first number."""
        mean, variance, count = self._of(name)
        spread = variance > (ROUNDING * mean) ** 2
        return Moments(mean, torch.where(spread, variance * count / (count - 1), 1.0).sqrt())

    def saved(self) -> dict[str, Tensor]:
        """The state as tensors of a checkpoint, which has others too."""
        return {PREFIX + name: state.clone() for name, state in self.state.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the tensors of a checkpoint."""
        self.state = {name.removeprefix(PREFIX): state for name, state in tensors.items() if name.startswith(PREFIX)}

    def _of(self, name: str) -> Tensor:
        return self.state.get(name, torch.tensor([0.0, 0.0, NOTHING], dtype=torch.float64))


def merged(state: Tensor, sums: Tensor) -> Tensor:
    """Moments of what was seen before and of n new numbers together.

    With b and v_b of the new ones, D = b - m and T = c + n: m + D n / T, (v c + D^2 c n / T + v_b n) / T, T.

    Args:
        state: (M, 3) fp64: mean m, biased variance v, count c > 0. sums: (M, 3) fp64: n, sum of x - m, sum of (x - m)^2.

    Returns: (M, 3) fp64.
    """
    (mean, variance, count), (new, first, second) = state.unbind(-1), sums.unbind(-1)
    shift = first / new.clamp(min=1)
    own = (second / new.clamp(min=1) - shift**2).clamp(min=0)
    total = count + new
    both = (variance * count + shift**2 * count * new / total + own * new) / total
    return torch.stack([mean + shift * new / total, both, total], -1)


def _sums(numbers: Tensor, mean: Tensor) -> Tensor:
    """How many are finite, and their sums of first and second powers about a mean: (3,) fp64."""
    counted = numbers.isfinite()
    away = torch.where(counted, numbers.double() - mean, 0.0)
    return torch.stack([counted.sum().double(), away.sum(), (away**2).sum()])
