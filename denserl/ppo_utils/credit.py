"""What steps are worth, of the chances that they are right, and how the blame for a bad one falls. Pure tensor code.

On which tokens it is paid is in assignment.py.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from denserl.ppo_utils.assignment import score_changes
from denserl.rewards.aggregation import is_within, valid_scores

STEP_REWARDS = ("difference", "centred", "prob", "logit")
CREDITS = ("sum", "min", "prefix_min")
BASELINE = 0.5  # the chance of success before the first step


def step_rewards(logits: Tensor, counts: Tensor, kind: str) -> Tensor:
    """A number for each step, of the logits l_k of p_k = sigmoid(l_k), the chance that it is right (docs/process_rewards.md).

    prob: p_k. centred: 2 p_k - 1. logit: l_k. difference: p_k - p_(k-1) with p_0 = 1/2, which adds up to p_K - p_0 whatever the
    number of steps (potential-based shaping, Ng, Harada and Russell 1999).

    Args:
        logits: (B, K_max), anything past a row's K. counts: (B,) long, K of each row.

    Returns: (B, K_max) fp32, 0 past a row's K.

    Raises:
        ValueError: unknown `kind`.
    """
    if kind not in STEP_REWARDS:
        raise ValueError(f"unknown step reward {kind!r}; known: {', '.join(STEP_REWARDS)}")
    logits = valid_scores(logits, counts)
    chances = logits.sigmoid()
    if kind == "difference":
        found = chances - pad(chances, (1, 0), value=BASELINE)[:, :-1]
    else:
        found = {"prob": chances, "centred": 2 * chances - 1, "logit": logits}[kind]
    return valid_scores(found, counts)


def credited(rewards: Tensor, counts: Tensor, how: str, temperature: float = 0.1) -> Tensor:
    """What segments are paid, of the rewards r_k of single segments.

    sum: r_k, so that good segments make up for a bad one. min: w_k r_k with w = softmax(-r / temperature) over the response
    (PURE, arXiv 2504.15275, section 3), which is about the least r_k, at that segment. prefix_min: what segment k changes in
    the least reward so far, m_k - m_(k-1) with m_0 = 0, which adds up to the least r_k exactly.

    Args:
        rewards: (B, K_max), anything past a row's K. counts: (B,) long, K of each row. temperature: > 0, of min.

    Returns: (B, K_max) fp32, 0 past a row's K.

    Raises:
        ValueError: unknown `how`, or a temperature that is not above 0.
    """
    if how not in CREDITS:
        raise ValueError(f"unknown credit {how!r}; known: {', '.join(CREDITS)}")
    if temperature <= 0:
        raise ValueError(f"the temperature is {temperature}; it must be > 0")
    rewards = valid_scores(rewards, counts)
    if how == "prefix_min":
        return score_changes(rewards, counts, "min")
    if how == "min":
        weights = torch.where(is_within(rewards, counts), -rewards / temperature, -torch.inf).softmax(1)
        rewards = valid_scores(weights * rewards, counts)  # a row without segments has no weights
    return rewards
