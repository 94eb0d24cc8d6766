"""Write the embedded world as ordinary model and data files."""

import logging
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, Interval

from denserl.cli.launch import launch
from denserl.config import FIRST, Config
from denserl.errors import require
from denserl.files import make_folder
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(Config):
    """Write the embedded world: a base model, demonstrations, preferences and prompts, in the formats any user would bring."""

    output_dir: Annotated[str, FIRST] = "runs/world"
    """Folder to write."""
    seed: Annotated[int, FIRST, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of the base model's weights and of everything drawn."""
    scale: Annotated[float, FIRST, Gt(0)] = 1.0
    """Share of the rows written."""
    truth: Literal["mean", "sum", "asked"] = "mean"
    """What a response is worth: mean or sum of its sentences' values; asked: the mean, less a cost of more or fewer."""
    min_sentences: int = 2
    """Fewest sentences of the responses that are drawn."""
    max_sentences: int = 6
    """Most sentences of the responses that are drawn."""


def run(options: Options) -> dict:
    """Returns what world.json holds."""
    from denserl.world.language import NUMBERS
    from denserl.world.make import WorldRules, WorldSizes, write_world

    low, high, most = options.min_sentences, options.max_sentences, max(NUMBERS)
    found = f"`min_sentences` {low} `max_sentences` {high}"
    require(min(NUMBERS) <= low <= high <= most, found, f"let {min(NUMBERS)} <= MIN <= MAX <= {most}")
    quiet_libraries()
    make_folder("output_dir", options.output_dir)
    sizes = WorldSizes()
    rows = ("sft", "pairs", "val_pairs", "test_pairs", "prompts", "heldout_prompts")
    sizes = replace(sizes, **{name: max(1, round(getattr(sizes, name) * options.scale)) for name in rows})
    world = write_world(options.output_dir, options.seed, sizes, WorldRules(options.truth, low, high))
    log.info(
        "%s: %d demonstrations, %d pairs; the best reachable accuracy on unseen combinations is %.3f",
        options.output_dir,
        world["sizes"]["sft"],
        world["sizes"]["pairs"],
        world["best_accuracy_test"],
    )
    return world


def main(argv: list[str] | None = None) -> None:
    launch(Options, "make-world", run, argv)


if __name__ == "__main__":
    main()
