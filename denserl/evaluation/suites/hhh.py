"""HHH alignment: two choices each for being harmless, helpful, honest and other (arXiv 2112.00861)."""

import re

from denserl.data.schemas import BadRow
from denserl.evaluation.items import Answer, Item
from denserl.evaluation.suites.rows import field, identity

SIZES = {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def item(row: dict, part: str) -> Item:
    """A row with `input` and `targets` (`choices` and `labels`, together or as columns of their own)."""
    is_flat = "targets.choices" in row
    targets = {key: row.get(f"targets.{key}") for key in ("choices", "labels")} if is_flat else field(row, "targets", dict)
    choices, labels = field(targets, "choices", list), field(targets, "labels", list)
    if len(choices) != len(labels) or not all(isinstance(text, str) for text in choices):
        raise BadRow(f"there are {len(choices)} choices and {len(labels)} labels; expected texts with a label each")
    if not all(isinstance(label, (int, float)) for label in labels) or len(set(labels)) < 2:
        raise BadRow(f"the labels are {labels!r}; expected numbers, one above another")
    prompt = turns(field(row, "input"))
    if not prompt:
        raise BadRow("'input' names Human or Assistant, who say nothing")
    best, worst = labels.index(max(labels)), labels.index(min(labels))
    subset = row["subset"] if isinstance(row.get("subset"), str) else part
    return Item(identity(row), subset, [Answer(prompt, choices[best])], [Answer(prompt, choices[worst])])


def turns(text: str) -> list[dict]:
    """The messages of an input: a dialogue where it names Human and Assistant, else one user turn."""
    opening, *parts = _TURN.split(text)
    if not parts:
        return [{"role": "user", "content": text}]
    found = [("Human", opening), *zip(parts[::2], parts[1::2])]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in found if said.strip()]
