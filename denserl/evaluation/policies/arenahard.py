"""Arena-Hard's files (github.com/lmarena/arena-hard-auto): JSON lines in two shapes, "v0.1" of 2024 and the newer one."""

import hashlib
import json
from typing import Any, Literal, NamedTuple

from denserl.data.bad_rows import BadRow
from denserl.data.messages import unicode_of
from denserl.data.responses import Messages
from denserl.evaluation.policies.alpacaeval import named, truncated
from denserl.evaluation.policies.answers import Id, PolicyAnswer, Question
from denserl.evaluation.policies.markup import Counts, count_marks
from denserl.evaluation.suites.rows import field

Shape = Literal["newer", "v0.1"]
_OF_QUESTIONS = ("uid", "question_id", "category", "prompt", "turns", "reference")


def question(row: dict, number: int) -> Question:
    """A question of either shape, or of MT-Bench, whose turns are texts."""
    category = str(row.get("category") or "")
    carried = {key: value for key, value in row.items() if key not in _OF_QUESTIONS}
    turns = [field(row, "prompt")] if "turns" not in row else [_content(turn) for turn in _filled(row, "turns")]
    references = tuple("" if text is None else unicode_of(text, "reference") for text in _references(row))
    first, *later = turns
    return Question(id_of(row), [{"role": "user", "content": first}], tuple(later), category, references, carried)


def answers(row: dict) -> tuple[str | None, list[PolicyAnswer]]:
    """The policy's name and its answers of either shape, with counts; none where they are null."""
    if "choices" in row:
        name, found = choices(row)
        return name, [_counted(answer, row.get("conv_metadata")) for answer in found]
    id, last = id_of(row), _filled(row, "messages")[-1]
    content = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
    text = content.get("answer") if isinstance(content, dict) else content
    if text is None:
        return named(row, "model"), []
    if not isinstance(text, str):
        raise BadRow(f"the answer in 'messages' is a {type(text).__name__}; expected text")
    return named(row, "model"), [_counted(PolicyAnswer(id, (text,), truncated=truncated(row)), row.get("metadata"))]


def choices(row: dict) -> tuple[str | None, list[PolicyAnswer]]:
    """The policy's name and its answers in FastChat's shape, each choice a sample; none where they are null."""
    id, cut = id_of(row), truncated(row)
    found = (_of_choice(id, choice, cut) for choice in _filled(row, "choices"))
    return named(row, "model_id"), [answer for answer in found if answer is not None]


def answer_row(question: Question, answer: PolicyAnswer, name: str, shape: Shape) -> dict:
    """The answer as a row. `tstamp` is 0: the file is a function of what was asked alone; its date stands beside it."""
    metadata = _metadata(answer.counts) if answer.counts else {}
    if shape == "v0.1":
        return choice_row(question, answer, name) | {"conv_metadata": metadata}
    said = [{"role": "user", "content": question.turns[0]}, {"role": "assistant", "content": {"answer": answer.turns[0]}}]
    row = {"uid": question.id, "ans_id": answer_id(answer, name), "model": name, "messages": said, "tstamp": 0.0}
    return with_truncated(row | {"metadata": metadata}, answer)


def choice_row(question: Question, answer: PolicyAnswer, name: str) -> dict:
    """The answer in FastChat's shape, which MT-Bench has, and in which version 0.1 has each turn in an object."""
    turns: list[Any] = list(answer.turns) if question.later else [{"content": text} for text in answer.turns]
    row = {"question_id": question.id, "answer_id": answer_id(answer, name), "model_id": name}
    return with_truncated(row | {"choices": [{"index": 0, "turns": turns}], "tstamp": 0.0}, answer)


def answer_id(answer: PolicyAnswer, name: str) -> str:
    """A name of the answer: a hash of what it is."""
    return hashlib.sha256(json.dumps([name, answer.question, answer.turns]).encode()).hexdigest()[:22]


def with_truncated(row: dict, answer: PolicyAnswer) -> dict:
    """The row, and whether the answer was cut off, turn by turn where there are several."""
    if answer.truncated is None:
        return row
    return row | {"truncated": list(answer.truncated) if len(answer.turns) > 1 else answer.truncated[0]}


