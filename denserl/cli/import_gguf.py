"""A language model out of a GGUF file, as a folder that every other command reads."""

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from denserl.cli.export import new_model
from denserl.cli.launch import launch, suggest
from denserl.config import FIRST, INPUT, Config
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(Config):
    """Write the language model of a GGUF file (llama.cpp's form) as a folder of safetensors, its chat template included."""

    file: Annotated[Positional[str], INPUT, FIRST, arg(metavar="FILE")]
    """The GGUF file, of any architecture that transformers reads. Of a model that is on the hub give the other commands the
    hub name instead: what was kept in a few bits is not what it was."""
    output_dir: Annotated[str, FIRST]
    """New folder for model and tokenizer."""
    dtype: Annotated[Literal["fp32", "bf16"], FIRST] = "fp32"
    """Precision of the weights that are written."""


def run(options: Options) -> None:
    from denserl.models.gguf import import_gguf

    quiet_libraries()
    with new_model(options.output_dir) as folder:
        found = import_gguf(options.file, folder, options.dtype)
    log.info("%s: %s, %.1f M parameters, %d tokens", options.output_dir, found.kind, found.parameters / 1e6, found.tokens)
    suggest(f"check-model {options.output_dir}")


def main(argv: list[str] | None = None) -> None:
    launch(Options, "import-gguf", run, argv)


if __name__ == "__main__":
    main()
