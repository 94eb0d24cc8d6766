"""The page of judged policies: the table of numbers, and all answers side by side with what the judge said of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from denserl.evaluation.policies.answers import Id, PolicyAnswer, Question
from denserl.evaluation.policies.outcomes import Judged, Outcome, Played
from denserl.files import write_flushed
from denserl.pages.rendering import render
from denserl.terminal import visible

BETTER, WORSE, EVEN, NONE = "policy better", "baseline better", "even", "no verdict"


def write_page(
    target: Path,
    title: str,
    words: Sequence[str],
    tables: Mapping[str, list[list[str]]],
    policies: Sequence[Judged],
    baseline: str | None,
) -> None:
    """tables: heading -> a head and rows of cells. baseline: its name."""
    entries = [(judged.name, outcome) for judged in policies for outcome in judged.outcomes]
    known = [{name: visible(value, kept="") for name, value in _properties(*entry).items()} for entry in entries]
    filters = [_filter(f"f{number}", name, [values[name] for values in known]) for number, name in enumerate(known[0])]
    numbers = _names(outcome.match.question for _, outcome in entries)
    ids = {entry["name"]: {option["name"]: option["id"] for option in entry["options"]} for entry in filters}
    page = {
        "title": visible(title),
        "words": [visible(line) for line in words],
        "tables": [{"title": visible(name), "table": _cells(table)} for name, table in tables.items()],
        # Of one value there is nothing to choose.
        "filters": [entry for entry in filters if len(entry["options"]) > 1],
        "items": [
            _item(name, baseline, outcome)
            | {
                "name": numbers[outcome.match.question.id],
                "classes": " ".join(ids[key][value] for key, value in values.items()),
            }
            for (name, outcome), values in zip(entries, known, strict=True)
        ],
    }
    write_flushed(target, render("evaluation/judged.html", page))


def result_of(outcome: Outcome) -> str:
    """Whose answer is better, or the rating of the one there is, in words."""
    if outcome.worth is None:
        return NONE
    if outcome.match.baseline is None:
        return f"rated {outcome.worth:g}"
    return BETTER if outcome.worth > 0.5 else WORSE if outcome.worth < 0.5 else EVEN


def _properties(policy: str, outcome: Outcome) -> dict[str, str]:
    """What answers can be chosen by."""
    cut = any(outcome.match.policy.truncated or ())
    category = outcome.match.question.category or "none"
    return {"policy": policy, "verdict": result_of(outcome), "category": category, "answer": "cut off" if cut else "whole"}


def _names(questions: Iterable[Question]) -> dict[Id, str]:
    """What questions are called: by their ids, or where these are their texts by their numbers."""
    known = {question.id: question.id != question.turns[0] for question in questions}
    return {id: visible(str(id), kept="") if named else f"question {n}" for n, (id, named) in enumerate(known.items(), 1)}


def _filter(id: str, name: str, column: Sequence[str]) -> dict[str, Any]:
    counts = Counter(column)
    options = [{"id": f"{id}-{k}", "name": value, "count": count} for k, (value, count) in enumerate(counts.items())]
    return {"id": id, "name": name, "options": options}


def _cells(table: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[visible(cell) for cell in row] for row in table]


def _item(name: str, baseline: str | None, outcome: Outcome) -> dict[str, Any]:
    question, policy, other = outcome.match
    answers = [(f"policy {name}", policy), *([(f"baseline {baseline}", other)] if other else [])]
    worth = f" ({outcome.worth:.3f})" if outcome.worth is not None and other else ""
    sample = f"sample {policy.sample}" if policy.sample else ""
    return {
        "about": visible(" · ".join(filter(None, (question.category, sample))), kept=""),
        "outcome": result_of(outcome) + worth,
        "turns": [
            {"question": visible(text), "answers": [_answer(who, answer, turn) for who, answer in answers]}
            for turn, text in enumerate(_questions(outcome))
        ],
        "games": [_game(played, outcome) for played in outcome.games],
    }


def _questions(outcome: Outcome) -> list[str]:
    """What was asked, turn by turn; what stands before the first answer under the names of its roles where it is several."""
    messages = outcome.match.question.messages
    before = messages if len(messages) == 1 else [{"content": f"{m['role']}: {m['content']}"} for m in messages]
    return ["\n\n".join(str(message["content"]) for message in before), *outcome.match.question.later]


def _answer(who: str, answer: PolicyAnswer, turn: int) -> dict[str, str]:
    text = answer.turns[turn]
    cut = " · cut off" if answer.truncated and answer.truncated[turn] else ""
    return {"who": visible(f"{who} · {len(text)} characters{cut}", kept=""), "text": visible(text)}


def _game(played: Played, outcome: Outcome) -> dict[str, str]:
    parts = [f"turn {played.game.turn}"] if outcome.match.question.later else []
    if outcome.match.baseline is not None and played.state != "equal":
        parts.append(f"{'policy' if played.game.policy_first else 'baseline'} shown first")
    said = played.mark or {"equal": "equal answers, not asked", "cut": "cut off, no verdict"}.get(played.state, "no verdict")
    worth = "" if played.worth is None else f" = {played.worth:.4g}"
    return {"summary": visible(f"{', '.join(parts)}: {said}{worth}".removeprefix(": "), kept=""), "text": visible(played.text)}
