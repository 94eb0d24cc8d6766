"""Rank, world size and sums over ranks, the same with and without an initialised process group.

Starting the group is the engine's work (denserl/trainer/engine.py).
"""

import contextlib
import itertools
import json
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from denserl.errors import UserError

Object = TypeVar("Object")
# Between two looks of a waiting rank, seconds: the first, and the longest.
PAUSES = 0.01, 0.5
# How long a rank that failed waits for the others to hear of it: rank 0 may be keeping the store that tells them.
HEARING_SECONDS = 5.0
_works = itertools.count()


def initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if initialised() else 0


def world_size() -> int:
    return dist.get_world_size() if initialised() else 1


def barrier() -> None:
    if initialised():
        dist.barrier()


def in_own_time(work: Callable[[], Object]) -> list[Object]:
    """What `work` returns on each rank (small, picklable), in rank order, on every rank, once all are done. Collective.

    For what may take longer on some ranks, or be done by one alone, than the process group's collectives wait (DeepSpeed's: 10
    minutes): the ranks look into the group's store as long as it takes. An exception on one rank ends those that wait at once,
    with UserError.
    """
    if world_size() == 1:
        return [work()]
    key, store = f"denserl/work/{next(_works)}", _store()
    try:
        found = work()
        store.set(f"{key}/{rank()}", "done")
    except Exception as error:
        _tell_failure(store, key, error)
        raise
    try:
        for each in range(world_size()):
            _await(store, key, each)
    except dist.DistNetworkError as error:
        raise UserError("the rank that keeps the store of the group has ended while others waited for work") from error
    # All are here by now. The store itself carries texts alone: its port may be open to more than the group.
    return gather_objects(found)


def by_rank_0(work: Callable[[], Object]) -> Object:
    """What `work` returns to rank 0, which alone does it, on every rank; waited for as in `in_own_time`. Collective."""
    return in_own_time(lambda: work() if rank() == 0 else None)[0]


def check_shared(folder: Path, option: str) -> None:
    """UserError on every rank where one of them does not see what rank 0 writes into the folder. Collective.

    option: what names the folder, or one above it.
    """
    mark: Path | None = None
    if rank() == 0:
        # Of a new name, since another host may have a folder of its own at the same place.
        mark = folder / f".{uuid.uuid4().hex}.partial"
        mark.touch()
    mark = gather_objects(mark)[0]
    hosts = gather_objects((socket.gethostname(), mark is not None and mark.exists()))
    if rank() == 0 and mark is not None:
        mark.unlink()
    blind = [f"rank {number} on {host}" for number, (host, sees) in enumerate(hosts) if not sees]
    if blind:
        found = f"{folder} is not the same folder on all hosts: what rank 0 on {hosts[0][0]} writes there is not seen by"
        fix = f"give `{option}` on storage that all hosts have mounted at the same path, as `output_dir` must be"
        raise UserError(f"{found} {', '.join(blind)}", fix)


def _await(store: dist.Store, key: str, of_rank: int) -> None:
    """Wait until a rank is done; UserError where one has failed."""
    pause, longest = PAUSES
    while not store.check([f"{key}/{of_rank}"]):
        if store.check([f"{key}/failure"]):
            told = json.loads(store.get(f"{key}/failure"))
            _let_hear(store, key)
            raise UserError(*told)
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _tell_failure(store: dist.Store, key: str, error: Exception) -> None:
    """Leave what went wrong for the other ranks, and give those that wait the time to find it."""
    told = error if isinstance(error, UserError) else UserError(f"rank {rank()} has failed: {type(error).__name__}: {error}")
    store.set(f"{key}/failure", json.dumps([told.found, told.fix, told.one_rank]))
    _let_hear(store, key)


def _let_hear(store: dist.Store, key: str) -> None:
    """Say that this rank knows of a failure, and wait a while until all do: with one of them the store may go."""
    until = time.monotonic() + HEARING_SECONDS
    # Where it is gone, all have heard, or waited long enough.
    with contextlib.suppress(dist.DistNetworkError):
        heard = store.add(f"{key}/heard", 1)
        while heard < world_size() and time.monotonic() < until:
            time.sleep(PAUSES[0])
            heard = store.add(f"{key}/heard", 0)


def _store() -> dist.Store:
    """Where the ranks of the process group have met."""
    return dist.distributed_c10d._get_default_store()


def all_sum(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `x` over the ranks of the group (default: all), in place."""
    if initialised():
        dist.all_reduce(x, group=group)
    return x


def all_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, (N, ...) of each, in rank order: (ranks N, ...), without graph."""
    if not initialised():
        return x
    found = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(found, x.contiguous())
    return torch.cat(found)


def all_max(number: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    if not initialised():
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def any_rank(flag: bool) -> bool:
    """Whether the flag is up on any rank."""
    return any_ranks(flag)[0]


def any_ranks(*flags: bool) -> list[bool]:
    """Of each flag, whether it is up on any rank; one reduction for all of them."""
    if not initialised():
        return list(flags)
    up = torch.tensor(flags, dtype=torch.int32, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(up, op=dist.ReduceOp.MAX)
    return [bool(number) for number in up.tolist()]


def gather_objects(obj: Object) -> list[Object]:
    """One (small, picklable) object of each rank, in rank order, on every rank."""
    if not initialised():
        return [obj]
    objects: list[Object] = [None] * world_size()
    dist.all_gather_object(objects, obj)
    return objects


def average_over_ranks(totals: dict[str, Tensor], count: Tensor) -> dict[str, float]:
    """Divide totals by a count, both summed over ranks in one reduction; 0 where the count is 0."""
    return average_and_gather(totals, count, count.new_zeros(0))[0]


def average_and_gather(totals: dict[str, Tensor], count: Tensor, numbers: Tensor) -> tuple[dict[str, float], Tensor]:
    """`average_over_ranks`, and in the same reduction every rank's own numbers: (N,) -> (world size, N), on the CPU.

    N must be the same on all ranks.
    """
    slots = numbers.new_zeros(world_size(), len(numbers), dtype=torch.float32)
    slots[rank()] = numbers
    sums = torch.stack([count.float(), *(total.float() for total in totals.values())])
    packed = all_sum(torch.cat([sums, slots.flatten()])).cpu()
    (number, *summed), gathered = packed[: len(sums)], packed[len(sums) :].view_as(slots)
    return {name: (total / number.clamp(min=1e-8)).item() for name, total in zip(totals, summed, strict=True)}, gathered
