"""Merge LoRA adapters into the model that they were trained on, or average the weights of models."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from denserl.cli.export import new_model
from denserl.cli.launch import launch, suggest
from denserl.config import FIRST, INPUT, Config, ModelSourceConfig, Only, Precision
from denserl.errors import require
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Options(Config):
    """Merge LoRA adapters of a language model or a reward model, head included, or a reward model with other models."""

    model: Annotated[str, INPUT, FIRST]
    """Model that the adapters were trained on, or reward model to average: folder or hub name."""
    adapter: Annotated[str | None, INPUT, FIRST] = None
    """Folder of the adapters, e.g. adapter/ in what a run with --lora_rank wrote."""
    with_: Annotated[list[str] | None, INPUT, FIRST] = None
    """Average the weights of the reward model with those of these: language models of its shape, or reward models of its shape
    and head (docs/preference_models.md)."""
    weight: Annotated[float | None, FIRST, Interval(ge=0, le=1), Only("without `with_`", lambda c: c.with_)] = None
    """Share of the reward model, the others having equal parts of the rest; default: equal shares of all."""
    output_dir: Annotated[str, FIRST]
    """New folder for the whole model."""
    dtype: Precision = "auto"
    """Precision of the merged weights; auto is that of the adapters, or of the reward model."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model folder or hub repository."""

    def check(self) -> None:
        super().check()
        found = "`adapter` and `with_`: both given" if self.adapter else "neither `adapter` nor `with_` is given"
        require(bool(self.adapter) != bool(self.with_), found, "give what is to be merged into `model`")


def run(options: Options) -> None:
    from denserl.models.card import Making, write_cards

    quiet_libraries()
    dtype = None if options.dtype == "auto" else options.dtype
    with new_model(options.output_dir) as folder:
        if options.adapter:
            _merge(options, folder, dtype)
        else:
            _average(options, folder, dtype)
    write_cards(Path(options.output_dir), Making("merge", options, precision=options.dtype))


def _merge(options: Options, folder: Path, dtype: str | None) -> None:
    from denserl.models.merging import merge_adapters
    from denserl.models.saving import save_model

    warnings.filterwarnings("ignore", message=".*will be removed in v6", category=FutureWarning)
    model, tokenizer = merge_adapters(options.model, options.adapter, dtype, trust_remote_code=options.trust_remote_code)
    tokenizer.save_pretrained(folder)
    save_model(model, folder)
    log.info("%s: %s with the adapters of %s merged in, %s", options.output_dir, options.model, options.adapter, model.dtype)


def _average(options: Options, folder: Path, dtype: str | None) -> None:
    from denserl.models.averaging import average_models
    from denserl.rewards.sources.build import judges_pairs

    average_models(options.model, options.with_, options.weight, folder, dtype, options.trust_remote_code)
    log.info("%s: average of %s and %s", options.output_dir, options.model, ", ".join(options.with_))
    if not judges_pairs(options.model, ModelSourceConfig(trust_remote_code=options.trust_remote_code)):
        log.info(
            "mean and std of its scores are not those of %s, and not stored: score_mean and score_std in results.json of "
            "denserl evaluate pairs, for --reward_mean and --reward_std",
            options.model,
        )
    suggest(f"evaluate pairs HELD_OUT --scorer {folder} --output_dir NEW_FOLDER")


def main(argv: list[str] | None = None) -> None:
    launch(Options, "merge", run, argv)


if __name__ == "__main__":
    main()
