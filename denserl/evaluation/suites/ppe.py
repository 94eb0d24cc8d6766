"""PPE, Preference Proxy Evaluations (arXiv 2410.14872): human votes, and answers that are known to be right or wrong."""

from collections.abc import Mapping

from denserl.data.bad_rows import BadRow, LeftOut
from denserl.evaluation.items import Answer, Item
from denserl.evaluation.suites import votes
from denserl.evaluation.suites.means import mean
from denserl.evaluation.suites.rows import field, identity, messages

PREFERENCE = "preference"
CORRECTNESS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
PAIRS = "sampled_conflict_pairs"
# The hub's name of each set, and its split.
SETS = {
    PREFERENCE: ("PPE-Human-Preference-V1", "test"),
    **{name: (f"PPE-{name}-Best-of-K", "train") for name in CORRECTNESS},
}


def set_of(part: str) -> str | None:
    """The set that a path names, by the step nearest to its end that is a set's name or its name on the hub."""
    names = {name.lower(): found for found, (hub, _) in SETS.items() for name in (found, hub, hub.removeprefix("PPE-"))}
    steps = (step.lower().replace("_", "-") for step in reversed(part.split("/")))
    return next((names[step] for step in steps if step in names), None)


def item(row: dict, part: str) -> Item | list[Item]:
    """A vote, or the pairs of a right and a wrong answer that were drawn for a prompt; the file's path names the set."""
    if PAIRS not in row:
        return votes.item(row, part)._replace(subset=PREFERENCE)
    prompt, right = messages(row.get("prompt"), "prompt"), field(row, "scores", list)
    items = []
    for pair in field(row, PAIRS, list):
        first, second = _numbers(pair, len(right))
        if right[first] == right[second]:
            raise BadRow(f"the answers {first} and {second} of {PAIRS!r} have equal 'scores'")
        better, worse = (first, second) if right[first] > right[second] else (second, first)
        above, below = ([Answer(prompt, field(row, f"response_{number + 1}"))] for number in (better, worse))
        items.append(Item(identity(row, "question_id"), set_of(part) or part, above, below))
    if not items:
        raise LeftOut("its answers are all right or all wrong")
    return items


def _numbers(pair: object, count: int) -> tuple[int, int]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int and 0 <= number < count for number in pair):
        raise BadRow(f"{PAIRS!r} has {pair!r}; expected two numbers of answers from 0 to {count - 1}")
    return pair[0], pair[1]


def headline(scores: Mapping[str, float], counts: Mapping[str, int]) -> dict:
    """The accuracy of each set, and `correctness`, the plain mean of the five with right answers; None for what is missing."""
    found = {name: scores.get(name) for name in SETS}
    return {**found, "correctness": mean(found[name] for name in CORRECTNESS)}
