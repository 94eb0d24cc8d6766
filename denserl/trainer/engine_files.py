"""What DeepSpeed writes of an engine: each trained weight once, nothing that is frozen, summed on its way to the disk.

Below ZeRO the weights of the module are written, above it those that the optimiser keeps in fp32, which the module's are
rounded from. Frozen weights are where the run began; whether that is still the same place is checked by whoever resumes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import nn
from torch.serialization import get_crc32_options, set_crc32_options

from denserl.files import SummedFile
from denserl.models.four_bit import is_four_bit


class EngineFiles(TorchCheckpointEngine):
    """Writes and reads the files of an engine's checkpoints, the interface that DeepSpeed gives for that."""

    def __init__(self, engine: nn.Module):
        super().__init__()
        self.engine = engine
        self.written: dict[str, dict] = {}

    def save(self, state_dict: dict, path: str) -> None:
        if "module" in state_dict:
            for name in self._kept_elsewhere(state_dict):
                state_dict["module"].pop(name, None)
        with SummedFile(path) as file, without_crc32():
            torch.save(state_dict, file)
        self.written[path] = file.entry

    def load(self, path: str, map_location: Any = None) -> dict:
        """A file's content; weights that are not in it are given as the module has them now."""
        state_dict = super().load(path, map_location)
        if "module" in state_dict:
            now = self.engine.module.state_dict()
            absent = self._kept_elsewhere(state_dict) - state_dict["module"].keys()
            state_dict["module"].update({name: now[name] for name in absent & now.keys()})
        return state_dict

    def take_written(self) -> dict[str, dict]:
        """Path -> bytes and checksum of what was written since it was last asked for."""
        written, self.written = self.written, {}
        return written

    def _kept_elsewhere(self, state_dict: dict) -> set[str]:
        """Names of weights, tied ones by all their names, that the optimiser's state holds, or that are frozen.

        With those in 4 bits goes what they are read with.
        """
        weights = dict(self.engine.module.named_parameters(remove_duplicate=False))
        groups = state_dict["param_shapes"] or []  # of what ZeRO optimises; None without it
        optimised = {id(weights[name]) for group in groups for name in group}
        kept = {name for name, weight in weights.items() if id(weight) in optimised or not weight.requires_grad}
        beside = tuple(f"{name}." for name in kept if is_four_bit(weights[name]))
        return kept | {name for name in state_dict["module"] if name.startswith(beside)}


@contextmanager
def without_crc32() -> Iterator[None]:
    """Let torch leave out the checksums of its own, which nothing reads."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
