"""Which files of a folder, or which part of a saved data set, are a split."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from denserl.data.config import is_saved
from denserl.data.file_rows import DATA_SUFFIXES, without_suffix
from denserl.errors import UserError, require
from denserl.files import COMMAND_FILE, without_outputs

_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
# JSON files that are no data: those beside data, or in a model folder that was given by mistake.
_METADATA = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "model.safetensors.index.json",
    COMMAND_FILE,
)  # fmt: skip
# What follows a split's name where it is kept in several files: train-00000-of-00002, train_1, train-00000-of-00001-0a1b2c3d.
_SHARD = re.compile(r"[-_. ]?\d+([-_. ]of[-_. ]\d+)?(-[0-9a-f]{8,})?$")


def saved_folder(folder: Path, split: str) -> Path | None:
    """The folder of a saved data set, or of a split of several saved as one; None where nothing is saved there."""
    if is_saved(folder):
        return folder
    names = folder / "dataset_dict.json"
    if not names.is_file():
        return None
    try:
        splits = list(map(str, json.loads(names.read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{names} does not name the splits of a saved data set ({error})", "save the data set again") from error
    _require_split(folder, split, splits if split not in splits else [])
    return folder / split


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, which are named after it or lie in a folder of its name; all where no name speaks of splits.

    UserError where the folder has other splits, or only some whose names are longer.
    """
    files = sorted(
        f for f in folder.rglob("*")
        if f.is_file() and f.name.lower().endswith(DATA_SUFFIXES) and f.name not in _METADATA
        and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )  # fmt: skip
    files = without_outputs(files, folder)
    require(files, f"{folder} holds no data file", f"put files of these kinds there: {' '.join(DATA_SUFFIXES)}")
    named = [f for f in files if any(_is_of(name, split) for name in _names(f, folder))]
    if not named:
        _require_split(folder, split, _splits_in((_names(f, folder) for f in files), split))
    return named or files


def _require_split(folder: Path, split: str, others: list[str]) -> None:
    if others:
        raise UserError(f"{folder} has no split {split!r} but {', '.join(others)}", f"choose one, e.g. `split` {others[0]}")


def _names(file: Path, folder: Path) -> list[str]:
    """The names of a file that may be a split's: those of its folders, and its own."""
    *folders, name = file.relative_to(folder).parts
    return [*folders, without_suffix(name)]


def _is_of(name: str, split: str) -> bool:
    name, split = name.casefold(), split.casefold()
    return name.startswith(split) and (name == split or _SHARD.fullmatch(name[len(split) :]) is not None)


def _splits_in(files: Iterable[list[str]], asked: str) -> list[str]:
    """What the names of files that speak of a split call it, without the numbers of shards."""
    words = "|".join(map(re.escape, (asked, *_SPLITS)))
    word = re.compile(rf"(?<![A-Za-z])({words})(set|ing|data)?(?![A-Za-z])", re.IGNORECASE)
    found = (next((name for name in names if word.search(name)), None) for names in files)
    return sorted({_SHARD.sub("", name) or name for name in found if name is not None})
