"""Contrastive terms of features that two random passes give, as pure functions (SimCSE, arXiv 2104.08821; SwAV, 2006.09882).

What stands in rows that are not counted is no negative of others, and may be anything finite.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from denserl.rewards.objectives.losses import full

# SwAV's own settings.
TEMPERATURE, SHARPNESS, ITERATIONS = 0.1, 0.05, 3


def simcse_terms(first: Tensor, second: Tensor, temperature: float = 0.05, counted: Tensor | None = None) -> Tensor:
    """Each feature found again among all of the other pass: -log softmax_j(cos(s_i, t_j) / temperature) at j = i.

    Args:
        first, second: (B, H) features of both passes, s and t.
        temperature: > 0.
        counted: (B,) bool; default: all.

    Returns: (B,) fp32 (fp64 of fp64 features), 0 where not counted.
    """
    cosines = directions(first) @ directions(second).T / temperature
    if counted is None:
        return -log_softmax(cosines, -1).diagonal()
    return torch.where(counted, -log_softmax(cosines.masked_fill(~counted, -torch.inf), -1).diagonal(), 0.0)


def directions(features: Tensor) -> Tensor:
    """(..., H) features, each divided by its norm, in fp32 at least."""
    return normalize(full(features), dim=-1)


def mean_cosines(first: Tensor, second: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine of each feature with itself in the other pass, and its mean with the others there: (B,) each.

    Args as those of `simcse_terms`. 0 where not counted, and where there are no others.
    """
    first, second = (torch.where(counted[:, None], directions(x), 0.0) for x in (first, second))
    own, with_all = (first * second).sum(-1), first @ second.sum(0)
    return own, (with_all - own) / (counted.sum() - 1).clamp(min=1)


@torch.no_grad()
def sinkhorn(scores: Tensor, counted: Tensor | None = None, sharpness: float = SHARPNESS, times: int = ITERATIONS) -> Tensor:
    """Codes: how features are shared out among prototypes so that each of these has about as much, without graph.

    Q = exp(scores / sharpness), divided by its sum; then, so many times, each prototype's entries divided to add up to 1 / K,
    and each feature's to 1 / B; times B.

    Args:
        scores: (B, K) cosines of features and prototypes. counted: (B,) bool; default: all.
        sharpness: > 0, epsilon of the paper.

    Returns: (B, K) as the scores, fp32 at least; a row adds up to 1, or to 0 where not counted.
    """
    scores = full(scores)
    counted = torch.ones_like(scores[:, 0], dtype=torch.bool) if counted is None else counted
    # The largest is taken off, which the division by the sum takes off as well.
    shares = torch.where(counted[:, None], ((scores - scores.max()) / sharpness).exp(), 0.0)
    tiny = torch.finfo(shares.dtype).tiny
    for _ in range(times):
        shares = shares / shares.sum(0).clamp(min=tiny) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True).clamp(min=tiny) / counted.sum().clamp(min=1)
    return shares * counted.sum()


def swav_terms(
    first: Tensor, second: Tensor, counted: Tensor | None = None, temperature: float = TEMPERATURE, **codes: float
) -> Tensor:
    """The codes of each pass foretold by the other: CE(q_s, p_t) + CE(q_t, p_s), p = softmax(scores / temperature), q codes.

    Args:
        first, second: (B, K) cosines of the features of both passes with prototypes. counted: (B,) bool; default: all.
        temperature: > 0. codes: see `sinkhorn`.

    Returns: (B,) fp32 (fp64 of fp64 scores), 0 where not counted.
    """
    first, second = full(first), full(second)
    terms = ((first, second), (second, first))
    return -sum((sinkhorn(of, counted, **codes) * log_softmax(to / temperature, -1)).sum(-1) for of, to in terms)
