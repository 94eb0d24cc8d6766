"""Judgements written as the originals' programs write them, beside their tables, and those of one's own prompts as rows."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from denserl.evaluation.policies import alpacaeval, arenahard, mtbench
from denserl.evaluation.policies.credits import arena_marks
from denserl.evaluation.policies.files import write_rows
from denserl.evaluation.policies.outcomes import Judged, Match, Outcome, Played, called

ANNOTATIONS, LEADERBOARD, JUDGMENTS, JUDGEMENTS = "annotations.json", "leaderboard.csv", "model_judgment", "judgements.jsonl"
LONGEST = 200  # characters of a name; those of files end at 255, with what stands behind it


class Names(NamedTuple):
    """What stands in files: the judge, its template, the baseline."""

    judge: str
    template: str
    baseline: str = ""


def write_alpacaeval(folder: Path, policies: Sequence[Judged], names: Names, numbers: Mapping[str, Mapping[str, Any]]) -> None:
    """`<policy>/<judge>/annotations.json` of each policy's samples, and `leaderboard.csv` with its numbers, of all of them."""
    for name, outcomes in _samples(policies):
        rows = [alpacaeval.annotation_row(_annotation(name, outcome, names)) for outcome in outcomes]
        write_rows(_made(folder / file_name(name) / file_name(names.judge)) / ANNOTATIONS, rows)
    for name, entry in numbers.items():
        with open(folder / file_name(name) / file_name(names.judge) / LEADERBOARD, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["", *entry], [name, *entry.values()]])


def write_arenahard(folder: Path, policies: Sequence[Judged], names: Names, shape: arenahard.Shape) -> None:
    """`model_judgment/<judge>/<policy>.jsonl` of each policy's samples."""
    for name, outcomes in _samples(policies):
        rows = [arenahard.judgment_row(_judgment(name, outcome, names), shape) for outcome in outcomes]
        write_rows(_made(folder / JUDGMENTS / file_name(names.judge)) / f"{file_name(name)}.jsonl", rows)


def write_mtbench(folder: Path, policies: Sequence[Judged], names: Names, mode: str) -> None:
    """`model_judgment/<judge>_single.jsonl` or `_pair.jsonl`, of all policies."""
    make = _grades if mode == "single" else _votes
    rows = [
        mtbench.judgement_row(judgement)
        for name, outcomes in _samples(policies)
        for outcome in outcomes
        for judgement in make(name, outcome, names)
    ]
    write_rows(_made(folder / JUDGMENTS) / f"{file_name(names.judge)}_{mode}.jsonl", rows)


def write_prompts(folder: Path, policies: Sequence[Judged], names: Names) -> None:
    """`judgements.jsonl`: a row for each answer, with its games."""
    rows = [
        {
            "id": outcome.match.question.id,
            "sample": outcome.match.policy.sample,
            "policy": judged.name,
            "baseline": names.baseline,
            "judge": names.judge,
            "template": names.template,
            "worth": outcome.worth,
            "games": [_game(played) for played in outcome.games],
        }
        for judged in policies
        for outcome in judged.outcomes
    ]
    write_rows(folder / JUDGEMENTS, rows)


def file_name(name: str) -> str:
    """A model's name as that of a file or folder: what is none there stands as %2F and the like, long ones end in a hash."""
    shown = quote(name, safe=" +,=@()[]", errors="surrogatepass")
    if len(shown) > LONGEST:
        shown = f"{shown[:LONGEST]}-{hashlib.sha256(shown.encode()).hexdigest()[:16]}"
    return shown.replace(".", "%2E") if set(shown) <= {"."} else shown


def _samples(policies: Sequence[Judged]) -> Iterator[tuple[str, list[Outcome]]]:
    """Each sample's outcomes, under the name that it has among files of answers: the policy's, then `<name>-s<j>`."""
    for judged in policies:
        parts: dict[int, list[Outcome]] = {}
        for outcome in judged.outcomes:
            parts.setdefault(outcome.match.policy.sample, []).append(outcome)
        for sample, outcomes in sorted(parts.items()):
            yield called(judged.name, sample), outcomes


def _annotation(name: str, outcome: Outcome, names: Names) -> alpacaeval.Annotation:
    question, policy, _ = outcome.match
    return alpacaeval.Annotation(
        str(question.id),
        question.category or None,
        _baseline(outcome.match)[0],
        names.baseline,
        policy.turns[0],
        name,
        names.judge,
        None if outcome.worth is None else 1 + outcome.worth,
        "\n\n".join(played.text for played in outcome.games) or None,
    )


def _judgment(name: str, outcome: Outcome, names: Names) -> arenahard.Judgment:
    ordered = sorted(outcome.games, key=lambda played: played.game.policy_first)
    scored = zip(arena_marks(outcome.games), ordered, strict=True)
    games = tuple(arenahard.Game(mark, played.text, played.messages) for mark, played in scored)
    question = outcome.match.question
    return arenahard.Judgment(question.id, name, names.judge, games, names.baseline, question.category)


def _grades(name: str, outcome: Outcome, names: Names) -> Iterator[mtbench.Grade]:
    for played in outcome.games:
        score = -1 if played.worth is None else played.worth
        judge = names.judge, names.template
        yield mtbench.Grade(outcome.match.question.id, name, judge, _asked(played), played.text, score, played.game.turn)


def _votes(name: str, outcome: Outcome, names: Names) -> Iterator[mtbench.Vote]:
    for turn in sorted({played.game.turn for played in outcome.games}):
        first, second = sorted(_of_turn(outcome.games, turn), key=lambda played: not played.game.policy_first)
        texts = (_asked(first), first.text, _asked(second), second.text)
        judge = names.judge, names.template
        yield mtbench.Vote(
            outcome.match.question.id, name, names.baseline, _winner(first), _winner(second), judge, *texts, turn
        )


def _of_turn(games: Iterable[Played], turn: int) -> list[Played]:
    return [played for played in games if played.game.turn == turn]


def _winner(played: Played) -> str:
    if played.worth is None:
        return "error"
    return "model_1" if played.worth > 0.5 else "model_2" if played.worth < 0.5 else "tie"


def _asked(played: Played) -> str:
    """The user's text, as far as a judge was asked."""
    return str(played.messages[-1]["content"]) if played.messages else ""


def _game(played: Played) -> dict[str, Any]:
    about = {"policy_first": played.game.policy_first, "turn": played.game.turn, "state": played.state}
    return about | {"mark": played.mark, "worth": played.worth, "text": played.text}


def _baseline(match: Match) -> tuple[str, ...]:
    assert match.baseline is not None  # of a comparison
    return match.baseline.turns


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
