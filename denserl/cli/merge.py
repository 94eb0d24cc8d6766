"""Merge LoRA adapters into the model that they were trained on."""

import logging
import warnings
from dataclasses import dataclass
from typing import Annotated

from denserl.cli.export import make_model_folder
from denserl.cli.launch import launch
from denserl.config import FIRST, INPUT, Config, Precision
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(Config):
    """Merge LoRA adapters of a language model or a reward model, head included, into a whole model folder."""

    model: Annotated[str, INPUT, FIRST]
    """Model that the adapters were trained on: folder or hub name."""
    adapter: Annotated[str, INPUT, FIRST]
    """Folder of the adapters, e.g. adapter/ in what a run with --lora_rank wrote."""
    output_dir: Annotated[str, FIRST]
    """New folder for the whole model."""
    dtype: Precision = "auto"
    """Precision of the merged weights; auto is that of the adapters."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model folder or hub repository."""


def run(options: Options) -> None:
    from denserl.models.merging import merge_adapters
    from denserl.models.saving import save_model

    quiet_libraries()
    warnings.filterwarnings("ignore", message=".*will be removed in v6", category=FutureWarning)
    dtype = None if options.dtype == "auto" else options.dtype
    folder = make_model_folder(options.output_dir)
    model, tokenizer = merge_adapters(options.model, options.adapter, dtype, trust_remote_code=options.trust_remote_code)
    tokenizer.save_pretrained(folder)
    save_model(model, folder)
    log.info("%s: %s with the adapters of %s merged in, %s", folder, options.model, options.adapter, model.dtype)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "merge", run, argv)


if __name__ == "__main__":
    main()
