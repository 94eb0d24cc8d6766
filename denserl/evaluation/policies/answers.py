"""Questions that policies are asked, and their answers, whatever file they stand in (files.py)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from denserl.data.responses import Messages
from denserl.evaluation.policies.markup import Counts

Id = str | int  # as the file has it; of AlpacaEval the instruction


class Question(NamedTuple):
    """A question of one turn, or of several."""

    id: Id
    messages: Messages  # up to the first answer
    later: tuple[str, ...] = ()  # what the user says after the first answer, the second, ...
    category: str = ""
    references: tuple[str, ...] = ()  # right answers, turn by turn, where the file gives them
    carried: Mapping[str, object] = {}  # what else its row holds

    @property
    def turns(self) -> tuple[str, ...]:
        """What the user says, turn by turn."""
        return self.messages[-1]["content"], *self.later

    def conversation(self, answers: Sequence[str] = ()) -> Messages:
        """The messages up to the turn that follows the answers, of which there are fewer than turns."""
        said = [*self.messages]
        for answer, then in zip(answers, self.later, strict=False):
            said += [{"role": "assistant", "content": answer}, {"role": "user", "content": then}]
        return said


class PolicyAnswer(NamedTuple):
    """What a policy answered to a question, turn by turn."""

    question: Id
    turns: tuple[str, ...]
    sample: int = 0
    truncated: tuple[bool, ...] | None = None  # cut off at the longest length, by turns; None where the file does not say
    counts: Counts | None = None  # of the answers of Arena-Hard


class Answers(NamedTuple):
    """The answers of one policy: by question, the samples of each in their order."""

    name: str
    by_question: Mapping[Id, Sequence[PolicyAnswer]]


class Gaps(NamedTuple):
    """Where answers and questions do not go together."""

    missing: list[Id]  # questions without an answer to each of their turns
    empty: list[Id]  # questions with an answer that says nothing
    unknown: list[Id]  # of answers that no question has


def gaps(questions: Sequence[Question], answers: Answers) -> Gaps:
    """What is missing, empty and unknown, in the order of the questions."""
    found, asked = answers.by_question, {question.id for question in questions}
    turns = {question.id: len(question.turns) for question in questions}
    missing = [id for id in turns if not found.get(id) or any(len(answer.turns) < turns[id] for answer in found[id])]
    empty = [id for id in turns if any(not turn.strip() for answer in found.get(id, ()) for turn in answer.turns)]
    return Gaps(missing, empty, [id for id in found if id not in asked])
