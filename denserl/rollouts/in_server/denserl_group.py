"""The process group by which a training gives its weights to the workers of servers, as both sides build it.

Rank 0 is the training. There is a group for each update, so that one which failed leaves nothing behind.
"""

import socket
from datetime import timedelta

import torch
import torch.distributed as dist

PREFIX = "denserl"


def open_store(address: str, seconds: float) -> dist.TCPStore:
    """Where the ranks of a group meet, at an address of this machine alone and a port that is free."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        limit = {"timeout": timedelta(seconds=seconds), "wait_for_workers": False}
        return dist.TCPStore(address, port, is_master=True, master_listen_fd=listening.detach(), **limit)


def find_store(address: str, port: int, seconds: float) -> dist.TCPStore:
    """The store that a training has opened."""
    return dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))


def is_there(rank: int) -> str:
    """The key that a rank sets once it is about to join the group."""
    return f"{PREFIX}/there/{rank}"


def join(store: dist.TCPStore, rank: int, size: int, seconds: float, device: torch.device) -> dist.ProcessGroup:
    """Join the group, once all others do: NCCL on CUDA, gloo elsewhere."""
    limit, meeting = timedelta(seconds=seconds), dist.PrefixStore(PREFIX, store)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        return dist.ProcessGroupNCCL(meeting, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._timeout = limit
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_address(store.host, store.port))]
    return dist.ProcessGroupGloo(meeting, rank, size, options)


def own_address(host: str, port: int) -> str:
    """The address by which this machine reaches another; nothing is sent."""
    family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as reaching:
        reaching.connect(place)
        return reaching.getsockname()[0]


def leave(group: dist.ProcessGroup) -> None:
    """Let go of a group, whatever has become of it."""
    if hasattr(group, "abort"):
        group.abort()
