"""Where a policy comes from, as far as the folders of its answers and of its training tell. For warnings alone."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from denserl.evaluation.policies.files import MANIFEST
from denserl.files import COMMAND_FILE

NEAR = 2  # folders above a policy's own in which the record of its training may be


def rewards_of_policy(answers: str, models: Sequence[str]) -> list[str]:
    """Which of these reward models are known to have trained the policy that gave the answers.

    answers: a file, or the folder that holds it, with what denserl answer wrote beside it.
    """
    path = Path(answers)
    manifest = _read((path if path.is_dir() else path.parent) / MANIFEST)
    policy = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(policy, str):
        return []
    paid = set(_rewards(Path(policy)))
    return [model for model in models if {model, os.path.abspath(model)} & paid]


def _rewards(policy: Path) -> Iterator[str]:
    """Names and places of the reward models of the commands that wrote where a policy is."""
    for folder in [policy, *policy.absolute().parents[:NEAR]]:
        entries = _read(folder / COMMAND_FILE)
        for entry in entries if isinstance(entries, list) else []:
            inputs = entry.get("inputs") if isinstance(entry, dict) else None
            models = inputs.get("reward_model") if isinstance(inputs, dict) else None
            for name, about in models.items() if isinstance(models, dict) else ():
                yield name
                if isinstance(about, dict) and isinstance(about.get("path"), str):
                    yield about["path"]


def _read(path: Path) -> Any:
    """What a JSON file holds; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
