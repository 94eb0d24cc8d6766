"""Judgements that were given before, in the originals' files, in the place of a judge."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from denserl.errors import UserError, require
from denserl.evaluation.policies import alpacaeval, arenahard, mtbench
from denserl.evaluation.policies.answers import Id
from denserl.evaluation.policies.credits import credits_of
from denserl.evaluation.policies.files import read_annotations, read_grades, read_judgments, read_votes
from denserl.evaluation.policies.games import Mode, Suite
from denserl.evaluation.policies.outcomes import Game, Match, Outcome, Played, called
from denserl.evaluation.policies.reading import BY_FAR, SCORES
from denserl.evaluation.policies.win_rate import credits
from denserl.judging.contract import Verdict
from denserl.judging.verdicts import ARENAHARD_NEWER, alpacaeval_switched

log = logging.getLogger(__name__)
OTHERS = "give the answers and the baseline that were judged"
WINNERS = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}


class Row(NamedTuple):
    """What one row of a file says. baseline, template and texts (the baseline's and the policy's): where it says them."""

    judge: str
    policy: str
    question: Id
    games: list[Played]
    baseline: str = ""
    template: str = ""
    texts: tuple[str, str] | None = None


def read_recorded(suite: Suite, mode: Mode, paths: Sequence[str]) -> list[Row]:
    """The rows of files of judgements. UserError of the readers, and where several judges gave them."""
    rows = [row for path in paths for row in _read(suite, mode, path)]
    judges = sorted({row.judge for row in rows})
    require(len(judges) < 2, f"`annotations` holds those of several judges: {', '.join(judges)}", "give those of one judge")
    return rows


def recorded_outcomes(
    suite: Suite, mode: Mode, rows: Iterable[Row], policy: str, baseline: str, matches: Sequence[Match]
) -> list[Outcome]:
    """What the rows say of a policy's answers. Those without a row are not judged, and are counted in the log.

    Raises:
        UserError: there are none of the policy against the baseline, they are of other answers, or one was given twice.
    """
    known = _by_answer(row for row in rows if row.baseline in ("", baseline))
    found = [known.get((called(policy, match.policy.sample), match.question.id)) for match in matches]
    require(any(found), f"`annotations` holds nothing of {policy} against {baseline or 'none'}", OTHERS)
    for row, match in zip(found, matches, strict=True):
        _check_texts(row, match)
    if missing := found.count(None):
        log.warning("%s: %d answers have no recorded judgement", policy, missing)
    games = [tuple(row.games) if row else () for row in found]
    return [Outcome(match, own, credits_of(suite, mode, own)) for match, own in zip(matches, games, strict=True)]


def _by_answer(rows: Iterable[Row]) -> dict[tuple[str, Id], Row]:
    """The rows with all games of an answer together."""
    found: dict[tuple[str, Id], Row] = {}
    for row in rows:
        before = found.get((row.policy, row.question))
        games = [*(before.games if before else []), *row.games]
        twice = len({played.game for played in games}) < len(games)
        require(not twice, f"`annotations` judges {row.question!r:.80} twice", "remove what is not to count")
        found[row.policy, row.question] = row._replace(games=games)
    return found


def _read(suite: Suite, mode: Mode, path: str) -> list[Row]:
    if suite == "alpacaeval":
        return [_of_annotation(row) for row in read_annotations(path)]
    if suite == "arenahard":
        return [_of_judgment(row) for row in read_judgments(path)]
    return [_of_grade(row) for row in read_grades(path)] if mode == "single" else [_of_vote(row) for row in read_votes(path)]


def _of_annotation(row: alpacaeval.Annotation) -> Row:
    (worth,) = credits([math.nan if row.preference is None else row.preference]).tolist()
    completion = row.raw_completion
    text = completion if isinstance(completion, str) else "" if completion is None else json.dumps(completion)
    game = Game(1, alpacaeval_switched(row.instruction))
    played = _played(game, text, "" if row.preference is None else f"{row.preference:g}", None if math.isnan(worth) else worth)
    texts = row.output_1, row.output_2
    return Row(row.annotator, row.generator_2, row.instruction, [played], row.generator_1, texts=texts)


def _of_judgment(row: arenahard.Judgment) -> Row:
    games = []
    for place, game in enumerate(row.games):
        mark = game.score if game else None
        require(mark is None or mark in ARENAHARD_NEWER, f"`annotations` has the unknown mark {mark!r}", "correct it")
        meant = ARENAHARD_NEWER[mark] if mark else None
        side: Verdict = "tie" if meant == "tie" else "first" if meant and meant.startswith("first") else "second"
        worth = None if meant is None else SCORES[side] if place else 1 - SCORES[side]
        played = _played(Game(1, bool(place)), game.judgment if game else "", mark or "", worth)
        games.append(played._replace(battles=BY_FAR if meant and meant.endswith("by far") else 1))
    return Row(row.judge, row.model, row.question, games, row.baseline)


def _of_grade(row: mtbench.Grade) -> Row:
    judge, template = row.judge
    worth = row.score if row.score >= 0 else None
    return Row(
        judge, row.model, row.question_id, [_played(Game(row.turn), row.judgment, f"{row.score:g}", worth)], template=template
    )


def _of_vote(row: mtbench.Vote) -> Row:
    judge, template = row.judge
    parts = [(True, row.g1_judgment, row.g1_winner), (False, row.g2_judgment, row.g2_winner)]
    games = [_played(Game(row.turn, first), text, winner, WINNERS.get(winner)) for first, text, winner in parts]
    return Row(judge, row.model_1, row.question_id, games, row.model_2, template)


def _played(game: Game, text: str, mark: str, worth: float | None) -> Played:
    return Played(game, [], text, mark, worth, "invalid" if worth is None else "valid")


def _check_texts(row: Row | None, match: Match) -> None:
    if row is None or row.texts is None or match.baseline is None:
        return
    if row.texts != (match.baseline.turns[0], match.policy.turns[0]):
        raise UserError(f"`annotations` judges other answers to {match.question.id!r:.80} than those that are given", OTHERS)
