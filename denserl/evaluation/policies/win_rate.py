"""Win rates of a policy against a baseline, as AlpacaEval counts them (github.com/tatsu-lab/alpaca_eval, 0.6.6)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

TIE = 1.5


def credits(preferences: ArrayLike) -> np.ndarray:
    """What each preference is worth to the policy: (n,) in [0, 1], NaN where there is none.

    Args:
        preferences: (n,) from 1, the baseline is better, to 2, the policy is; 0 is an older word for a tie. None, NaN and
            numbers outside [1, 2] are none.
    """
    found = np.array(preferences, dtype=np.float64)
    found[found == 0] = TIE
    found[~((found >= 1) & (found <= 2))] = np.nan
    return found - 1


def win_rate(preferences: ArrayLike) -> dict[str, float | None]:
    """AlpacaEval's numbers by their names, in percent: of w = preference - 1 the mean, its standard error, and counts.

    A draw is a preference of 1.5 exactly; `discrete_win_rate` counts wins, and draws half. A rate of nothing is None, and so is
    the standard error of one preference. Preferences that are none are in none of them (`credits`).
    """
    own = credits(preferences)
    own = own[~np.isnan(own)]
    wins, losses = int((own > 0.5).sum()), int((own < 0.5).sum())
    draws = len(own) - wins - losses
    return {
        "win_rate": 100 * float(own.mean()) if len(own) else None,
        "standard_error": standard_error(own),
        "n_wins": wins,
        "n_wins_base": losses,
        "n_draws": draws,
        "n_total": len(own),
        "discrete_win_rate": 100 * (wins + draws / 2) / len(own) if len(own) else None,
    }


def standard_error(shares: np.ndarray) -> float | None:
    """100 sd / sqrt(n), with n - 1 in sd: of a mean of n shares that have nothing to do with one another; None of one."""
    return 100 * float(shares.std(ddof=1)) / len(shares) ** 0.5 if len(shares) > 1 else None


def average_length(characters: Sequence[int]) -> int | None:
    """The mean length of all outputs of a policy, judged or not, cut to a whole number, as AlpacaEval's tables have it."""
    return sum(characters) // len(characters) if characters else None


def by_position(credits: ArrayLike, policy_first: ArrayLike) -> dict[str, float | None]:
    """Win rates, in percent, where the judge saw the policy's answer first, and second; equal where the place says nothing.

    Args: credits: (n,), NaN: none. policy_first: (n,) bool.
    """
    own, first = np.asarray(credits, dtype=np.float64), np.asarray(policy_first, dtype=bool)
    parts = {"first": own[first], "second": own[~first]}
    return {name: 100 * float(np.nanmean(part)) if (~np.isnan(part)).any() else None for name, part in parts.items()}
