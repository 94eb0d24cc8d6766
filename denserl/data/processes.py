"""Work in several processes, forked as those of a data loader are: they see what a function sees, and send its result."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from denserl.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_MOST = 32  # processes, each of which grows by what it changes
_work: Callable[[Any], Any]  # of a forked process


def cores() -> int:
    """Those that this process may use, up to a number of processes that still pays; one where forking is not safe."""
    return min(len(os.sched_getaffinity(0)), _MOST) if hasattr(os, "sched_getaffinity") else 1


def in_processes(function: Callable[[Argument], Result], arguments: Sequence[Argument], processes: int) -> Iterator[Result]:
    """What a function returns (picklable) for each argument, in their order, computed in so many processes; by this one if 1.

    UserError where one was killed.
    """
    if processes < 2:
        yield from map(function, arguments)
        return
    try:
        with ProcessPoolExecutor(processes, get_context("fork"), _begin, (function, os.getpid())) as pool:
            yield from pool.map(_call, arguments)
    except BrokenProcessPool as error:
        found = f"one of {processes} processes that prepare the data was killed, as it is where memory does not suffice"
        raise UserError(found, "make room, or allow fewer cores: taskset -c 0-3 ...", one_rank=True) from error


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    """In a new process: its work, and how it ends with the one that it works for."""
    global _work
    _work = function
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # The process is one of several already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _call(argument: Any) -> Any:
    return _work(argument)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
