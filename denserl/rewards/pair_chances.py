"""The chance that the first of two responses is the better one, as a reward model says it; how sure of it one may be.

What is learned of such chances is in pseudo_labels.py.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from denserl.data.responses import Messages
from denserl.errors import require
from denserl.rewards.config import ScorerConfig
from denserl.rewards.scorer import RewardScorer

log = logging.getLogger(__name__)

# The temperatures between which one is looked for, in root mean squares of the log-odds.
SHARPEST, FLATTEST = 0.1, 100.0
CONFIDENCE_BINS = 10


def load_judge(path: str, config: ScorerConfig, device: torch.device, dtype: str) -> RewardScorer:
    """The reward model at the path, a folder or hub name, as what judges pairs; its settings are those stored with it."""
    return RewardScorer.from_config([path], config, device, dtype)


def pair_chances(
    judge: RewardScorer,
    prompts: Sequence[Messages],
    firsts: Sequence[str | dict],
    seconds: Sequence[str | dict],
    temperature: float = 1.0,
) -> np.ndarray:
    """The chance that the first of two responses is the better one: (n,) fp64. See `pair_log_odds` and `chances`."""
    return chances(pair_log_odds(judge, prompts, firsts, seconds), temperature)


def pair_log_odds(
    judge: RewardScorer,
    prompts: Sequence[Messages],
    firsts: Sequence[str | dict],
    seconds: Sequence[str | dict],
    whole: bool = False,
) -> np.ndarray:
    """Log-odds that the response shown first is the better one, in both orders: (n, 2) fp64.

    A model that scores single responses gives the difference d of two scores, and -d in the other order.

    whole: pairs that would have to be cut are not judged; theirs are NaN.

    Raises:
        BadRow: the judge's chat template refuses a prompt or a response.
    """
    pairs = [
        [judge.encode(prompt, response) for response in both] for prompt, *both in zip(prompts, firsts, seconds, strict=True)
    ]
    cut = np.array([any(one.prompt_cut or one.response_cut for one in pair) for pair in pairs], dtype=bool)
    kept = ~cut if whole else np.ones(len(pairs), dtype=bool)
    found = np.full((len(pairs), 2), np.nan)
    if kept.any():
        scores = judge.score([one for pair, keep in zip(pairs, kept) if keep for one in pair]).reshape(-1, 2)
        found[kept] = (scores[:, :1] - scores[:, 1:]) * np.array([1.0, -1.0])
    return found


def chances(log_odds: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(sigmoid(l_1 / T) + sigmoid(-l_2 / T)) / 2 of the log-odds in both orders, (n, 2): the first is the better, (n,).

    Of responses that change places the chance is one minus it (arXiv 2405.07863).
    """
    return (_sigmoid(log_odds[:, 0] / temperature) + _sigmoid(-log_odds[:, 1] / temperature)) / 2


def fit_temperature(d: np.ndarray, labels: np.ndarray) -> float:
    """The T at which sigmoid(d / T) makes labelled pairs most likely: argmin -mean[p ln s(d / T) + (1 - p) ln s(-d / T)].

    The mean is convex in 1 / T, so its slope, mean[d (s(d / T) - p)], has one zero (arXiv 1706.04599, section 4.2).

    Args:
        d: (n,) log-odds that the first is the better. labels: (n,) p, the chance that it is; 1 or 0 where that is known.

    Returns: T, between SHARPEST and FLATTEST root mean squares of d; the log says when it is one of the two.

    Raises:
        UserError: there is no pair, or all log-odds are 0.
    """
    d, labels = np.asarray(d, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    scale = float(np.sqrt(np.mean(d**2))) if len(d) else 0.0
    require(scale > 0, "no labelled pair has two scores that differ", "train longer, or give more held-out pairs")

    def slope(inverse: float) -> float:
        return float(np.mean(d * (_sigmoid(d * inverse) - labels)))

    low, high = np.log(1 / (FLATTEST * scale)), np.log(1 / (SHARPEST * scale))
    if slope(np.exp(low)) >= 0:
        log.warning("chances of pairs: %d held-out pairs are judged no better than by chance; taken as almost even", len(d))
        return FLATTEST * scale
    if slope(np.exp(high)) <= 0:
        log.warning("chances of pairs: %d held-out pairs are too few, or too easy, to say how sure one may be", len(d))
        return SHARPEST * scale
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def negative_log_likelihood(chance: np.ndarray, labels: np.ndarray) -> float:
    """-mean[p ln c + (1 - p) ln(1 - c)] of chances c, (n,), and labels p, (n,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(labels > 0, labels * np.log(chance), 0.0) + np.where(labels < 1, (1 - labels) * np.log1p(-chance), 0.0)
    return float(-terms.mean())


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = CONFIDENCE_BINS) -> list[dict]:
    """How often what is said with some confidence is right, in even bins of [0.5, 1]; the non-empty ones, lowest first.

    Args:
        confidence: (n,) of [0.5, 1]. right: (n,) 1 where what is said is so, 0 where not, 0.5 for a tie.
    """
    edges = np.linspace(0.5, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n": int((number == b).sum()),
            "confidence": float(confidence[number == b].mean()),
            "accuracy": float(right[number == b].mean()),
        }
        for b in np.unique(number)
    ]


def calibration_error(rows: Sequence[dict]) -> float:
    """sum over bins of n_b / n |accuracy_b - confidence_b| of what `reliability` gives (arXiv 1706.04599, section 2)."""
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / total)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