def id_of(row: dict) -> Id:
    """The question's id. BadRow without one."""
    key = "uid" if "uid" in row else "question_id"
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"{key!r} is {value!r}; expected the id of a question; the row has {', '.join(map(repr, list(row)[:8]))}")
    return value


def _filled(row: dict, key: str) -> list:
    value = field(row, key, list)
    if not value:
        raise BadRow(f"{key!r} is empty")
    return value


def _references(row: dict) -> list:
    """Right answers, turn by turn, null where there is none."""
    return [] if row.get("reference") is None else field(row, "reference", list)


def _content(turn: object) -> str:
    text = turn.get("content") if isinstance(turn, dict) else turn
    if not isinstance(text, str):
        raise BadRow("'turns' holds one that is no text")
    return text


def _of_choice(id: Id, choice: object, cut: tuple[bool, ...] | None) -> PolicyAnswer | None:
    if not isinstance(choice, dict):
        raise BadRow("'choices' holds one that is no object")
    turns = _filled(choice, "turns")
    if any((turn.get("content") if isinstance(turn, dict) else turn) is None for turn in turns):
        return None
    return PolicyAnswer(id, tuple(map(_content, turns)), field(choice, "index", int), cut)


def _counted(answer: PolicyAnswer, metadata: Any) -> PolicyAnswer:
    """The answer with the counts that its row gives; what is missing there is counted, but for the tokens."""
    given = metadata if isinstance(metadata, dict) else {}
    counted = count_marks(answer.turns[0], given.get("token_len"))
    kinds = {"headers": "header_count", "lists": "list_count", "bold": "bold_count"}
    told = {name: given[key] for name, key in kinds.items() if isinstance(given.get(key), dict)}
    return answer._replace(counts=counted._replace(**told))


def _metadata(counts: Counts) -> dict:
    return {
        "token_len": counts.tokens,
        "header_count": counts.headers,
        "list_count": counts.lists,
        "bold_count": counts.bold,
    }


class Game(NamedTuple):
    """One time that a judge was shown both answers. score: the mark, such as A>>B, or None."""

    score: str | None
    judgment: str
    prompt: Messages


class Judgment(NamedTuple):
    """What a judge says of a policy's answer and the baseline's: in the first game A is the baseline, then the policy."""

    question: Id
    model: str
    judge: str
    games: tuple[Game | None, ...]
    baseline: str = ""  # which version 0.1 does not say
    category: str = ""


def judgment(row: dict) -> Judgment:
    """The judgment of a row of either shape."""
    games = tuple(_game(game) for game in field(row, "games", list))
    names = {"model": field(row, "model"), "judge": field(row, "judge")}
    return Judgment(id_of(row), games=games, baseline=row.get("baseline") or "", category=row.get("category") or "", **names)


def judgment_row(judgment: Judgment, shape: Shape) -> dict:
    """The judgment as a row. Version 0.1 has no null games: there one is a game without a score."""
    names = {"judge": judgment.judge, "model": judgment.model}
    if shape == "newer":
        games = [_newer_game(game) for game in judgment.games]
        about = {"uid": judgment.question, "category": judgment.category, **names, "baseline": judgment.baseline}
        return {**about, "games": games}
    old = [_older_game(game or Game(None, "", [])) for game in judgment.games]
    return {"question_id": judgment.question, **names, "games": old}


def _game(game: Any) -> Game | None:
    if game is None:
        return None
    if not isinstance(game, dict):
        raise BadRow("'games' holds one that is neither an object nor null")
    said = game.get("judgment")
    text = said.get("answer") if isinstance(said, dict) else said
    shown = game.get("prompt") or [{"role": "user", "content": game.get("user_prompt") or ""}]
    return Game(game.get("score"), text or "", shown)


def _newer_game(game: Game | None) -> dict | None:
    return game and {"score": game.score, "judgment": {"answer": game.judgment}, "prompt": game.prompt}


def _older_game(game: Game) -> dict:
    user = next((message["content"] for message in game.prompt[::-1] if message["role"] == "user"), "")
    return {"user_prompt": user, "judgment": game.judgment, "score": game.score}
