"""Solutions with labelled steps: converts rows of all known shapes to one record, and loads them.

A record has `prompt` (messages), `steps` (texts without what parts them), `labels` (for each the chance in [0, 1] that it is
right, NaN where that is not known), `final` (the same of the whole solution) and `answer` (what it should come to, or ""). An
outcome is a record of one step. Which shape a row has is read from its keys; what no row says of itself is in `StepReading`.

The encoding of records is elsewhere, and so is where the steps of a new response end (denserl/steps.py).
"""

import itertools
import logging
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.features import MESSAGES, NUMBER, NUMBERS, TEXT, TEXTS
from denserl.data.messages import BESIDE, EXTRAS, as_messages, is_filled, kind_of, plain_value, refuse, unicode_of
from denserl.data.readers import RowOptions, load_rows
from denserl.data.schemas import (
    CONTEXT,
    OF_ANSWERS,
    REFUSED,
    check_filled,
    check_length,
    checked_prompt,
    missing,
    unread_beside,
)
from denserl.data.tables import kept
from denserl.steps import SEPARATOR, StepRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

FEATURES = {"prompt": MESSAGES, "steps": TEXTS, "labels": NUMBERS, "final": NUMBER, "answer": TEXT}
QUESTIONS = ("prompt", "question")
LABELS = ("labels", "label")
# What a message may hold that a step cannot.
_NOT_IN_STEPS = tuple(name for name in EXTRAS if name not in BESIDE)
# Of a step, in PRM800K, that is neither right nor wrong, and of one that nobody rated.
_NEUTRAL = {"good": 1.0, "bad": 0.0, "drop": math.nan}
_RATINGS = {1: 1.0, -1: 0.0, None: math.nan}


class StepReading(NamedTuple):
    """What rows of steps do not say of themselves.

    neutral: what a rating of 0 says of a step, "good", "bad" or, "drop", nothing.
    marker: the text after each step, where question and steps are one text.
    first_step: a regular expression, at whose first match the steps begin in a text that opens with the question.
    signs: the texts of a good and a bad step.
    rule: where a solution that is one text is cut into its labelled steps, unless markers stand in it.
    """

    neutral: str = "bad"
    marker: str = "ки"
    first_step: str = "[Ss]tep 1:"
    signs: tuple[str, str] = ("+", "-")
    rule: StepRule = StepRule()


AS_PUBLISHED = StepReading()


class _Solution(NamedTuple):
    prompt: list[dict]
    steps: list[str]
    labels: list[float]
    final: float = math.nan
    answer: str = ""


class _Shape(NamedTuple):
    """Rows that hold a key: what makes solutions of them, and which of several keys is read beside that one."""

    key: str
    solutions: Callable[[dict, str, StepReading], list[_Solution]]
    beside: tuple[tuple[str, ...], ...]


@kept
def load_steps(
    sources: list[str],
    *,
    reading: StepReading = AS_PUBLISHED,
    **how: "Unpack[RowOptions]",
) -> datasets.Dataset:
    """Records: columns prompt (messages), steps, labels (NaN: unlabelled), final (NaN: unknown), answer, place.

    Sources are blended as in `readers.blend`, `every` and columns as in `readers.load_rows`; both count records, of which a row
    may give several. UserError on bad rows, unless `on_bad_row` is "skip".
    """
    shapes = set()

    def convert(row: object) -> list[dict]:
        records = as_steps(row, reading)
        shapes.add(_shape_of(row).solutions)
        return records

    features = datasets.Features(FEATURES)
    dataset = load_rows(sources, convert, features, read=READ_KEYS, unread=unread_steps, **how)
    if _of_ratings in shapes:
        meaning = "leaves it without a label" if reading.neutral == "drop" else f"says that it is {reading.neutral}"
        logger.info("the rating 0 of a step %s (`neutral`)", meaning)
    return dataset


def as_steps(row: Any, reading: StepReading = AS_PUBLISHED) -> list[dict]:
    """{prompt, steps, labels, final, answer} of each solution in a row of any known shape. BadRow says why a row is bad.

    LeftOut for a problem that its rater calls bad, and for rated steps of which none has a label.
    """
    shape = _shape_of(row)
    refuse(row, (*REFUSED, *OF_ANSWERS), "the row has")
    return [_checked(row, solution) for solution in shape.solutions(row, shape.key, reading)]


def solution_steps(text: str, reading: StepReading = AS_PUBLISHED) -> list[str]:
    """The steps of a solution that is one text, without what parts them; none is blank.

    Markers at ends of lines part them, which generators that were taught so write, or else what the rule says, however many.
    """
    marked = _marker_at_line_end(reading.marker)
    parts = parts_between(marked if marked.search(text) else reading.rule.separates, text)
    return [text[start:end].strip() for start, end in parts]


