"""How far a reward model tells the responses to one prompt apart, without labels (MetaRM, arXiv 2401.06080, section 4)."""

from torch import Tensor

from denserl.rewards.objectives.losses import full


def separation(scores: Tensor) -> Tensor:
    """J = 2 / k^2 sum_{i<j} sigmoid(|r_i - r_j|) for the scores r of k responses to each prompt: (P, k) -> (P,).

    (k - 1) / (2 k) where all scores are equal, below (k - 1) / k. Equal scores have no gradient from one another.

    Returns: fp32 (fp64 of fp64 scores), with graph.
    """
    scores, many = full(scores), scores.shape[1]
    gaps = (scores[:, :, None] - scores[:, None, :]).abs().sigmoid()
    # Each pair stands twice, and a response beside itself has sigmoid(0).
    return (gaps.sum((1, 2)) - many / 2) / many**2
