"""ArmoRM's published layout of a gated head (arXiv 2406.12845, docs/layouts.md): its weights' names, its config's settings."""

from typing import Any

from denserl.errors import require
from denserl.models.heads import Head, checked_head

CLASS = "ForRewardModelWithGating"
# What its weights are called there, and here.
NAMES = {"regression_layer.": "score.", "gating.layers.": "score.gate.layers.", "gating.logit_scale": "score.gate.scale"}
NAMES["reward_transform_matrix"] = "score.transform"
# Settings in its config.json -> fields of Head.
SETTINGS = {"gating_temperature": "temperature", "gating_hidden_dim": "width", "gating_n_hidden": "layers"}
COUNT = "num_objectives"
# In the order of the published model, whose config does not name them.
ATTRIBUTES = (
    *(f"helpsteer-{name}" for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")),
    *(f"ultrafeedback-{name}" for name in ("overall_score", "instruction_following", "truthfulness", "honesty", "helpfulness")),
    *("beavertails-is_safe", "prometheus-score", "argilla-overall_quality", "argilla-judge_lm"),
    *(f"code-{name}" for name in ("complexity", "style", "explanation", "instruction-following", "readability")),
)


def is_armorm(settings: dict) -> bool:
    """Whether a config.json is of that layout."""
    return COUNT in settings and "gating_n_hidden" in settings


def our_name(name: str) -> str:
    """The name of a weight of its head -> its name here. Others stay."""
    return next((ours + name.removeprefix(theirs) for theirs, ours in NAMES.items() if name.startswith(theirs)), name)


def armorm_name(name: str) -> str:
    """The name of a weight of a gated head here -> its name in that layout. Others stay."""
    longest_first = sorted(NAMES.items(), key=lambda names: -len(names[1]))
    return next((theirs + name.removeprefix(ours) for theirs, ours in longest_first if name.startswith(ours)), name)


def armorm_settings(head: Head) -> dict[str, Any]:
    """What its config.json says of a head."""
    names = {"id2label": dict(enumerate(head.names)), "label2id": {name: i for i, name in enumerate(head.names)}}
    return {COUNT: len(head.names), **{name: getattr(head, field) for name, field in SETTINGS.items()}, **names}


def stored_armorm_head(settings: dict, path: str, gate_offset: int) -> Head:
    """The head that the config.json of a published model describes.

    Its attributes are called as `id2label` says, or where that says nothing as the published model's are.

    gate_offset: of prompts as its chat template writes them. UserError where the config describes no such head.
    """
    require(
        is_armorm(settings),
        f"{path} is not in ArmoRM's layout: its config.json has no {COUNT} with gating_n_hidden",
        "give the folder of a model in that layout; our own models need no `layout` denserl",
    )
    count, labels = settings[COUNT], settings.get("id2label")
    names = list(ATTRIBUTES)
    if isinstance(labels, dict) and len(labels) == count and not str(labels.get("0")).startswith("LABEL_"):
        names = [labels.get(str(number)) for number in range(count)]
    require(
        len(names) == count,
        f"{path}/config.json has {count!r} for {COUNT}, and no names of them (id2label)",
        "write their names there",
    )
    described = {field: settings[name] for name, field in SETTINGS.items() if name in settings}
    return checked_head({"kind": "gated", **described, "dropout": 0.2, "names": names, "gate_offset": gate_offset}, path)
