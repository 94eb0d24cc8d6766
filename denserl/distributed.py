"""Rank, world size and sums over ranks, the same with and without an initialised process group.

Starting the group is the engine's work (denserl/trainer/engine.py).
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Object = TypeVar("Object")


def initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if initialised() else 0


def world_size() -> int:
    return dist.get_world_size() if initialised() else 1


def barrier() -> None:
    if initialised():
        dist.barrier()


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
    return bool(all_max(int(flag)))


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
