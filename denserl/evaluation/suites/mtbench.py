"""MT-Bench judgements: votes of people and of GPT-4 between two models' answers (arXiv 2306.05685; docs/evaluation.md)."""

from denserl.data.schemas import BadRow, LeftOut
from denserl.evaluation.items import Item
from denserl.evaluation.suites.rows import field, identity, last_answer, messages

SPLITS = ("human", "gpt4_pair")
ROWS = 3355 + 2400
SIDES = {"model_a": ("a", "b"), "model_b": ("b", "a")}


def item(row: dict, part: str) -> Item:
    """A vote on the turn that the judge saw; LeftOut where the judge called a tie."""
    winner, turn = field(row, "winner"), field(row, "turn", int)
    if winner.startswith("tie"):
        raise LeftOut("the judge called it a tie")
    if winner not in SIDES:
        raise BadRow(f"'winner' is {winner!r}; expected model_a, model_b or tie")
    return _vote(row, turn, SIDES[winner], 2 * turn)


def paper_item(row: dict, part: str) -> Item:
    """A vote as GRM's evaluation counts it: a tie for the second model, and both turns whatever the judge saw."""
    winner, turn = field(row, "winner"), field(row, "turn", int)
    return _vote(row, turn, SIDES["model_a" if winner == "model_a" else "model_b"], None)


def groups(subset: str) -> tuple[str, ...]:
    """Votes by who judged, and by turn."""
    return tuple(subset.split("/"))


def _vote(row: dict, turn: int, sides: tuple[str, str], length: int | None) -> Item:
    answers = []
    for side in sides:
        conversation = messages(row.get(f"conversation_{side}"), f"conversation_{side}")
        if length is not None and not 0 < length <= len(conversation):
            raise BadRow(f"'turn' is {turn}, and 'conversation_{side}' has {len(conversation)} messages")
        answers.append(last_answer(conversation[:length], f"conversation_{side}"))
    judge = "gpt4" if "gpt" in str(row.get("judge")).lower() else "human"
    name = f"{row.get('question_id', '')}/{row.get('model_a', '')}/{row.get('model_b', '')}/{row.get('judge', '')}/turn {turn}"
    # The answers of the first turn are part of the second's prompts, which differ from model to model.
    return Item(name, f"{judge}/turn {turn}", answers[:1], answers[1:], question=identity(row, "question_id"))
