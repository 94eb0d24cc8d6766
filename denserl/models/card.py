"""Model cards: the README.md of a model that is written, with the hub's metadata and no path of the machine.

What a folder tells of itself is in card_reading.py; here is what is known of how it came about. All text of users, models and
data stands in spans or blocks of code.
"""

import hashlib
import logging
import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

import denserl
from denserl.config import FIRST, INPUT, MODEL, Config, Option
from denserl.data.fingerprints import version
from denserl.data.hub import public_name, split_revision
from denserl.data.inputs import contents, of_inputs, revision_of
from denserl.files import replace_whole
from denserl.flags import as_flags, changed_options
from denserl.markdown import block, inline
from denserl.models.card_reading import facts_of, render
from denserl.models.folders import ADAPTERS

log = logging.getLogger(__name__)

CARD, BESIDE = "README.md", "MODEL_CARD.md"
_MARK = re.compile(r"\n<!-- denserl ([0-9a-f]{32}) -->\n\Z")
# Of where a command runs and whom it tells, which says nothing of the model, and may hold what is not to be told.
_UNTOLD = {"resume", "report_to", "cache_dir", "rollout_args", "judge_store", "push_to_hub", "hub_private"}


class Making(NamedTuple):
    """How a model came about."""

    command: str
    options: Config
    figures: Sequence[str] = ()  # in words, a line each
    accuracy: tuple[float, int] | None = None  # on held-out pairs, and of how many
    precision: str = ""  # of the fingerprints of models


def write_cards(folder: Path, making: Making, role: str | None = None) -> None:
    """The card of the model in a folder, and that of its adapters, if it has some in adapter/.

    role: what the model is, where its files do not tell.
    """
    _write(folder, making, role)
    if (folder / "adapter" / ADAPTERS).is_file():
        _write(folder / "adapter", making)


def is_as_written(card: str) -> bool:
    """Whether a card was written here, and nobody has changed it since."""
    mark = _MARK.search(card)
    return mark is not None and mark[1] == _hash(card[: mark.start()])


def _write(folder: Path, making: Making, role: str | None = None) -> None:
    path, card = folder / CARD, card_of(folder, making, role)
    if path.exists() and not is_as_written(path.read_text(encoding="utf-8", errors="replace")):
        log.warning("%s is yours and stays as it is; the model's own card is %s", path, folder / BESIDE)
        path = folder / BESIDE
    replace_whole(path, card)


def card_of(folder: Path, making: Making, role: str | None = None) -> str:
    """The card of the model in a folder, as it is written there."""
    options, folder = making.options, folder.absolute()
    adapter = (folder / ADAPTERS).is_file()
    name = f"{folder.parent.name}/{folder.name}" if adapter else getattr(options, "push_to_hub", None) or folder.name
    facts = facts_of(folder, name, _base(options), getattr(options, "trust_remote_code", False))
    body = render(
        "card.md",
        title=inline(name),
        what=role or facts.what,
        facts=facts.facts,
        inputs=_inputs(making),
        command=block(shown_command(making.command, options), "bash"),
        versions=f"denserl {denserl.__version__}, torch {version('torch')}, transformers {version('transformers')}",
        figures=block("\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in making.figures), "text")
        if making.figures
        else "",
        heading=facts.heading,
        reading=facts.reading,
    )
    results = _eval_results(making, facts.pipeline)
    data = ModelCardData(
        model_name=Path(name).name if results else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=facts.pipeline,
        tags=facts.tags,
        base_model=_hub_names(options, "model", "reward_model", "with_") or None,
        datasets=_hub_names(options, "data") or None,
        eval_results=results,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    return f"{text}\n<!-- denserl {_hash(text)} -->\n"


def shown_command(command: str, options: Config) -> str:
    """A command line with the options that differ from their defaults, one a line, without paths and addresses."""
    changed = sorted(changed_options(options), key=lambda one: FIRST not in one[0].marks)
    flags = [
        shlex.join(
            as_flags(option.flag, [_shown(option, each) for each in value] if _is_several(value) else _shown(option, value))
        )
        for option, value in changed
        if option.name not in _UNTOLD
    ]
    return " \\\n    ".join([f"denserl {command}", *flags])


def _shown(option: Option, value: Any) -> Any:
    """A value without what tells of the machine: of a path the last part, of an address nothing."""
    if not isinstance(value, str):
        return value
    if "://" in value:
        return "ADDRESS"
    if INPUT in option.marks or MODEL in option.marks:
        return public_name(value)
    if option.name == "output_dir":
        return Path(value).absolute().name
    if not re.search(r"\s", value):
        return value.rpartition("/")[2] or Path(value).name
    return re.sub(r"(?<!\S)(~|\.{0,2})/\S*/", "", value)


def _inputs(making: Making) -> list[str]:
    """What went in: option, name and a hash of what is in it, an item each."""

    def known(path: str) -> dict[str, str]:
        return contents(path, making.precision) or revision_of(path)

    found = []
    for option, paths in of_inputs(making.options, known).items():
        for path, about in paths.items():
            told = [f"{name} {inline(value)}" for name, value in about.items() if name != "unreadable"]
            shown = "ADDRESS" if "://" in path else public_name(path)
            found.append(", ".join([f"`{option.rstrip('_')}`: {inline(shown)}", *told]))
    return found


def _eval_results(making: Making, pipeline: str | None) -> list[EvalResult] | None:
    """Accuracy on held-out pairs, where these have a name on the hub."""
    held_out = _hub_names(making.options, "eval_data") or _hub_names(making.options, "data")
    if making.accuracy is None or len(held_out) != 1:
        return None
    accuracy, pairs = making.accuracy
    return [
        EvalResult(
            task_type=pipeline or "text-classification",
            dataset_type=held_out[0],
            dataset_name=held_out[0],
            metric_type="accuracy",
            metric_name=f"accuracy on {pairs} held-out pairs",
            metric_value=accuracy,
        )
    ]


def _base(options: Config) -> str:
    """What the model is called that adapters were trained on."""
    return public_name(getattr(options, "model", None) or "BASE")


def _hub_names(options: Config, *names: str) -> list[str]:
    """The values of options that are hub names, without revisions and configurations."""
    values = [each for name in names for each in _several(getattr(options, name, None)) if each]
    plain = [split_revision(value)[0].partition(":")[0] for value in values]
    return [value for value, full in zip(plain, values, strict=True) if "/" in value and public_name(full) == full]


def _several(value: Any) -> Sequence:
    return value if _is_several(value) else [value]


def _is_several(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
