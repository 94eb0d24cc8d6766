"""LLMBar: an instruction with two outputs, one of which follows it; natural and adversarial sets."""

from denserl.data.schemas import BadRow
from denserl.evaluation.items import Answer, Item
from denserl.evaluation.suites.rows import field, identity, messages

JUDGEMENTS = "evaluators"  # folders of the original repository that hold every row again, with what judges said of it
SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}


def item(row: dict, part: str) -> Item:
    """A row with `input`, `output_1`, `output_2` and the `label` of the better one; the file's path names the subset."""
    prompt = messages(field(row, "input"), "input")
    outputs = [Answer(prompt, field(row, f"output_{number}")) for number in (1, 2)]
    label = row.get("label")
    if type(label) is not int or label not in (1, 2):
        raise BadRow(f"'label' is {label!r}; expected 1 or 2")
    return Item(identity(row), subset_of(part) or part, [outputs[label - 1]], [outputs[2 - label]])


def subset_of(part: str) -> str | None:
    """The set that a file's path names, by the file's own name or by the folder nearest to it; None where there is none."""
    steps = part.replace("_", "/").split("/")  # the hub's tables are called Adversarial_GPTInst
    return next((name for step in reversed(steps) for name in SIZES if step.lower() == name.lower()), None)


def groups(subset: str) -> tuple[str, ...]:
    """All but the natural set are adversarial."""
    return ("adversarial",) if subset in SIZES and subset != "Natural" else ()
