"""Write the embedded world as ordinary model and data files."""

import logging
from dataclasses import dataclass, replace

from denserl.cli.common import launch, make_folder, quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options:
    """Write the embedded world: a base model, demonstrations, preferences and prompts, in the formats any user would bring."""

    output_dir: str = "runs/world"
    """Folder to write."""
    seed: int = 0
    """Seed of the base model's weights and of everything drawn."""
    scale: float = 1.0
    """Share of the rows written."""


def run(options: Options) -> dict:
    """Returns what world.json holds."""
    from denserl.world.make import WorldSizes, write_world

    quiet_libraries()
    make_folder("output_dir", options.output_dir)
    sizes = WorldSizes()
    rows = ("sft", "pairs", "val_pairs", "test_pairs", "prompts", "heldout_prompts")
    sizes = replace(sizes, **{name: max(1, round(getattr(sizes, name) * options.scale)) for name in rows})
    world = write_world(options.output_dir, options.seed, sizes)
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
