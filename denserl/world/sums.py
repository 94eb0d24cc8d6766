"""The world of sums: problems in plain arithmetic, solutions step by step, and what is right in any text.

Pure Python; learners never import this. Drawing whole data sets and writing them to files is in `make_sums.py`.
"""

import random
import re
from itertools import accumulate
from typing import NamedTuple

from denserl.errors import UserError
from denserl.steps import StepRule, step_ends

MOST_TOTAL, MOST_OPERAND = 9, 3
MIN_STEPS, MAX_STEPS = 3, 5
FAR = 3  # how far from the right total a wrong one may be
SEPARATOR = "\n\n"
RULE = StepRule((SEPARATOR,))
PROMPT = re.compile(r"([0-9])((?: [+-] [1-9])+) \?", re.ASCII)


class Problem(NamedTuple):
    """A number to start from, and what is added to it, one after the other."""

    start: int
    changes: tuple[int, ...]

    @property
    def totals(self) -> list[int]:
        """The true total after each step."""
        return list(accumulate(self.changes, initial=self.start))[1:]

    @property
    def prompt(self) -> str:
        """`4 + 2 - 1 + 3 ?`."""
        return " ".join([str(self.start), *map(_change, self.changes), "?"])


def read_problem(prompt: str) -> Problem:
    """The problem that a prompt asks for. UserError where it is no prompt of this world."""
    found = PROMPT.fullmatch(prompt)
    if found is None:
        raise UserError(
            f"the prompt {prompt!r} is no problem of the world of sums, such as '4 + 2 - 1 ?'",
            "use denserl.world.sums only with prompts of denserl make-world --kind sums",
        )
    return Problem(int(found[1]), tuple(int(sign + number) for sign, number in re.findall(r"([+-]) ([1-9])", found[2])))


def draw_problem(rng: random.Random) -> Problem:
    """A problem whose true totals all lie in 0 .. MOST_TOTAL, any of a number of steps as likely as any other."""
    length = rng.randint(MIN_STEPS, MAX_STEPS)
    while True:
        changes = tuple(rng.choice((1, -1)) * rng.randint(1, MOST_OPERAND) for _ in range(length))
        problem = Problem(rng.randint(0, MOST_TOTAL), changes)
        if _stays(problem.start, changes):
            return problem


def next_totals(problem: Problem, written: int, step: int, error_rate: float) -> dict[int, float]:
    """The totals that may be written at a step (from 0) after the total `written`, with their probabilities.

    The right one, of this sum, with 1 - error_rate; others within FAR of it share the rest. None that would lead out of
    0 .. MOST_TOTAL if no further error were made; where there is no other, the right one is certain.
    """
    right, rest = written + problem.changes[step], problem.changes[step + 1 :]
    wrong = [total for total in range(right - FAR, right + FAR + 1) if total != right and _stays(total, rest)]
    return {right: 1.0 - error_rate, **{total: error_rate / len(wrong) for total in wrong}} if wrong else {right: 1.0}


def draw_totals(rng: random.Random, problem: Problem, error_rate: float) -> list[int]:
    """The totals of a solution: each step errs with probability `error_rate`, and later ones go on from what it wrote."""
    totals, written = [], problem.start
    for step in range(len(problem.changes)):
        choices = next_totals(problem, written, step, error_rate)
        (written,) = rng.choices(list(choices), list(choices.values()))
        totals.append(written)
    return totals


def chances(problem: Problem, totals: list[int], error_rate: float) -> list[float]:
    """The probability, after each step, that a solution which goes on with this error rate ends with the right total."""
    known: dict[tuple[int, int], float] = {}

    def chance(step: int, written: int) -> float:
        if step == len(problem.changes):
            return float(written == problem.totals[-1])
        if (step, written) not in known:
            choices = next_totals(problem, written, step, error_rate)
            known[step, written] = sum(share * chance(step + 1, total) for total, share in choices.items())
        return known[step, written]

    return [chance(step, total) for step, total in enumerate(totals, start=1)]


def write_steps(problem: Problem, totals: list[int]) -> list[str]:
    """The text of each step that comes to these totals: `4 + 2 = 6`."""
    return [f"{a} {_change(change)} = {b}" for a, change, b in zip([problem.start, *totals], problem.changes, totals)]


def kinds(prompt: str, response: str) -> list[str]:
    """The kind of each step of a response: right, wrong or other.

    right: the sum that is due, of the total written before, coming to the true total. wrong: that sum with another total.
    other: any other text, and all that stands behind the last step that is due.
    """
    problem = read_problem(prompt)
    written, found = str(problem.start), []
    for number, step in enumerate(_steps(response)):
        kind = "other"
        if number < len(problem.changes):
            due = f"{written} {_change(problem.changes[number])} = "
            if step == f"{due}{problem.totals[number]}":
                kind = "right"
            elif re.fullmatch(re.escape(due) + "[0-9]+", step):
                kind = "wrong"
        found.append(kind)
        written = step.rpartition(" = ")[2]
    return found


def step_labels(prompt: str, response: str) -> list[bool]:
    """Whether each step of a response is right (`kinds`)."""
    return [kind == "right" for kind in kinds(prompt, response)]


def is_solved(prompt: str, response: str) -> bool:
    """Whether a response has all steps that are due and no more, and its last one is right."""
    labels = step_labels(prompt, response)
    return len(labels) == len(read_problem(prompt).changes) and labels[-1]


def final_answer(text: str) -> str | None:
    """What a solution comes to: the text behind its last ` = `; None where there is none."""
    return text.rpartition(" = ")[2].strip() or None if " = " in text else None


def true_reward(prompts: list[list[dict]], responses: list[str]) -> list[float]:
    """1 for each response that solves its problem, else 0; prompts as message lists, whose last message is the user's."""
    return [float(is_solved(p[-1]["content"], response)) for p, response in zip(prompts, responses, strict=True)]


def true_steps(prompts: list[list[dict]], responses: list[str]) -> list[list[tuple[int, float]]]:
    """(end character, 1 if it is right, else 0) of each step of the responses."""
    labels = [step_labels(p[-1]["content"], response) for p, response in zip(prompts, responses, strict=True)]
    return [list(zip(step_ends(r, RULE), map(float, found), strict=True)) for r, found in zip(responses, labels)]


def _steps(response: str) -> list[str]:
    ends = step_ends(response, RULE)
    return [response[start:end].strip() for start, end in zip([0, *ends], ends)]


def _change(change: int) -> str:
    return f"{'+' if change > 0 else '-'} {abs(change)}"


def _stays(start: int, changes: tuple[int, ...]) -> bool:
    return all(0 <= total <= MOST_TOTAL for total in accumulate(changes, initial=start))
