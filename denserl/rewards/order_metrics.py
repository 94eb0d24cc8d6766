"""Metrics of pairs whose two responses are read in one text, in one order or both, as sums over pairs."""

import torch
from torch import Tensor

from denserl.rewards.objectives.losses import wins
from denserl.rewards.objectives.pair_labels import position_bias


def order_sums(log_odds: Tensor, chosen_first: Tensor, p_chosen: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """What `order_metrics` are made of, as sums over G pairs (0-d, fp64, no gradient), so that batches and ranks add up.

    Args:
        log_odds: (G, M) that the response that stands first is the better one, in each of M orders, 1 or 2.
        chosen_first: (G, M) bool, whether that is the chosen one.
        p_chosen: (G,) probability that it is the better one. At a half a pair is a tie, and none of the `decided`; below, it is
            turned round.
        weight: (G,) what each pair counts.
    """
    log_odds, weight = log_odds.detach().double(), weight.double()
    toward = torch.where(chosen_first == (p_chosen > 0.5)[:, None], log_odds, -log_odds)
    decided = weight * (p_chosen != 0.5)
    # sigmoid(l1) + sigmoid(-l2) > 1, where equal log-odds cancel to the bit.
    lead = torch.tanh(toward / 2).sum(1)
    sums = {
        "pairs": weight.sum(),
        "decided": decided.sum(),
        "correct": (wins(lead, torch.zeros_like(lead)) * decided).sum(),
        "orders": (weight[:, None].expand(log_odds.shape)).sum(),
        "score": (log_odds * weight[:, None]).sum(),
        "score_square": (log_odds**2 * weight[:, None]).sum(),
    }
    if log_odds.shape[1] == 1:
        return sums
    consistent = toward.prod(1) > 0
    return {
        **sums,
        "consistent": (consistent * weight).sum(),
        "position_bias": (position_bias(log_odds).abs() * weight).sum(),
    }


def order_metrics(sums: dict[str, float]) -> dict[str, float]:
    """accuracy: share of decided pairs whose better response is preferred, on the mean of the orders that are read; a tie
    counts half. position_consistency: share of pairs of which both orders prefer the same response; position_bias: mean
    magnitude of theirs (nats); both where both are read. score_mean, score_std: of the log-odds.
    """
    orders = sums["orders"] or 1.0
    mean = sums["score"] / orders
    both = {
        name: sums[key] / (sums["pairs"] or 1.0)
        for name, key in (("position_consistency", "consistent"), ("position_bias", "position_bias"))
        if key in sums
    }
    return {
        "accuracy": sums["correct"] / (sums["decided"] or 1.0),
        **both,
        "score_mean": mean,
        "score_std": max(sums["score_square"] / orders - mean**2, 0.0) ** 0.5,
    }
