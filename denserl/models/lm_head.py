"""The head of a language model as its files hold it: the rows of some tokens, or the whole of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from denserl.errors import UserError
from denserl.models.folders import weight_files

# What the libraries' families call it.
LM_HEAD = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
# What a checkpoint of a model of labels holds in its place: the rows of the labels, or of all tokens (heads.LabelHead).
_SCORE = ("score.weight", "score.bias")


def read_rows(folder: Path, ids: Sequence[int]) -> dict[str, Tensor]:
    """`weight` (len(ids), hidden), and `bias` (len(ids),) where it has one, of the tokens, in their order.

    Rows beside the others, under the names of a checkpoint, come first; empty where the files hold neither, as of tied heads.
    """
    found: dict[str, Tensor] = {}
    for name, file in _places(folder).items():
        with safe_open(file, framework="pt") as weights:
            part = weights.get_slice(name)
            rows = range(len(ids)) if name in _SCORE and part.get_shape()[0] == len(ids) else ids
            if part.get_shape()[0] > max(rows):
                kind = name.rpartition(".")[2]
                found[kind] = weights.get_tensor(name)[list(rows)] if kind == "bias" else _stacked(part, rows)
    return found


def read_whole(folder: Path, embeddings: str) -> dict[str, Tensor]:
    """`weight` (V, hidden), and `bias` (V,) where it has one. Of a tied head the weight is that of the name `embeddings`."""
    places = {name: file for name, file in _places(folder).items() if name in LM_HEAD}
    found: dict[str, Tensor] = {}
    if not any(name.endswith("weight") for name in places):
        found["weight"] = _named(folder, embeddings)
    for name, file in places.items():
        with safe_open(file, framework="pt") as weights:
            found[name.rpartition(".")[2]] = weights.get_tensor(name)
    return found


def _places(folder: Path) -> dict[str, Path]:
    """Where the parts of a head are: its own name -> file; those of a checkpoint alone, where there are any."""
    found: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            found |= dict.fromkeys({*LM_HEAD, *_SCORE}.intersection(weights.keys()), file)
    own = {name: file for name, file in found.items() if name in _SCORE}
    return own or found


def _named(folder: Path, name: str) -> Tensor:
    """The tensor of a name, which may be written without the prefix of the trunk."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                if f".{name}".endswith(f".{key}"):
                    return weights.get_tensor(key)
    raise UserError(f"{folder} holds neither a language model's head nor {name}", "give a language model's folder")


def _stacked(part: Any, rows: Iterable[int]) -> Tensor:
    """Rows of a matrix in a file, one at a time: the others stay on the disk."""
    return torch.cat([part[row : row + 1] for row in rows])
