"""What is told of a model of rated attributes: how far its ratings are off, beside always saying the mean, and correlations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from denserl.rewards.attributes import spearman


def rating_sums(predictions: Tensor, ratings: Tensor, counted: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """What the metrics of attributes are made of, as sums (0-d, fp64, no gradient), so that batches and ranks add up.

    Args:
        predictions, ratings: (G, K), NaN where there is no rating. counted: (G,) bool, the responses to sum over.
        names: of the attributes.
    """
    rated = (~ratings.isnan() & counted[:, None]).double()
    p, y = predictions.detach().double(), ratings.double().nan_to_num(0.0)
    products = {"rated": rated, "p": p, "y": y, "pp": p * p, "yy": y * y, "py": p * y}
    sums = {kind: (values * rated).sum(0) for kind, values in products.items()}
    return {f"{kind}/{name}": values[k] for kind, values in sums.items() for k, name in enumerate(names)}


def rating_metrics(sums: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    """Metrics of what `rating_sums` summed.

    mse: the mean squared error over all ratings. mean_mse: that of saying, of each attribute, the mean of these very ratings.
    mse/NAME, pearson/NAME: of one attribute; 0 where it has no rating, and no correlation where it does not vary.
    """
    metrics, total, constant = {}, 0.0, 0.0
    for name in names:
        count, p, y, pp, yy, py = (sums[f"{kind}/{name}"] for kind in ("rated", "p", "y", "pp", "yy", "py"))
        error, count = max(pp - 2 * py + yy, 0.0), count or 1.0
        # Spreads that are of rounding alone are none.
        spread_p, spread_y = (max(square - part**2 / count, 0.0) for square, part in ((pp, p), (yy, y)))
        varies = spread_p > 1e-12 * pp and spread_y > 1e-12 * yy
        metrics[f"mse/{name}"] = error / count
        metrics[f"pearson/{name}"] = (py - p * y / count) / (spread_p * spread_y) ** 0.5 if varies else 0.0
        total, constant = total + error, constant + spread_y
    entries = sum(sums[f"rated/{name}"] for name in names) or 1.0
    return {"mse": total / entries, "mean_mse": constant / entries, **metrics}


def rank_correlations(predictions: Tensor, ratings: Tensor, names: Sequence[str]) -> dict[str, float]:
    """spearman/NAME over the responses that have a rating, 0 where it does not vary. Args: as of `rating_sums`."""
    pairs = [(p[~y.isnan()], y[~y.isnan()]) for p, y in zip(predictions.T, ratings.T)]
    return {f"spearman/{name}": spearman(*pair) if len(pair[0]) else 0.0 for name, pair in zip(names, pairs, strict=True)}


def joined(rows: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Predictions and ratings of single responses as (N, K) each, in the order of the rows' numbers."""
    predictions, ratings = zip(*(rows[number] for number in sorted(rows)))
    return torch.stack(predictions), torch.stack(ratings)
