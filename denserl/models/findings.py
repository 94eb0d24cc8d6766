"""What was measured of models, kept between runs: a model is probed once for the same weights, code and way of running."""

import functools
import hashlib
import inspect
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from denserl import distributed
from denserl.models.folders import weight_files
from denserl.models.measured import LogitMap, Measured
from denserl.models.probe import probe
from denserl.models.varlen import FLASH_ATTN

log = logging.getLogger(__name__)

CACHE = Path("~/.cache/denserl/measured")


def measure(model: PreTrainedModel, path: str) -> Measured:
    """`probe`, once for the same weights, code and way of running; findings are read from CACHE after that."""
    file = CACHE / f"{_fingerprint(model, path)}.json"
    found = _read(file)
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        # All ranks gather the weights for the forwards, or none does.
        found = distributed.gather_objects(found)[0]
    if found is None:
        found = probe(model)
        _write(file, found)
    return found


def _fingerprint(model: PreTrainedModel, path: str) -> str:
    """Of the weights' files, the model's settings, all code that runs it, and how it is run."""
    digest = hashlib.sha256()
    told = [model.config.to_json_string(use_diff=False), vars(model.config).get("_commit_hash")]
    told += [model.config.get_text_config()._attn_implementation, model.dtype, model.device.type, torch.cuda.is_available()]
    told += [FLASH_ATTN.function() is not None, torch.__version__, transformers.__version__, type(model).__qualname__, path]
    if Path(path).is_dir():
        told += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(Path(path))]
    digest.update(repr(told).encode())
    # With what stands beside the files of its classes, which they may import.
    folders = {Path(inspect.getfile(type(module))).parent for module in model.modules()} | {Path(__file__).parent}
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(_hash_of(file, file.stat().st_mtime_ns))
    return digest.hexdigest()[:32]


@functools.cache
def _hash_of(file: Path, time: int) -> bytes:
    """time: of the file, which tells whether the hash still holds."""
    return hashlib.sha256(file.read_bytes()).digest()


def _read(file: Path) -> Measured | None:
    try:
        stored = json.loads(file.expanduser().read_text())
        return Measured(**{**stored, "logits": stored["logits"] and LogitMap(**stored["logits"])})
    # RuntimeError: there is no home.
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return None


def _write(file: Path, found: Measured) -> None:
    """Whole or not at all, since other runs may be reading; a folder that cannot be written costs a measurement each time."""
    try:
        file = file.expanduser()
        own = file.with_suffix(f".{os.getpid()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(found._asdict(), default=asdict))
        os.replace(own, file)
    except (OSError, RuntimeError) as error:
        log.info("what was measured of the model is not kept: %s", error)
