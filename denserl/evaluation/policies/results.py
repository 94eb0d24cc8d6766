"""The numbers of judged policies, for results.json: headline and intervals, the originals' by their names, what to doubt."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from denserl.evaluation.policies import arena, win_rate
from denserl.evaluation.policies.answers import Id
from denserl.evaluation.policies.clusters import Estimate, difference_of_means, mean_of_questions
from denserl.evaluation.policies.credits import arena_marks
from denserl.evaluation.policies.games import Mode, Suite
from denserl.evaluation.policies.grades import grades, pair_rates
from denserl.evaluation.policies.joining import equal_answers
from denserl.evaluation.policies.length_control import (
    Variant,
    length_controlled,
    length_controlled_difference,
    length_feature,
    length_remarks,
)
from denserl.evaluation.policies.length_files import LengthFiles
from denserl.evaluation.policies.outcomes import Judged, Outcome
from denserl.intervals import wilson

LOWEST = 1.0  # the rating that a missing answer is given where it counts as lost
PERCENT = 100.0


class Counting(NamedTuple):
    """How judgements are counted.

    mean: what their mean is called: win_rate, average, and the like. stand_in: a reward model has judged, and the originals'
    numbers are not made of that. lengths: AlpacaEval's files, where they are at hand.
    """

    suite: Suite
    mode: Mode
    mean: str
    resamples: int
    seed: int
    stand_in: bool = False
    style_control: bool = False
    lengths: LengthFiles | None = None

    @property
    def unit(self) -> float:
        """Win rates are in percent, ratings as they are."""
        return 1.0 if self.mode == "single" else PERCENT


def results_of(policies: Sequence[Judged], how: Counting) -> dict[str, Any]:
    """`policies`, the numbers of each by its name, and `differences` of each two, on the questions that both answer."""
    found = {judged.name: _of_policy(judged, how) for judged in policies}
    if how.suite == "arenahard" and not how.stand_in:
        for judged, original in zip(policies, _arena(policies, how), strict=True):
            found[judged.name]["original"] = original
    pairs = list(combinations(policies, 2))
    return {"policies": found, "differences": [_difference(first, second, how) for first, second in pairs]}


def _of_policy(judged: Judged, how: Counting) -> dict[str, Any]:
    credits, questions = _credits(judged.outcomes)
    mean = _figures(mean_of_questions(credits, questions, how.resamples, how.seed), how)
    found: dict[str, Any] = {"headline": {"name": how.mean, **mean}, how.mean: mean, "remarks": []}
    if how.suite == "alpacaeval" and not how.stand_in:
        found |= {"original": _alpacaeval(judged.outcomes), **_length_control(judged.outcomes, how)}
    if how.suite == "mtbench" and not how.stand_in:
        found["original"] = (_grades if how.mode == "single" else _pairs)(judged)
    if judged.gaps.missing:
        found[f"{how.mean}_if_missing_lost"] = _if_missing_lost(judged, how)
    return found | _about(judged, how)


def _about(judged: Judged, how: Counting) -> dict[str, Any]:
    """What does not depend on the suite: counts, positions, lengths, parts."""
    outcomes, games = judged.outcomes, [played for _, played in judged.games()]
    states = [played.state for played in games]
    cut = [outcome for outcome in outcomes if outcome.match.policy.truncated and any(outcome.match.policy.truncated)]
    told = [outcome for outcome in outcomes if outcome.match.policy.truncated is not None]
    found: dict[str, Any] = {
        "questions": len({outcome.match.question.id for outcome in outcomes}),
        "answers": len(outcomes),
        "judged": sum(bool(outcome.credits) for outcome in outcomes),
        "missing": len(judged.gaps.missing),
        "empty": len(judged.gaps.empty),
        "games": len(games),
        **{state: states.count(state) for state in ("invalid", "cut", "equal")},
        "one_sided": sum(played.one_sided for played in games),
        "lengths": _lengths(outcomes),
        # None where the files do not say it.
        "truncated": {"answers": len(cut), "share": len(cut) / len(told), how.mean: _mean(cut, how)} if told else None,
        "equal_answers": equal_answers([outcome.match for outcome in outcomes]),
        "by_category": _by(outcomes, lambda outcome: outcome.match.question.category, how),
    }
    return found if how.mode == "single" else found | {"positions": _positions(outcomes)}


def _credits(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """All credits, and the question of each."""
    ids = [str(outcome.match.question.id) for outcome in outcomes for _ in outcome.credits]
    return np.array([credit for outcome in outcomes for credit in outcome.credits], dtype=np.float64), np.array(ids, dtype=str)


def _ids(outcomes: Sequence[Outcome]) -> np.ndarray:
    """The question of each."""
    return np.array([str(outcome.match.question.id) for outcome in outcomes])


def _figures(estimate: Estimate, how: Counting) -> dict[str, Any]:
    """An estimate in the suite's unit. The interval of a share ends at 0 and 1; where nothing varies it is Wilson's."""
    bounds, value = estimate.interval, estimate.mean
    if how.mode == "pair" and bounds is not None and value is not None:
        bounds = [max(bounds[0], 0.0), min(bounds[1], 1.0)] if estimate.standard_error else wilson(value, estimate.questions)
    return _in_unit(estimate._replace(interval=bounds), how)


def _in_unit(estimate: Estimate, how: Counting) -> dict[str, Any]:
    def scaled(value: Any) -> Any:
        return None if value is None else [how.unit * part for part in value] if isinstance(value, list) else how.unit * value

    names = {"value": "mean", "interval": "interval", "standard_error": "standard_error", "bootstrap": "bootstrap"}
    return {name: scaled(getattr(estimate, field)) for name, field in names.items()} | {"questions": estimate.questions}


def _difference(first: Judged, second: Judged, how: Counting) -> dict[str, Any]:
    estimate = difference_of_means(*_credits(first.outcomes), *_credits(second.outcomes), how.resamples, how.seed)
    found = {"first": first.name, "second": second.name, "of": how.mean, **_in_unit(estimate, how)}
    if how.suite != "alpacaeval" or how.stand_in:
        return found
    shared = set(_ids(first.outcomes)) & set(_ids(second.outcomes))
    variant = _lc_variants(how)[0]
    one, other = (
        _lc_rows([outcome for outcome in judged.outcomes if str(outcome.match.question.id) in shared], how)
        for judged in (first, second)
    )
    gamed = how.lengths and how.lengths.gamed
    at_equal_lengths = length_controlled_difference(one, other, variant, gamed, how.resamples, how.seed)
    return found | {"length_control": {"of": _lc_name(how), **at_equal_lengths}}


def _mean(outcomes: Sequence[Outcome], how: Counting) -> float | None:
    credits, _ = _credits(outcomes)
    return how.unit * float(credits.mean()) if len(credits) else None


def _by(outcomes: Sequence[Outcome], part: Callable[[Outcome], str], how: Counting) -> dict[str, dict]:
    parts: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        parts.setdefault(part(outcome) or "none", []).append(outcome)
    return {
        name: _figures(mean_of_questions(*_credits(found), how.resamples, how.seed), how) | {"answers": len(found)}
        for name, found in parts.items()
    }


def _if_missing_lost(judged: Judged, how: Counting) -> float:
    """The mean over questions if each that has no answer were lost: 0 of a comparison, the lowest rating."""
    means: dict[Id, list[float]] = {}
    for outcome in judged.outcomes:
        means.setdefault(outcome.match.question.id, []).extend(outcome.credits)
    known = [sum(credits) / len(credits) for credits in means.values() if credits]
    lost = LOWEST if how.mode == "single" else 0.0
    missing = len(judged.gaps.missing)
    return how.unit * (sum(known) + lost * missing) / (len(known) + missing)


def _lengths(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean characters of the answers, all turns together."""
    own = [sum(map(len, outcome.match.policy.turns)) for outcome in outcomes]
    others = [sum(map(len, outcome.match.baseline.turns)) for outcome in outcomes if outcome.match.baseline]
    return {"policy": float(np.mean(own))} | ({"baseline": float(np.mean(others))} if others else {})