def without_markers(text: str, marker: str = AS_PUBLISHED.marker) -> str:
    """A solution with a blank line where a marker stood at the end of a line; one without markers as it is."""
    marked = _marker_at_line_end(marker)
    if marked.search(text) is None:
        return text
    return SEPARATOR.join(text[start:end].strip() for start, end in parts_between(marked, text))


def parts_between(separates: re.Pattern, text: str) -> list[tuple[int, int]]:
    """Start and end of what a text says between its separators, without what is blank."""
    spans = [(0, 0), *(found.span() for found in separates.finditer(text)), (len(text), len(text))]
    return [(end, start) for (_, end), (start, _) in itertools.pairwise(spans) if text[end:start].strip()]


def unread_steps(row: Any) -> set[str]:
    """The keys of a row that say something and that `as_steps` does not read."""
    shape = _shape_of(row)
    names = (_first(row, names) for names in shape.beside)
    found = unread_beside(row, {shape.key, *(name for name in names if name is not None)})
    if shape.solutions is _of_ratings:
        known = {"question": ("problem", "ground_truth_answer"), "label": ("steps", "finish_reason")}
        for key, read in known.items():
            found |= {f"{key}.{name}" for name, value in row[key].items() if name not in read and is_filled(value)}
    return found


def _shape_of(row: Any) -> _Shape:
    if not isinstance(row, dict):
        raise BadRow(f"the row is not an object but {kind_of(row)}")
    if isinstance(row.get("label"), dict):
        return _RATED
    shape = next((shape for shape in _SHAPES if row.get(shape.key) is not None), None)
    if shape is None:
        names = ", ".join(repr(shape.key) for shape in _SHAPES)
        raise missing(row, f"no {names}", "prompt=...,steps=...,labels=...")
    return shape


def _checked(row: dict, solution: _Solution) -> dict:
    """The solution as a record. BadRow where a part of it says nothing, or no label is known."""
    prompt = checked_prompt(row, solution.prompt)
    check_filled(prompt)
    if not solution.steps:
        raise BadRow("there are no steps")
    blank = next((number for number, step in enumerate(solution.steps, 1) if not step.strip()), None)
    if blank is not None:
        raise BadRow(f"step {blank} is blank")
    if all(map(math.isnan, [*solution.labels, solution.final])):
        raise BadRow("no label is given")
    check_length(prompt, *solution.steps)
    return {**solution._asdict(), "prompt": prompt}


