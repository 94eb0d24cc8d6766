"""The head of a language model as its files hold it: the rows of some tokens, or the whole of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from denserl.errors import require
from denserl.models.folders import opened, weight_files

# What the libraries' families call it.
LM_HEAD = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
# What a checkpoint of a model of labels holds in its place: the rows of the labels, or of all tokens (heads.LabelHead).
_SCORE = {"score.weight", "score.bias"}


def embeddings_name(model: PreTrainedModel) -> str:
    """What the weight of a model's input embeddings is called, which tied heads have no other of."""
    return next(name for name, weight in model.named_parameters() if weight is model.get_input_embeddings().weight)


def read_rows(folder: Path, ids: Sequence[int], tied: str | None) -> dict[str, Tensor]:
    """`weight` (len(ids), hidden), and `bias` (len(ids),) where it has one, of the tokens, in their order.

    Rows beside the others, under the names of a checkpoint, come first. What the files do not hold is left out.

    tied: `embeddings_name`, where the head may be tied to them.
    """
    found: dict[str, Tensor] = {}
    for name, file in _places(folder, tied).items():
        with opened(file) as weights:
            part = weights.get_slice(name)
            rows = range(len(ids)) if name in _SCORE and part.get_shape()[0] == len(ids) else ids
            if part.get_shape()[0] > max(rows):
                kind = name.rpartition(".")[2]
                found[kind] = weights.get_tensor(name)[list(rows)] if kind == "bias" else _stacked(part, rows)
    return found


def read_whole(folder: Path, tied: str) -> dict[str, Tensor]:
    """`weight` (V, hidden), and `bias` (V,) where a language model's head has one; tied: see `read_rows`.

    UserError where the files hold neither a head nor embeddings.
    """
    found: dict[str, Tensor] = {}
    for name, file in _places(folder, tied).items():
        with opened(file) as weights:
            found[name.rpartition(".")[2]] = weights.get_tensor(name)
    require(
        "weight" in found and not _SCORE & _places(folder, tied).keys(),
        f"{folder} holds neither a language model's head nor {tied}",
        "give a language model's folder",
    )
    return found


def _places(folder: Path, tied: str | None) -> dict[str, Path]:
    """Where the parts of a head are: its own name -> file; those of a checkpoint alone, where there are any.

    Embeddings stand in for a weight that is not there; their name may be written without the prefix of the trunk.
    """
    found: dict[str, Path] = {}
    embeddings: dict[str, Path] = {}
    for file in weight_files(folder):
        with opened(file) as weights:
            names = weights.keys()
        found |= dict.fromkeys({*LM_HEAD, *_SCORE}.intersection(names), file)
        embeddings |= {name: file for name in names if tied is not None and f".{tied}".endswith(f".{name}")}
    found = {name: file for name, file in found.items() if name in _SCORE} or found
    return found if any(name.endswith("weight") for name in found) else {**found, **embeddings}


def _stacked(part: Any, rows: Iterable[int]) -> Tensor:
    """Rows of a matrix in a file, one at a time: the others stay on the disk."""
    return torch.cat([part[row : row + 1] for row in rows])
