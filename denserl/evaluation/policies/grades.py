"""MT-Bench's numbers: mean grades of two turns, and win rates of pairs (github.com/lm-sys/FastChat, 0.2.36)."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Winner = Literal["first", "second", "tie", "error"]


def grades(scores: ArrayLike, turns: ArrayLike, categories: Sequence[str]) -> dict:
    """Means of valid scores: of each turn, of each category over both turns, and `average`, over all of them.

    The average is not the mean of the turns' where these have unlike many valid scores. A mean of nothing is None.

    Args:
        scores: (n,) of judgments; None, NaN and what is below 0 (-1 is the original's word for it) is not valid.
        turns: (n,). categories: n names, of the questions.
    """
    found = np.array(scores, dtype=np.float64)
    valid = found >= 0
    turns, categories = np.asarray(turns), np.asarray(categories)
    return {
        **{f"turn_{turn}": _mean(found[valid & (turns == turn)]) for turn in np.unique(turns)},
        "average": _mean(found[valid]),
        "categories": {str(name): _mean(found[valid & (categories == name)]) for name in dict.fromkeys(categories.tolist())},
        "valid": int(valid.sum()),
        "invalid": int((~valid).sum()),
    }


def pair_rates(winners: Sequence[Winner]) -> dict:
    """Of the first model, in shares of the pairs that are no errors: `win_rate`, `loss_rate`, `win_rate_adjusted` (a tie half).

    A rate of nothing is None.
    """
    counts = Counter(winners)
    win, loss, tie = counts["first"], counts["second"], counts["tie"]
    n = win + loss + tie
    rates = {"win_rate": win, "loss_rate": loss, "win_rate_adjusted": win + tie / 2}
    shares = {name: value / n if n else None for name, value in rates.items()}
    return {"win": win, "loss": loss, "tie": tie, "error": counts["error"], **shares}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