def _positions(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What places do: win rates where the policy's answer is shown first, and second; how much of all games goes to what is
    shown first; and in what share of games with the places exchanged, both of which have a verdict, both prefer the same."""
    games = [played for outcome in outcomes for played in outcome.games]
    asked = [played for played in games if played.state == "valid" and played.worth is not None]
    worths, first = np.array([played.worth for played in asked]), np.array([played.game.policy_first for played in asked], bool)
    share = float(np.where(first, worths, 1 - worths).mean()) if asked else None
    same = [np.sign(one - 0.5) == np.sign(other - 0.5) for outcome in outcomes for one, other in _exchanged(outcome)]
    return {**win_rate.by_position(worths, first), "first_share": share, "consistency": float(np.mean(same)) if same else None}


def _exchanged(outcome: Outcome) -> Iterator[tuple[float, float]]:
    """What both games of a turn are worth, where both have a verdict."""
    known = {played.game: played.worth for played in outcome.games if played.worth is not None}
    for game, worth in known.items():
        other = known.get(game._replace(policy_first=False))
        if game.policy_first and other is not None:
            yield worth, other


def _alpacaeval(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """AlpacaEval's numbers by their names."""
    preferences = [None if outcome.worth is None else 1 + outcome.worth for outcome in outcomes]
    length = win_rate.average_length([len(outcome.match.policy.turns[0]) for outcome in outcomes])
    return win_rate.win_rate(preferences) | {"avg_length": length}


def _length_control(outcomes: Sequence[Outcome], how: Counting) -> dict[str, Any]:
    """`length_control`, the win rates at equal lengths by their variants, the first of which is the headline."""
    rows, files = _lc_rows(outcomes, how), how.lengths
    found = {
        name: length_controlled(**rows, variant=name, gamed=files and files.gamed, resamples=how.resamples, seed=how.seed)
        for name in _lc_variants(how)
    }
    first = found[_lc_variants(how)[0]]
    headline = {"name": _lc_name(how), "value": first["length_controlled_winrate"], "interval": first["interval"]}
    return {"headline": headline, "length_control": found, "remarks": [] if files else length_remarks(rows["length"])}


def _lc_variants(how: Counting) -> tuple[Variant, Variant]:
    """The first of them makes the headline."""
    return ("v1", "noreg") if how.lengths else ("fixed", "minimal")


def _lc_name(how: Counting) -> str:
    return f"lc_{how.mean} ({_lc_variants(how)[0]})"


def _lc_rows(outcomes: Sequence[Outcome], how: Counting) -> dict[str, Any]:
    """What win rates at equal lengths are made of."""
    lengths = [[len(answer.turns[0]) for answer in (outcome.match.baseline, outcome.match.policy)] for outcome in outcomes]
    return {
        "credits": np.array([outcome.worth for outcome in outcomes], dtype=np.float64),
        "length": length_feature(*np.array(lengths, dtype=np.float64).reshape(-1, 2).T),
        "difficulty": how.lengths and how.lengths.difficulty([outcome.match.question.id for outcome in outcomes]),
        "questions": _ids(outcomes),
    }


def _grades(judged: Judged) -> dict[str, Any]:
    """MT-Bench's means."""
    games = list(judged.games())
    scores = [-1.0 if played.worth is None else played.worth for _, played in games]
    return grades(scores, [played.game.turn for _, played in games], [match.question.category for match, _ in games])


def _pairs(judged: Judged) -> dict[str, Any]:
    """MT-Bench's rates of pairs: rows of turns, those without a verdict being errors."""
    names: dict[float, Any] = {1.0: "first", 0.0: "second"}
    winners: list[Any] = [names.get(credit, "tie") for outcome in judged.outcomes for credit in outcome.credits]
    turns = sum(len(outcome.match.question.turns) for outcome in judged.outcomes)
    return pair_rates(winners + ["error"] * (turns - len(winners)))


def _arena(policies: Sequence[Judged], how: Counting) -> list[dict[str, Any]]:
    """Arena-Hard's rows of each policy in both ways, with style control where it is asked for."""
    found: list[dict[str, Any]] = [{} for _ in policies]
    for rule in ("v0.1", "newer"):
        read = [judged.newer or judged.outcomes if rule == "newer" else judged.outcomes for judged in policies]
        own = [arena.battles([arena_marks(outcome.games) for outcome in outcomes], rule) for outcomes in read]
        there = [number for number, battles in enumerate(own) if len(battles.scores)]
        scores = np.concatenate([battles.scores for battles in own])
        whose = np.repeat(np.arange(len(there)), [len(own[number].scores) for number in there])
        if not there:
            continue
        tables = {rule: arena.arena(scores, whose, rule, seed=how.seed)}
        if how.style_control:
            counts = [_styles(policies[number].outcomes, own[number].questions) for number in there]
            own_counts, base_counts = np.concatenate(counts, axis=1)
            style = arena.style_features(own_counts, base_counts, rule)
            asked = np.concatenate([_ids(policies[number].outcomes)[own[number].questions] for number in there])
            table, weights = arena.arena_by_style(scores, whose, style, asked, rule, seed=how.seed, resamples=how.resamples)
            weights_by_name = dict(zip(arena.STYLE, weights, strict=True))
            tables[f"{rule} style control"] = [{**row, "weights": weights_by_name} for row in table]
        for name, rows in tables.items():
            for number, row in zip(there, rows, strict=True):
                found[number][name] = row
    return found


def _styles(outcomes: Sequence[Outcome], numbers: np.ndarray) -> np.ndarray:
    """Counts of the answers of each battle: (2, n, 4), of the policy's and the baseline's."""
    counts = [[_style(answer) for answer in (outcome.match.policy, outcome.match.baseline)] for outcome in outcomes]
    return np.array(counts, dtype=np.float64)[numbers].swapaxes(0, 1)


def _style(answer: Any) -> list[int]:
    tokens, *kinds = answer.counts
    return [tokens, *(sum(kind.values()) for kind in kinds)]
