"""A function that launches the same kernels on the same memory at every call: recorded on CUDA, and replayed from then on.

A recorded call costs the host one launch in place of a thousand. Elsewhere the function runs as it is.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from denserl.data.batching import is_out_of_memory

log = logging.getLogger(__name__)

# Runs a function once, of which nothing may depend on what the host knows, and gives what repeats it.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def cuda_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the kernels that a function launches, without running them. Each replay writes to the memory of the one result."""
    graph = torch.cuda.CUDAGraph()
    # Other threads of the process, such as those that watch over collectives, go on asking the device.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


# By type of device.
RECORDS: dict[str, Record] = {"cuda": cuda_graph}


class Recorded:
    """A function of one tensor, and of tensors that stay where they are until `forget` is called.

    Its first call afterwards runs as it is, so that libraries make themselves ready for the shapes; the second is recorded.
    What cannot be recorded goes on running as it is, which is logged once.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], name: str):
        """name: of what is run, for the log."""
        self.function, self.name = function, name
        self.given: Tensor | None = None
        self.replay: Callable[[], Tensor] | None = None
        self.can_record = True

    def forget(self) -> None:
        """Tensors have moved, or have other shapes."""
        self.given = self.replay = None

    def __call__(self, given: Tensor) -> Tensor:
        record = RECORDS.get(given.device.type)
        if record is None or not self.can_record:
            return self.function(given)
        if self.given is None:
            self.given = given.clone()
            return self.function(self.given)
        self.given.copy_(given)
        if self.replay is None:
            self.replay = self._recorded(record)
        return self.replay()

    def _recorded(self, record: Record) -> Callable[[], Tensor]:
        run = functools.partial(self.function, self.given)
        try:
            return record(run)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            tell(self.name, str(error).splitlines()[0])
            self.can_record = False
            return run


@functools.cache
def tell(name: str, why: str) -> None:
    """Log once for each reason that something is not recorded."""
    log.warning("%s decodes kernel by kernel, and not by a recorded graph, which is faster: %s", name, why)
