"""Write a reward model in a layout that other libraries read, or one in GRM's layout in ours."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from denserl.cli.launch import launch
from denserl.config import FIRST, INPUT, Config
from denserl.errors import UserError, require
from denserl.files import make_folder
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(Config):
    """Write a reward model as a standard classifier or in GRM's layout, or one in GRM's layout in ours; scores stay equal."""

    reward_model: Annotated[str, INPUT, FIRST]
    """Trained reward model: folder or hub name; for the layout denserl, a published GRM model."""
    layout: Annotated[Literal["hf", "grm", "denserl"], FIRST]
    """hf: a classifier that transformers 4.57 and 5 read; grm: GRM's published layout; denserl: from that layout to ours."""
    output_dir: Annotated[str, FIRST]
    """New folder for the model."""


def run(options: Options) -> None:
    from denserl.models.export import LAYOUTS

    quiet_libraries()
    folder = make_model_folder(options.output_dir)
    try:
        LAYOUTS[options.layout](options.reward_model, folder)
    except UserError as error:
        if "trust_remote_code" in error.fix:  # which is of no use to whoever reads a standard layout
            raise UserError(error.found, "only models whose code is in transformers have a layout that others read") from error
        raise
    log.info("%s: %s in the layout %s", folder, options.reward_model, options.layout)
    if options.layout == "hf":
        log.info("a standard classifier gives the score of the last token; segment and token rewards are read with denserl")


def make_model_folder(path: str) -> Path:
    """Create a folder to write a model into. UserError when that cannot be done, or one is there already."""
    make_folder("output_dir", path)
    weights = sorted(Path(path).glob("*.safetensors"))
    require(not weights, f"`output_dir` {path} holds a model already ({weights and weights[0].name})", "give a new folder")
    return Path(path)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "export", run, argv)


if __name__ == "__main__":
    main()
