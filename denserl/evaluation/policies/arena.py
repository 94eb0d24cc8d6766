"""Arena-Hard's numbers from its judges' marks, in both ways that its code has had (github.com/lmarena/arena-hard-auto).

`v0.1` is the pipeline of 2024: Bradley-Terry ratings; `newer` that of April 2025: mean scores. Both can take out style: length
and markup. Where the original's numbers are random, ours are of a seed.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from denserl.evaluation.policies.clusters import RESAMPLES, times_drawn
from denserl.evaluation.policies.logistic import logistic
from denserl.evaluation.statistics import SAME
from denserl.judging.verdicts import ARENAHARD_NEWER
from denserl.rewards.ranking import bradley_terry

Rule = Literal["v0.1", "newer"]
# What the answer shown first has won, and how many battles that is.
WORTHS = {"first by far": (1.0, 3), "first": (1.0, 1), "tie": (0.5, 1), "second": (0.0, 1), "second by far": (0.0, 3)}
ROUNDS, SEED = 100, 42
PERCENTILES = {"v0.1": (2.5, 97.5), "newer": (5.0, 95.0)}
# Ratings of the baseline, without style control and with it; 400 more are odds of ten to one.
ANCHOR, STYLE_ANCHOR, SCALE = 1000.0, 1114.0, 400 / math.log(10)
STYLE = ("tokens", "headers", "lists", "bold")
STYLE_RIDGE = {"v0.1": 1.0, "newer": 1e-9}


class Battles(NamedTuple):
    """What a policy has won of the baseline, in n battles."""

    scores: np.ndarray  # (n,): 1, 0.5 a tie, 0
    questions: np.ndarray  # (n,): the number, in the games given, of the question each is of


def battles(games: Sequence[Sequence[str | None]], rule: Rule = "v0.1") -> Battles:
    """The battles of games, in which a mark of >> is three.

    v0.1 leaves out a game without a mark, newer its question.

    Args: games: of each question the marks of two, in which A is the baseline, then the policy; None: no mark.

    Raises:
        ValueError: another mark.
    """
    scores: list[float] = []
    questions: list[int] = []
    for number, marks in enumerate(games):
        if rule == "newer" and None in marks:
            continue
        for place, mark in enumerate(marks):
            if mark is not None:
                of_first, copies = _read(mark)
                scores += [of_first if place else 1 - of_first] * copies
                questions += [number] * copies
    return Battles(np.array(scores, dtype=np.float64), np.array(questions, dtype=int))


def ratings(wins: np.ndarray, baseline: int = 0, anchor: float = ANCHOR) -> np.ndarray:
    """Bradley-Terry ratings, (..., n), the baseline's at `anchor`; NaN of a model without a battle.

    wins: (..., n, n), how often each has beaten each other one, a tie half to both.
    """
    scores = bradley_terry(wins)
    played = (wins + np.swapaxes(wins, -1, -2)).sum(-1) > 0
    return np.where(played, anchor + SCALE * (scores - scores[..., baseline, None]), np.nan)


def win_rates(rated: np.ndarray, baseline: int = 0) -> np.ndarray:
    """In percent, 100 / (1 + 10^((R_baseline - R) / 400)), of ratings (..., n)."""
    return 100 * expit((rated - rated[..., baseline, None]) / SCALE)


def arena(scores: np.ndarray, policies: np.ndarray, rule: Rule = "v0.1", rounds: int = ROUNDS, seed: int = SEED) -> list[dict]:
    """The table without style control, a row for each policy: `win_rate`, its `interval`, and of v0.1 the `rating`.

    v0.1: ratings of all battles, and percentiles 2.5 and 97.5 of those of battles of all policies drawn anew, each copy apart.
    newer: the mean over rounds of the mean score of the policy's battles drawn anew, and percentiles 5 and 95.

    Args: scores: (n,) of battles. policies: (n,) from 0 on, whose they are; each has some.
    """
    rng, own = np.random.default_rng(seed), np.eye(policies.max() + 1)[policies]
    if rule == "newer":
        drawn = np.stack([_means_drawn(scores[policies == k], rounds, rng) for k in range(own.shape[1])], axis=1)
        return _rows(drawn.mean(0), drawn, rule)
    rated = ratings(_against_baseline(np.ones(len(scores)), scores, own))
    again = ratings(_against_baseline(_drawn(len(scores), rounds, rng), scores, own))
    return _rows(win_rates(rated)[1:], win_rates(again)[:, 1:], rule, rated[1:])


def style_features(policy: np.ndarray, baseline: np.ndarray, rule: Rule) -> np.ndarray:
    """How a policy's answers and the baseline's differ in `STYLE`, standardised over battles: (n, 4).

    v0.1: (baseline - policy) / (baseline + policy + 1) of the counts, and the population's deviation. newer: of tokens
    (policy - baseline) / (policy + baseline), of the others the same as in v0.1 with the policy first, of count / (tokens + 1);
    deviations of n - 1. A feature that does not vary is 0.

    Args: policy, baseline: (n, 4) counts of each battle's answers.
    """
    if rule == "v0.1":
        found, freedom = (baseline - policy) / (baseline + policy + 1), 0
    else:
        dense, base = (counts[:, 1:] / (counts[:, :1] + 1) for counts in (policy, baseline))
        tokens = policy[:, :1] + baseline[:, :1]
        length = (policy[:, :1] - baseline[:, :1]) / np.where(tokens > 0, tokens, 1)
        found, freedom = np.concatenate([length, (dense - base) / (dense + base + 1)], axis=1), 1
    spread = found.std(axis=0, ddof=min(freedom, len(found) - 1))
    return (found - found.mean(0)) / np.where(spread > SAME, spread, np.inf)


def arena_by_style(
    scores: np.ndarray,
    policies: np.ndarray,
    style: np.ndarray,
    questions: np.ndarray,
    rule: Rule = "v0.1",
    rounds: int = ROUNDS,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> tuple[list[dict], list[float]]:
    """The table with style control, as of `arena`, and the coefficients of the style's features.

    One logistic regression of all policies' scores on who plays and on style. v0.1: (ln 10) (the baseline less the policy), of
    the baseline's score, each battle twice, with half the squares of all coefficients as penalty; win rates of its ratings.
    newer: the policy less the baseline, no penalty, and the medians over rounds. Rounds draw battles of all policies anew;
    `question_interval` has percentiles 2.5 and 97.5 of fits on questions drawn anew, each with all battles of all policies.

    Args: scores, policies: as of `arena`. style: (n, k), see `style_features`. questions: (n,) numbers or names.
    """
    own, old = np.eye(policies.max() + 1)[policies], rule == "v0.1"
    unit, copies, won = (-math.log(10), 2.0, 1 - scores) if old else (1.0, 1.0, scores)
    features = np.concatenate([-unit * np.ones((len(scores), 1)), unit * own, style], axis=1)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn(len(scores), rounds, rng), times_drawn(questions, resamples, seed)])
    fit = logistic(features, won, copies, ridge=STYLE_RIDGE[rule])
    fits = np.vstack([fit, logistic(features, won, copies * drawn, ridge=STYLE_RIDGE[rule], start=fit)])
    players, weights = np.split(fits, [own.shape[1] + 1], axis=1)
    rated = STYLE_ANCHOR + SCALE * abs(unit) * (players - players[:, :1])
    there = np.vstack([own.sum(0), drawn @ own]) > 0
    rates = np.where(there, win_rates(rated)[:, 1:], np.nan)
    whole, again, anew = np.split(rates, [1, 1 + rounds])
    if old:
        rows, shown = _rows(whole[0], again, rule, rated[0, 1:]), weights[0]
    else:
        rows, shown = _rows(np.nanmedian(again, axis=0), again, rule), np.median(weights[1 : 1 + rounds], axis=0)
    bounds = np.nanpercentile(anew, PERCENTILES["v0.1"], axis=0).T.tolist()
    return [row | {"question_interval": pair} for row, pair in zip(rows, bounds, strict=True)], shown.tolist()


def _read(mark: str) -> tuple[float, int]:
    try:
        return WORTHS[ARENAHARD_NEWER[mark]]
    except KeyError:
        raise ValueError(f"unknown mark {mark!r}; known: {', '.join(ARENAHARD_NEWER)}") from None


def _drawn(count: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` battles is drawn: (rounds, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=rounds)


def _means_drawn(scores: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Means, in percent, of battles drawn anew: (rounds,)."""
    return 100 * _drawn(len(scores), rounds, rng) @ scores / len(scores)


def _against_baseline(times: np.ndarray, scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Wins of all, the baseline first, (..., m + 1, m + 1). times: (..., n) of each battle. own: (n, m), whose it is."""
    wins = np.zeros((*times.shape[:-1], own.shape[1] + 1, own.shape[1] + 1))
    wins[..., 1:, 0], wins[..., 0, 1:] = (times * scores) @ own, (times * (1 - scores)) @ own
    return wins


def _rows(rates: np.ndarray, drawn: np.ndarray, rule: Rule, rated: np.ndarray | None = None) -> list[dict]:
    """rates: (m,). drawn: (rounds, m), NaN where a policy had no battle. rated: (m,)."""
    bounds = np.nanpercentile(drawn, PERCENTILES[rule], axis=0)
    rows = [{"win_rate": float(rate), "interval": own.tolist()} for rate, own in zip(rates, bounds.T, strict=True)]
    return rows if rated is None else [{**row, "rating": float(rating)} for row, rating in zip(rows, rated, strict=True)]
