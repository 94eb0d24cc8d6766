"""Checkpoints of a PPO run: complete or absent, the newest found by its number, old ones dropped."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from denserl import distributed

NAME = re.compile(r"iteration-(\d+)")


def save_checkpoint(folder: Path, iteration: int, state: dict, engines: dict, tensors: dict, keep: int) -> Path:
    """Write engines (DeepSpeed), this rank's random state, rank 0's tensors and the state aside, then rename.

    Args:
        state: JSON-able. engines: name -> DeepSpeed engine.
        tensors: name -> tensor, the same on every rank, e.g. a moving average of weights.
        keep: newest checkpoints to keep.
    """
    target = folder / f"iteration-{iteration:06d}"
    aside = folder / f".{target.name}.partial"
    if distributed.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    distributed.barrier()
    for name, engine in engines.items():
        engine.save_checkpoint(str(aside / name), tag="state", save_latest=False)
    save_file(_random_state(), str(aside / f"random-{distributed.rank()}.safetensors"))
    if distributed.rank() == 0:
        save_file(tensors, str(aside / "tensors.safetensors"))
        (aside / "state.json").write_text(json.dumps(state))
    distributed.barrier()
    if distributed.rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return target


def load_checkpoint(path: Path, engines: dict) -> tuple[dict, dict]:
    """Restore engines and this rank's random state; returns state and tensors."""
    for name, engine in engines.items():
        engine.load_checkpoint(str(path / name), tag="state")
    random = load_file(str(path / f"random-{distributed.rank()}.safetensors"))
    torch.set_rng_state(random["cpu"])
    if "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"])
    return read_state(path), load_file(str(path / "tensors.safetensors"))


def read_state(path: Path) -> dict:
    """The JSON part of a checkpoint."""
    return json.loads((path / "state.json").read_text())


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest number."""
    return (_checkpoints(folder) or [None])[-1]


def _checkpoints(folder: Path) -> list[Path]:
    numbered = {path: NAME.fullmatch(path.name) for path in folder.glob("iteration-*")} if folder.is_dir() else {}
    return sorted((path for path, found in numbered.items() if found), key=lambda path: int(numbered[path][1]))


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
