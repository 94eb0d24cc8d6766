"""Write the embedded world as ordinary model and data files."""

import logging
from dataclasses import dataclass

from denserl.cli.common import launch

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options:
    """Write the embedded world: a base model, demonstrations, preferences and prompts, in the formats any user would bring."""

    output_dir: str = "runs/world"
    """Folder to write."""
    seed: int = 0
    """Seed of the language model's weights and of everything drawn."""


def run(options: Options) -> dict:
    from denserl.world.make import write_world

    world = write_world(options.output_dir, options.seed)
    log.info("%s: %s", options.output_dir, ", ".join(f"{key} {value}" for key, value in world.items()))
    return world


def main(argv: list[str] | None = None) -> None:
    launch(Options, "make-world", run, argv)


if __name__ == "__main__":
    main()
