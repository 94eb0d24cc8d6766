"""Write a reward model in a layout that other libraries read, or one of another library in ours."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from denserl.cli.launch import launch
from denserl.config import FIRST, INPUT, Only
from denserl.errors import UserError, require
from denserl.files import make_folder
from denserl.models.config import SharingConfig
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


INTO_OURS = Only("without `layout` denserl", lambda c: c.layout == "denserl")


@dataclass(kw_only=True)
class Options(SharingConfig):
    """Write a reward model as a standard classifier, in GRM's or ArmoRM's layout, or one of another library in ours, of equal
    scores; or the model of a checkpoint."""

    reward_model: Annotated[str | None, INPUT, FIRST] = None
    """Trained reward model: folder or hub name; for the layout denserl a published GRM or ArmoRM model, a token classifier of
    wrong and right steps, or a language model that judges by labels."""
    layout: Annotated[
        Literal["hf", "grm", "armorm", "denserl"] | None, FIRST, Only("without `reward_model`", lambda c: c.reward_model)
    ] = None
    """hf: a classifier that transformers 4.57 and 5 read; grm: GRM's published layout; armorm: ArmoRM's, of gated heads;
    denserl: ours, from others'."""
    checkpoint: Annotated[str | None, INPUT, FIRST] = None
    """Checkpoint of a training, such as OUTPUT_DIR/checkpoints/step-000256: write the model as the run would have, had it ended
    there."""
    trust_remote_code: Annotated[bool, Only("without `checkpoint`", lambda c: c.checkpoint)] = False
    """Run code of the model's folder, where the training did so."""
    output_dir: Annotated[str, FIRST]
    """New folder for the model."""
    labels: Annotated[list[str] | None, INTO_OURS] = None
    """Of a language model that judges by labels in a chat, these: of steps the better one first, such as + -; of two responses
    that of the first, that of the second, and if there is one, that of a tie, such as A B."""
    context_signs: Annotated[Literal["none", "plus", "true"] | None, Only("without `labels`", lambda c: c.labels)] = None
    """How it is shown a solution: none as one answer, plus and true step by step, each answered by a label, as in training;
    default: plus."""
    step_separator: Annotated[list[str] | None, INTO_OURS] = None
    """What stands between the steps that it judges; default: a blank line, and a line break of token classifiers."""
    pair_layout: Annotated[
        Literal["denserl", "rlhflow"] | None,
        Only("without `labels`", lambda c: c.labels),
        Only("with `pair_layout`", lambda c: not c.pair_layout, of=("context_signs", "step_separator")),
    ] = None
    """It compares two responses, written like this: rlhflow is the layout of published models."""

    def check(self) -> None:
        super().check()
        found = "`reward_model` and `checkpoint`: both given" if self.checkpoint else "neither `reward_model` nor `checkpoint`"
        require(bool(self.reward_model) != bool(self.checkpoint), found, "give what is to be written")
        named = self.layout is not None or not self.reward_model
        require(named, "`reward_model` without `layout`", "add `layout` hf, grm, armorm or denserl")


def run(options: Options) -> None:
    from denserl.models.card import Making
    from denserl.models.publishing import check_sharing, publish

    quiet_libraries()
    check_sharing(options)
    with new_model(options.output_dir) as folder:
        if options.checkpoint:
            from denserl.trainer.descriptions import write_models

            write_models(Path(options.checkpoint), folder, options.trust_remote_code)
        else:
            _write_layout(options, folder)
    of = options.checkpoint or f"{options.reward_model} in the layout {options.layout}"
    log.info("%s: the model of %s", options.output_dir, of)
    if options.layout == "hf":
        log.info("a standard classifier gives the score of the last token; segment and token rewards are read with denserl")
    publish(Path(options.output_dir), Making("export", options))


def _write_layout(options: Options, folder: Path) -> None:
    from denserl.data.labels import place_labels, two_labels
    from denserl.models.export import LAYOUTS
    from denserl.models.importing import import_model
    from denserl.steps import as_typed

    try:
        if options.layout == "denserl":
            named = place_labels if options.pair_layout else two_labels
            labels = named(options.labels) if options.labels else None
            separators = [as_typed(text) for text in options.step_separator or []]
            import_model(options.reward_model, folder, labels, options.context_signs, separators, options.pair_layout)
        else:
            LAYOUTS[options.layout](options.reward_model, folder)
    except UserError as error:
        if "trust_remote_code" in error.fix:  # which is of no use to whoever reads a standard layout
            raise UserError(error.found, "only models whose code is in transformers have a layout that others read") from error
        raise


@contextlib.contextmanager
def new_model(path: str) -> Iterator[Path]:
    """A folder in which to write the model of `path`; all of it is moved there at the end, and of a failure nothing is left.

    What a kill left, the same command replaces. UserError when the folder cannot be made, or holds a model already.
    """
    make_folder("output_dir", path)
    weights = sorted(Path(path).glob("*.safetensors"))
    require(not weights, f"`output_dir` {path} holds a model already ({weights and weights[0].name})", "give a new folder")
    aside = Path(path) / ".partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        # Weights last: while there are none, it is no model that stands there.
        for written in sorted(aside.iterdir(), key=lambda written: written.suffix == ".safetensors"):
            there = Path(path) / written.name
            if there.is_dir():  # of a kill amid these moves
                shutil.rmtree(there)
            os.replace(written, there)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def main(argv: list[str] | None = None) -> None:
    launch(Options, "export", run, argv)


if __name__ == "__main__":
    main()
