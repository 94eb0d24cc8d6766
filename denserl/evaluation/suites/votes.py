"""Two answers to a prompt and a vote on which is better, in the shapes that many published sets have (docs/judging.md)."""

from collections import Counter
from typing import Any, Literal

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.data.schemas import missing
from denserl.evaluation.items import Answer, Item
from denserl.evaluation.suites.rows import PROMPT_KEYS, field, identity, messages

Vote = Literal["first", "second", "tie"]
NUMBERED = (("response1", "response2"), ("response_1", "response_2"), ("output_1", "output_2"))
FROM_ZERO = ("response 1", "response 2")  # of Auto-J, whose labels are 0, 1 and 2 for a tie
ANSWERS = (("response_A", "response_B"), ("response_a", "response_b"), *NUMBERED, FROM_ZERO)
VOTES = ("label", "winner", "preference")
SUBSETS = ("subset", "source", "scenario", "dataset")
IDS = ("id", "pair_id", "question_id", "idx")
_FROM_ZERO: dict[float | None, Vote] = {0: "first", 1: "second", 2: "tie"}
_ANNOTATOR = "annotator"  # and a number: one of several votes
_WORDS: dict[str, Vote] = {
    **dict.fromkeys(("a>b", "a", "model_a", "response_a", "response_1", "output_1", "first"), "first"),
    **dict.fromkeys(("b>a", "b", "model_b", "response_b", "response_2", "output_2", "second"), "second"),
    **dict.fromkeys(("a=b", "tie", "tie (bothbad)", "both_bad"), "tie"),
}


def item(row: dict, part: str) -> Item:
    """The answer that has the vote as the better one; its subset is what the row names as such, or the part.

    LeftOut for a tie, and where there is no vote or no majority of several.
    """
    keys = _answers(row)
    better = vote(row, keys)
    if better == "tie":
        raise LeftOut("the vote is a tie")
    prompt = _prompt(row)
    first, second = ([Answer(prompt, field(row, key))] for key in keys)
    subset = next((row[key] for key in SUBSETS if isinstance(row.get(key), str) and row[key]), part)
    sides = (first, second) if better == "first" else (second, first)
    return Item(next(filter(None, (identity(row, key) for key in IDS)), ""), subset, *sides)


def vote(row: dict, keys: tuple[str, str]) -> Vote:
    """Which of the two answers under `keys` is better, as the row says: by its first key among VOTES, or most annotators.

    Raises:
        BadRow: the row says it in no known way. LeftOut: a vote is null, or no answer has most of several.
    """
    annotators = sorted(key for key in row if key.startswith(_ANNOTATOR) and key.removeprefix(_ANNOTATOR).isdecimal())
    key = next((key for key in VOTES if key in row), None)
    if key is not None:
        return _read(row[key], key, keys)
    if not annotators:
        raise missing(row, "'label', 'winner' and 'preference' are missing", "winner=...")
    votes = Counter(_read(row[name], name, keys) for name in annotators)
    (most, count), *_ = votes.most_common()
    if 2 * count <= len(annotators):
        raise LeftOut("no answer has most of the annotators' votes")
    return most


def unread(row: Any) -> set[str]:
    """The keys of a row that say something and are not read."""
    if not isinstance(row, dict):
        return set()
    read = {*PROMPT_KEYS, "instruction", *VOTES, *SUBSETS, *IDS, *(key for pair in ANSWERS for key in pair)}
    return {key for key, value in row.items() if value not in (None, "") and key not in read and not key.startswith(_ANNOTATOR)}


def _read(value: object, key: str, keys: tuple[str, str]) -> Vote:
    """The vote that a value is: a word, or a number where the answers have numbers. LeftOut where it is null."""
    if value is None:
        raise LeftOut(f"there is no vote: {key!r} is null")
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    found: Vote | None = None
    if keys == FROM_ZERO:
        found, expected = _FROM_ZERO.get(number), "0 for the first answer, 1 for the second or 2 for a tie"
    elif keys in NUMBERED:
        found, expected = _nearer(number), "1 for the first answer, 2 for the second, a number between them, or 0 for a tie"
    else:
        expected = "A>B, B>A, A=B, model_a, model_b or tie"
    if found is None:
        raise BadRow(f"{key!r} is {value!r}; expected {expected}")
    return found


def _nearer(number: float | None) -> Vote | None:
    """The answer whose number is nearer; 0 is a tie."""
    if number == 0 or number == 1.5:
        return "tie"
    return None if number is None or not 1 <= number <= 2 else "first" if number < 1.5 else "second"


def _answers(row: dict) -> tuple[str, str]:
    """The keys of the two answers. BadRow where there are none."""
    found = next((keys for keys in ANSWERS if keys[0] in row), None)
    if found is None:
        names = "response_A and response_B, response1 and response2, output_1 and output_2"
        raise missing(row, f"two answers ({names}) are missing or null", "response_A=...,response_B=...")
    return found


def _prompt(row: dict) -> list[dict]:
    """An instruction with its input below it, if it has one; else the prompt under its usual names."""
    if isinstance(row.get("instruction"), str):
        return messages("\n\n".join(filter(None, (row["instruction"], row.get("input")))), "instruction")
    name = next((name for name in PROMPT_KEYS if row.get(name) is not None), PROMPT_KEYS[0])
    return messages(row.get(name), name)
