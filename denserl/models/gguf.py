"""Language models out of GGUF files, as llama.cpp and its kin keep them: read by transformers, written as stock folders.

What a file holds in fewer bits is multiplied out; nothing here is quantised.
"""

import copy
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.errors import UserError, require
from denserl.models.loading import as_dtype, check_weights

log = logging.getLogger(__name__)

MAGIC = b"GGUF"  # what a file begins with


class Imported(NamedTuple):
    """What was written."""

    kind: str  # the class of the model
    parameters: int
    tokens: int


def import_gguf(file: str | Path, folder: str | Path, dtype: str | torch.dtype = "fp32") -> Imported:
    """Write the language model in a GGUF file, its tokenizer and chat template as a stock folder, in safetensors.

    Args:
        file: of an architecture that transformers reads.
        dtype: of the weights that are written; those of the file, multiplied out, are in fp32.

    Raises:
        UserError: no GGUF file, the package gguf is not installed, or transformers does not read this one.
    """
    file = Path(file)
    require(file.is_file(), f"{file}: no such file", "give a file that ends with .gguf")
    require(_begins_rightly(file), f"{file}: no GGUF file, which would begin with {MAGIC.decode()}", "give another file")
    require(find_spec("gguf"), "GGUF files need the package gguf", "pip install 'denserl[realmodel]'")
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=as_dtype(dtype), output_loading_info=True)
    # Whatever is wrong with the file: what it lacks, names and shapes are looked up and used without a check.
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{file}: transformers cannot read it ({why})", "give a file of another model, or a whole one"
        ) from error
    check_weights(str(file), info, missing=(), unexpected=())
    # What was read is marked as quantised, and as such would not be written.
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Imported(type(plain).__name__, plain.num_parameters(), len(tokenizer))


def _begins_rightly(file: Path) -> bool:
    with open(file, "rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC
