"""The chance that the first of two responses is the better one, as a reward model says it; how sure of it one may be.

What is learned of such chances is in pseudo_labels.py.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit

from denserl.config import ModelSourceConfig
from denserl.data.bad_rows import BadRow
from denserl.data.pair_encoding import Answer
from denserl.data.responses import Messages
from denserl.errors import require
from denserl.rewards.ranking import chances
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.build import judges_pairs
from denserl.rewards.sources.pair_model import PairModel, PairOrders

log = logging.getLogger(__name__)

# The temperatures between which one is looked for, in root mean squares of the log-odds.
SHARPEST, FLATTEST = 0.1, 100.0
CONFIDENCE_BINS = 10


Judge = RewardScorer | PairModel


def load_judge(
    path: str,
    *,
    device: torch.device | str = "cpu",
    dtype: str = "fp32",
    max_length: int = 2048,
    score_tokens: int = 16384,
    trusted: Sequence[str | None] = (),
    source: ModelSourceConfig | None = None,
) -> Judge:
    """The reward model at the path, a folder or hub name, as what judges pairs; read as is stored with it.

    The arguments are those of `RewardScorer`; where both responses are read in one text, `max_length` is its own.
    """
    source = source or ModelSourceConfig()
    lengths: dict[str, Any] = {"max_length": max_length, "score_tokens": score_tokens}
    if judges_pairs(path, source):
        return PairModel.load(path, dtype, source, device, **lengths)
    return RewardScorer([path], device=device, dtype=dtype, trusted=trusted, source=source, **lengths)


def pair_chances(
    judge: Judge,
    prompts: Sequence[Messages],
    firsts: Sequence[Answer],
    seconds: Sequence[Answer],
    temperature: float = 1.0,
) -> np.ndarray:
    """The chance that the first of two responses is the better one: (n,) fp64. See `pair_log_odds`, `chances_at`."""
    return chances_at(temperature, pair_log_odds(judge, prompts, firsts, seconds))


def pair_log_odds(
    judge: Judge,
    prompts: Sequence[Messages],
    firsts: Sequence[Answer],
    seconds: Sequence[Answer],
    whole: bool = False,
) -> np.ndarray:
    """Log-odds that the response that stands first is the better one, as given and exchanged: (n, 2) fp64.

    A model that scores single responses gives the difference d of two scores, and -d with both exchanged.

    whole: pairs that would have to be cut, or that cannot be written for the judge, are not judged; theirs are NaN.

    Raises:
        BadRow: unless `whole`, a pair that cannot be written.
    """
    rows, encoded = [], []
    for row, pair in enumerate(zip(prompts, firsts, seconds, strict=True)):
        try:
            one = _encoded(judge, *pair)
        except BadRow:
            if not whole:
                raise
            continue
        if not (whole and _is_cut(one)):
            rows.append(row)
            encoded.append(one)
    found = np.full((len(prompts), 2), np.nan)
    if rows:
        found[rows] = _log_odds(judge, encoded)
    return found


def _encoded(judge: Judge, prompt: Messages, first: Answer, second: Answer) -> Any:
    if isinstance(judge, PairModel):
        return judge.encode(prompt, first, second)
    return judge.encode(prompt, first), judge.encode(prompt, second)


def _is_cut(pair: Any) -> bool:
    return pair.is_cut if isinstance(pair, PairOrders) else any(one.prompt_cut or one.response_cut for one in pair)


def _log_odds(judge: Judge, encoded: Sequence[Any]) -> np.ndarray:
    if isinstance(judge, PairModel):
        return judge.score(encoded)
    first, second = judge.score([one for pair in encoded for one in pair]).reshape(-1, 2).T
    return np.stack([first - second, second - first], axis=1)


def chances_at(temperature: float, log_odds: np.ndarray) -> np.ndarray:
    """`ranking.chances` of log-odds in both orders, (n, 2), divided by the temperature: (n,)."""
    return chances(log_odds / temperature)


def fit_temperature(d: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The T at which sigmoid(d / T) makes labelled pairs most likely: argmin -mean[p ln s(d / T) + (1 - p) ln s(-d / T)].

    The mean is convex in 1 / T, so its slope, mean[d (s(d / T) - p)], has one zero (arXiv 1706.04599, section 4.2).

    Args:
        d: (n,) log-odds that the first is the better. labels: (n,) p, the chance that it is; 1 or 0 where that is known.
        weights: (n,) how much each pair counts in the means; alike where there are none.

    Returns: T, between SHARPEST and FLATTEST root mean squares of d; the log says when it is one of the two.

    Raises:
        UserError: there is no pair, or all log-odds are 0.
    """
    d, labels = np.asarray(d, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    scale = float(np.sqrt(np.average(d**2, weights=weights))) if len(d) else 0.0
    require(scale > 0, "no labelled pair has two scores that differ", "train longer, or give more held-out pairs")

    def slope(inverse: float) -> float:
        """Of 1 / T in units of 1 / scale."""
        return float(np.average(d * (expit(d / scale * inverse) - labels), weights=weights))

    low, high = 1 / FLATTEST, 1 / SHARPEST
    if slope(low) >= 0:
        log.warning("chances of pairs: %d held-out pairs are judged no better than by chance; taken as almost even", len(d))
        return FLATTEST * scale
    if slope(high) <= 0:
        log.warning("chances of pairs: %d held-out pairs are too few, or too easy, to say how sure one may be", len(d))
        return SHARPEST * scale
    return float(scale / brentq(slope, low, high))


def negative_log_likelihood(chance: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """-mean[p ln c + (1 - p) ln(1 - c)] of chances c, (n,), and labels p, (n,), by weights, (n,), where there are any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(labels > 0, labels * np.log(chance), 0.0) + np.where(labels < 1, (1 - labels) * np.log1p(-chance), 0.0)
    return float(-np.average(terms, weights=weights))


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = CONFIDENCE_BINS, weights: np.ndarray | None = None
) -> list[dict]:
    """How often what is said with some confidence is right, in even bins of [0.5, 1]; the non-empty ones, lowest first.

    Args:
        confidence: (n,) of [0.5, 1]. right: (n,) 1 where what is said is so, 0 where not, 0.5 for a tie.
        weights: (n,) above 0, how much each counts; `n` of a bin is their sum, and the number of pairs where there are none.
    """
    weights = np.ones(len(confidence), dtype=int) if weights is None else weights
    edges = np.linspace(0.5, 1, bins + 1)
    number = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n": weights[number == b].sum().item(),
            "confidence": float(np.average(confidence[number == b], weights=weights[number == b])),
            "accuracy": float(np.average(right[number == b], weights=weights[number == b])),
        }
        for b in np.unique(number)
    ]


def calibration_error(rows: Sequence[dict]) -> float:
    """sum over bins of n_b / n |accuracy_b - confidence_b| of what `reliability` gives (arXiv 1706.04599, section 2)."""
    total = sum(row["n"] for row in rows)
    return float(sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / total)
