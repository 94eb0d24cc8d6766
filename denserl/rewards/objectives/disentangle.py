"""Length, or another covariate, in an output of its own, so that the quality is free of it (ODIN, arXiv 2402.07319).

The head that has the two outputs is in denserl/models/heads.py, what is done to know a whole optimiser step in
denserl/trainer/group_trainer.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from denserl.rewards.objectives.base import Groups, Objective
from denserl.rewards.objectives.losses import full

LENGTH = "length"
# Values whose spread is a smaller share of their root mean square than this differ by rounding alone.
FLAT = 1e-6


class Moments(NamedTuple):
    """What correlations of rewards r with a covariate n are made of: sums over responses, each with its weight; 0-d fp64."""

    weight: Tensor
    reward: Tensor
    covariate: Tensor
    reward_square: Tensor
    covariate_square: Tensor
    product: Tensor


def moments(rewards: Tensor, covariate: Tensor, weights: Tensor) -> Moments:
    """The moments of rewards and covariate, of any one shape, without graph; weights: >= 0, broadcast to it."""
    rewards, covariate, weights = torch.broadcast_tensors(rewards.detach().double(), covariate.double(), weights.double())
    terms = (torch.ones_like(rewards), rewards, covariate, rewards**2, covariate**2, rewards * covariate)
    return Moments(*((weights * term).sum() for term in terms))


def correlation(found: Moments) -> Tensor:
    """Pearson's rho, 0-d fp64; 0 where rewards or covariate are constant, or all weights 0.

    rho = (E[r n] - E[r] E[n]) / (std(r) std(n)), with biased standard deviations.
    """
    (mean, spread), (covariate_mean, covariate_spread) = _mean_and_spread(found)
    product = found.product / found.weight.clamp(min=1e-300)
    usable = (spread != 0) & (covariate_spread != 0)
    return torch.where(usable, (product - mean * covariate_mean) / torch.where(usable, spread * covariate_spread, 1.0), 0.0)


def correlation_slopes(rewards: Tensor, covariate: Tensor, found: Moments) -> Tensor:
    """N d rho / d r_i = (z_n,i - rho z_r,i) / std(r) for each response i, of N alike; z: standardised by the moments.

    With weights w it is W / w_i times the derivative, W being their sum. 0 where rho is 0 for want of spread.

    Args: rewards, covariate: of any one shape. found: the moments of all responses, of which these may be a part.

    Returns: fp64, without graph.
    """
    (mean, spread), (covariate_mean, covariate_spread) = _mean_and_spread(found)
    usable = (spread != 0) & (covariate_spread != 0)
    spread, covariate_spread = torch.where(usable, spread, 1.0), torch.where(usable, covariate_spread, 1.0)
    z_r, z_n = (rewards.detach().double() - mean) / spread, (covariate.double() - covariate_mean) / covariate_spread
    return torch.where(usable, (z_n - correlation(found) * z_r) / spread, 0.0)


def _mean_and_spread(found: Moments) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mean and biased standard deviation of rewards, and of the covariate; a spread that is rounding alone is 0."""
    weight = found.weight.clamp(min=1e-300)

    def of(total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = total / weight, squares / weight
        variance = square - mean**2
        return mean, torch.where(variance <= FLAT**2 * square, 0.0, variance.clamp(min=0)).sqrt()

    return of(found.reward, found.reward_square), of(found.covariate, found.covariate_square)


@dataclass(frozen=True)
class Disentangle(Objective):
    """The quality uncorrelated with the covariate, the other output correlated with it: |rho(r_Q, n)| - rho(r_L, n).

    rho is Pearson's over all responses of an optimiser step, each with the weight of its row (equation 4 of the paper, whose
    1 - rho has the same gradient). covariate: length in tokens, or else the columns chosen_NAME and rejected_NAME of the rows.
    with_sum: also |rho(r_Q + r_L, n)|.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    covariate: str = LENGTH
    with_sum: bool = False

    reads = ("parts", "step_sums")

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]  # it depends on the covariate, and nobody writes it
        return () if self.covariate == LENGTH else (f"chosen_{self.covariate}", f"rejected_{self.covariate}")

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses have the gradient of the term, and 0 as their sum over the step; `step_loss` has its value."""
        covariate, losses = self._covariate(groups), torch.zeros_like(groups.scores[:, 0])
        found = self._moments(groups.step)
        for name, rewards in self._rewards(groups).items():
            slopes = self._sign(name, correlation(found[name])) * correlation_slopes(rewards, covariate, found[name])
            losses = losses + (slopes.to(losses) * full(rewards)).mean(1)
        return losses, {}

    def step_sums(self, groups: Groups) -> dict[str, Tensor]:
        covariate, weights = self._covariate(groups), groups.weights()[:, None]
        found = {name: moments(rewards, covariate, weights) for name, rewards in self._rewards(groups).items()}
        return {f"{name}_{field}": value for name, sums in found.items() for field, value in sums._asdict().items()}

    def step_loss(self, sums: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        found = {name: correlation(each) for name, each in self._moments(sums).items()}
        loss = sum(self._sign(name, rho) * rho for name, rho in found.items())
        return loss, {"disentangle_loss": loss, **{f"{name}_correlation": rho for name, rho in found.items()}}

    def _rewards(self, groups: Groups) -> dict[str, Tensor]:
        quality, other = groups.outputs.unbind(-1)
        return {"quality": quality, "covariate": other, "sum": quality + other}

    def _covariate(self, groups: Groups) -> Tensor:
        return torch.stack([groups.labels[name] for name in self.labels], 1) if self.labels else groups.lengths

    def _moments(self, sums: Mapping[str, Tensor]) -> dict[str, Moments]:
        names = ("quality", "covariate", "sum")
        return {name: Moments(*(sums[f"{name}_{field}"] for field in Moments._fields)) for name in names}

    def _sign(self, name: str, rho: Tensor) -> Tensor:
        """By what a correlation is multiplied in the term: of an absolute value its sign."""
        return {"quality": rho.sign(), "covariate": -torch.ones_like(rho), "sum": self.with_sum * rho.sign()}[name]


@dataclass(frozen=True)
class Orthogonal(Objective):
    """The weights of both outputs at right angles: |w_Q . w_L|, of centred and normalised weights (arXiv 2402.07319)."""

    weight: Annotated[float, Ge(0)] = 1.0

    reads = ("parts",)

    def __call__(self, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
        losses = groups.overlap.abs().expand(len(groups.counted))
        return losses, {"orthogonal_loss": losses}