def _listed(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """`prompt`, `steps` or `completions`, `labels`."""
    steps = [unicode_of(step, key).strip() for step in _list_of(row[key], key)]
    labels = _labels(row.get("labels", []), "labels", len(steps), reading)
    return [_Solution(_prompt(row), steps, labels, *_outcome(row, reading))]


def _stored(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """`prompt`, `answers`, and a label of each, which is an outcome."""
    answers = [without_markers(unicode_of(answer, key), reading.marker).strip() for answer in _list_of(row[key], key)]
    name = _first(row, LABELS) or LABELS[0]
    labels = _list_of(row.get(name, []), name)
    if not answers:
        raise BadRow("there are no answers")
    if len(labels) != len(answers):
        raise BadRow(f"{len(labels)} labels for {len(answers)} answers")
    prompt, chances = _prompt(row), [_chance(label, name, reading) for label in labels]
    return [_Solution(prompt, [answer], [chance], chance) for answer, chance in zip(answers, chances)]


def _of_turns(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """A conversation of steps, each the user's, and signs, each the assistant's; the first step stands behind the question."""
    messages = as_messages(row[key], key)
    for message in messages:
        refuse(message, _NOT_IN_STEPS, f"{key!r} holds a message with", "take it out of the messages")
    has_system = messages[0]["role"] in ("system", "developer")
    opening, turns = messages[:has_system], messages[has_system:]
    steps: list[str] = []
    labels: list[float] = []
    for message in turns:
        if message["role"] == "user":
            labels += [math.nan] * (len(steps) - len(labels))
            steps.append(message["content"])
        elif message["role"] != "assistant" or len(labels) == len(steps):
            raise BadRow(f"{key!r} holds a turn of the {message['role']} where a step of the user's is expected")
        else:
            labels.append(_chance(message["content"], key, reading))
    if not steps:
        raise BadRow(f"{key!r} holds no step")
    question, steps[0] = _question_apart(row, steps[0], key, reading)
    labels += [math.nan] * (len(steps) - len(labels))
    prompt = [*opening, {**turns[0], "content": question}]
    steps = [without_markers(step, reading.marker).strip() for step in steps]
    final, answer = _outcome(row, reading)
    # One step is the whole solution.
    return [_Solution(prompt, steps, labels, labels[0] if len(steps) == 1 and math.isnan(final) else final, answer)]


def _marked(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """A text of question and steps with a marker after each step, and labels: the text with signs for markers, or a list."""
    text = unicode_of(row[key], key).strip()
    pieces = text.split(reading.marker)
    if len(pieces) == 1:
        raise BadRow(f"{key!r} holds no {reading.marker!r}", "say with `step_marker` what stands behind each step")
    name = _first(row, LABELS)
    labels = _signs_between(pieces, row[name].strip(), key, reading) if isinstance(row.get(name), str) else row.get(name, [])
    chances = _labels(labels, name or LABELS[0], len(pieces) - 1, reading)
    question, solution = _question_apart(row, text, key, reading)
    steps = solution.split(reading.marker)
    # A marker inside the question ends no step, and its label is of none.
    inside = len(pieces) - len(steps)
    chances, steps = [*chances[inside:], math.nan], [step.strip() for step in steps]
    filled = len(steps) - (not steps[-1])
    prompt = as_messages(question.replace(reading.marker, ""), key)
    return [_Solution(prompt, steps[:filled], chances[:filled], *_outcome(row, reading))]


def _of_ratings(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """PRM800K's: at each step rated completions, one of which the next step goes on from; every other one ends a solution.

    A completion that a person wrote counts as good. One without a label ends no solution: what comes before it is in others.
    """
    question, label = (_object(row.get(name), name) for name in ("question", key))
    if label.get("finish_reason") == "bad_problem":
        raise LeftOut("its rater calls the problem bad")
    prompt = as_messages(question.get("problem"), "question.problem")
    answer = _text_or_number(question.get("ground_truth_answer"), "question.ground_truth_answer")
    walked: list[tuple[str, float]] = []
    ends, goes_on = [], True
    for number, step in enumerate(_list_of(label.get("steps"), "label.steps"), 1):
        if not goes_on:
            raise BadRow(f"step {number} follows one of which no completion is chosen")
        completions, chosen = _rated(_object(step, "label.steps"), reading)
        ends += [[*walked, end] for index, end in enumerate(completions) if index != chosen and not math.isnan(end[1])]
        goes_on = chosen is not None
        if chosen is not None:
            walked.append(completions[chosen])
    if not any(end[: len(walked)] == walked for end in ends):
        ends.append(walked)
    solutions = [_Solution(prompt, [step for step, _ in end], [chance for _, chance in end], answer=answer) for end in ends]
    solutions = [solution for solution in solutions if not all(map(math.isnan, solution.labels))]
    if not solutions:
        raise LeftOut("none of its steps has a label")
    return solutions


def _rated(step: dict, reading: StepReading) -> tuple[list[tuple[str, float]], int | None]:
    """The completions of a step, text and chance of each, and the number of the one that is gone on from."""
    rated = []
    for completion in _list_of(step.get("completions") or [], "completions"):
        completion = _object(completion, "completions")
        rating = completion.get("rating")
        if isinstance(rating, bool) or rating not in (-1, 0, 1, None):
            raise BadRow(f"a rating is {rating!r}; expected -1, 0 or 1")
        chance = _NEUTRAL[reading.neutral] if rating == 0 else _RATINGS[rating]
        rated.append((unicode_of(completion.get("text"), "completions").strip(), chance))
    chosen = step.get("chosen_completion")
    if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(rated)):
        raise BadRow(f"'chosen_completion' is {chosen!r}, and there are {len(rated)} completions")
    if is_filled(step.get("human_completion")):
        human = _object(step["human_completion"], "human_completion")
        rated.append((unicode_of(human.get("text"), "human_completion").strip(), 1.0))
        chosen = len(rated) - 1 if chosen is None else chosen
    return rated, chosen


def _whole(row: dict, key: str, reading: StepReading) -> list[_Solution]:
    """A question, its solution as one text, and `labels` of its steps or a `label` of all of it, which is an outcome."""
    text, name = unicode_of(row[key], key), _first(row, LABELS) or "label"
    answer = "" if key == "answer" else _text_or_number(row.get("answer"), "answer")
    if name == "label":
        chance = _chance(row.get(name), name, reading)
        return [_Solution(_prompt(row), [without_markers(text, reading.marker).strip()], [chance], chance, answer)]
    steps = solution_steps(text, reading)
    labels = _labels(row[name], name, len(steps), reading)
    return [_Solution(_prompt(row), steps, labels, _chance(row.get("final"), "final", reading), answer)]


def _prompt(row: dict) -> list[dict]:
    key = _first(row, QUESTIONS)
    if key is None:
        raise missing(row, "no 'prompt' or 'question'", "prompt=...")
    return as_messages(row[key], key)


def _question_apart(row: dict, text: str, key: str, reading: StepReading) -> tuple[str, str]:
    """The question that a text opens with, and the rest. The question may stand in the row by itself."""
    name = _first(row, QUESTIONS)
    if name is not None:
        question = unicode_of(row[name], name).strip()
        if not text.startswith(question):
            raise BadRow(f"{key!r} does not begin with the text in {name!r}")
        return question, text[len(question) :]
    found = re.search(reading.first_step, text)
    if found is None:
        raise BadRow(
            f"{key!r} begins with question and step in one text, and nothing in it matches {reading.first_step!r}",
            "say with `first_step` where steps begin, or give the question by itself in a column 'question'",
        )
    return text[: found.start()].strip(), text[found.start() :]


def _signs_between(pieces: Sequence[str], signed: str, key: str, reading: StepReading) -> list[str]:
    """The signs that stand between the pieces of a text in another that has them for its markers."""
    end, signs = 0, []
    for number, piece in enumerate(pieces):
        if number:
            sign = next((sign for sign in reading.signs if signed.startswith(sign, end)), None)
            if sign is None:
                found, expected = reprlib.repr(signed[end : end + 20]), " or ".join(reading.signs)
                raise BadRow(f"the text of labels has {found} in the place of marker {number}; expected {expected}")
            signs.append(sign)
            end += len(sign)
        if not signed.startswith(piece, end):
            raise BadRow(f"the text of labels differs from {key!r}" + (f" behind marker {number}" if number else ""))
        end += len(piece)
    if end != len(signed):
        raise BadRow(f"the text of labels goes on where {key!r} ends")
    return signs


def _labels(value: object, key: str, steps: int, reading: StepReading) -> list[float]:
    """The labels of so many steps, the missing ones at the end NaN."""
    values = _list_of(value, key)
    if len(values) > steps:
        raise BadRow(f"{len(values)} labels for {steps} steps")
    return [_chance(value, key, reading) for value in values] + [math.nan] * (steps - len(values))


def _chance(value: object, key: str, reading: StepReading) -> float:
    """A label as a number in [0, 1], NaN for null: true or false, a number, a sign, or the text of one of these."""
    if value is None or value != value:
        return math.nan
    words = {"True": 1.0, "False": 0.0, "true": 1.0, "false": 0.0, reading.signs[0]: 1.0, reading.signs[1]: 0.0}
    try:
        text = str(value).strip() if isinstance(value, (int, float, str)) else ""
        chance = words[text] if text in words else float(text)
    except ValueError:
        chance = math.nan
    if not 0 <= chance <= 1:
        expected = f"a number from 0 to 1, true or false, {' or '.join(reading.signs)}"
        raise BadRow(f"{key!r} holds the label {reprlib.repr(value)}; expected {expected}")
    return chance


def _outcome(row: dict, reading: StepReading) -> tuple[float, str]:
    return _chance(row.get("final"), "final", reading), _text_or_number(row.get("answer"), "answer")


def _text_or_number(value: object, key: str) -> str:
    return str(value) if type(value) in (int, float) else unicode_of("" if value is None else value, key)


def _marker_at_line_end(marker: str) -> re.Pattern:
    return re.compile(rf"\s{re.escape(marker)}[ \t]*(?:\n|\Z)")


def _object(value: object, key: str) -> dict:
    if not isinstance(value, dict):
        raise BadRow(f"{key!r} holds {kind_of(value)} where an object is expected")
    return value


def _list_of(value: object, key: str) -> list:
    """A list, given as such or as the text of one in JSON: tables of text have no others."""
    items = plain_value(value, key) if isinstance(value, str) else value
    if not isinstance(items, list):
        raise BadRow(f"{key!r} is no list but {kind_of(items)}")
    return items


def _first(row: dict, names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


_OF_ONE = (QUESTIONS, ("final",), ("answer",))
_RATED = _Shape("label", _of_ratings, (("question",),))
_SHAPES = (
    _Shape("steps", _listed, (*_OF_ONE, ("labels",))),
    _Shape("completions", _listed, (*_OF_ONE, ("labels",))),
    _Shape("answers", _stored, (QUESTIONS, LABELS)),
    _Shape("conversations", _of_turns, _OF_ONE),
    _Shape("messages", _of_turns, _OF_ONE),
    _Shape("input", _marked, (*_OF_ONE, LABELS)),
    _Shape("response", _whole, (*_OF_ONE, LABELS)),
    _Shape("completion", _whole, (*_OF_ONE, LABELS)),
    _Shape("answer", _whole, (QUESTIONS, ("final",), LABELS)),
)
READ_KEYS = {*CONTEXT, *(key for shape in (_RATED, *_SHAPES) for keys in ((shape.key,), *shape.beside) for key in keys)}
