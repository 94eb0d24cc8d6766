"""Look at data before anything is trained: a summary, inspect.json and inspect.html."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from denserl.cli.launch import launch, suggest
from denserl.config import FIRST, INPUT
from denserl.errors import require
from denserl.inspection.config import InspectConfig
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(InspectConfig):
    """Look at data before anything is trained: rows refused, lengths, duplicates, labels, and segments at every threshold."""

    group: ClassVar[str] = "data"

    data: Annotated[Positional[list[str]], INPUT, FIRST, arg(metavar="DATA")]
    """Preferences, demonstrations, prompts, rated responses or solutions with labelled steps: files (.json, .jsonl, .csv, .tsv,
    each also .gz, .parquet, .txt), folders of such or of `save_to_disk`, or names of hub datasets (NAME or NAME:CONFIG)."""


def run(options: Options) -> dict[str, Any]:
    """Returns what is written to inspect.json."""
    from denserl import distributed
    from denserl.cli.versions import versions
    from denserl.files import make_folder, replace_whole
    from denserl.inspection.inspected import inspected
    from denserl.inspection.page import write_page
    from denserl.inspection.sections import sections_of
    from denserl.inspection.summary import format_sections

    folder = Path(options.output_dir)
    found = f"`output_dir` {folder} is the folder of the data, where what is written would be read as data"
    require(all(Path(source).resolve() != folder.resolve() for source in options.data), found, "give another folder")
    make_folder("output_dir", options.output_dir)
    figures = {**inspected(options), "options": dataclasses.asdict(options), "versions": dict(versions())}
    if distributed.rank() == 0:
        replace_whole(folder / "inspect.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
        write_page(folder / "inspect.html", figures)
        say(f"{format_sections(sections_of(figures))}\n\nwritten to {folder / 'inspect.html'} and inspect.json")
        _suggest(options, figures)
    distributed.barrier()
    return figures


def _suggest(options: Options, figures: dict[str, Any]) -> None:
    """What may be trained next on such rows."""
    data = " ".join(options.data)
    if figures["kind"] == "demonstrations":
        suggest(f"train-sft --model {options.model or 'MODEL'} --data {data} --output_dir NEW_FOLDER")
    elif figures["kind"] == "pairs":
        threshold = figures.get("wished", {}).get("threshold")
        cut = "" if threshold is None else f" --entropy_threshold {threshold:g}"
        suggest(f"train-rm --model {options.model or 'SFT_MODEL'} --data {data}{cut} --output_dir NEW_FOLDER")


def main(argv: list[str] | None = None) -> None:
    launch(Options, "inspect", run, argv)


if __name__ == "__main__":
    main()
