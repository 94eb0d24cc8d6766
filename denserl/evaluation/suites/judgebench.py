"""JudgeBench (arXiv 2410.12784): pairs of answers of one model to a hard question, one of them right."""

from collections.abc import Mapping

from denserl.evaluation.items import Item
from denserl.evaluation.suites import votes
from denserl.evaluation.suites.means import pooled
from denserl.evaluation.suites.rows import field

SPLITS = ("gpt", "claude")  # the model whose answers they are
JUDGEMENTS = "outputs"  # folder of the original repository that holds every row again, with what judges said of it
SIZES = {"gpt": 350, "claude": 270}
CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


def item(row: dict, part: str) -> Item:
    """A pair with its `label`, A>B or B>A; its subset is MODEL/CATEGORY, by `response_model` and `source`."""
    model, source = field(row, "response_model"), field(row, "source")
    half = next((name for name in SPLITS if model.startswith(name)), model)
    category = next((name for start, name in CATEGORIES.items() if source.startswith(start)), source)
    return votes.item(row, part)._replace(subset=f"{half}/{category}")


def groups(subset: str) -> tuple[str, ...]:
    """All pairs of one model."""
    return (subset.partition("/")[0],)


def headline(scores: Mapping[str, float], counts: Mapping[str, int]) -> dict:
    """The accuracy over all pairs of each model, whatever their category; None where there are none."""
    return {half: pooled([name for name in scores if groups(name) == (half,)], scores, counts) for half in SPLITS}
