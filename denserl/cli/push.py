"""Send a model to the Hugging Face hub: its weights, settings, tokenizer and card, and nothing else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from denserl.cli.launch import launch
from denserl.config import FIRST
from denserl.models.config import SharingConfig
from denserl.terminal import quiet_libraries


@dataclass(kw_only=True)
class Options(SharingConfig):
    """Send a model that was trained, merged or exported to the Hugging Face hub (docs/sharing.md)."""

    model: Annotated[str, FIRST]
    """Folder of the model."""
    push_to_hub: Annotated[str, FIRST] = field()
    """Repository (USER/NAME), which is made where there is none, and is private."""


def run(options: Options) -> None:
    from denserl.models.publishing import check_sharing, push

    quiet_libraries()
    check_sharing(options)
    push(Path(options.model), options.push_to_hub, options.hub_public)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "push", run, argv)


if __name__ == "__main__":
    main()
