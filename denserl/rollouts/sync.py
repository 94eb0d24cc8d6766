"""How servers come by the policy's weights: by a process group that the training and their workers form, or as files.

Either way each server is paused, given all weights, freed of what it has computed with the old ones, and told which version it
has; only then it goes on. One that fails on the way has the old version's label, or none, and nothing is sampled from it.
"""

import ipaddress
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from denserl import distributed
from denserl.errors import UserError
from denserl.http import SHOWN, Calls
from denserl.rollouts.in_server.denserl_group import is_there, join, leave, open_store, own_address
from denserl.rollouts.servers import Servers, fault, shown

POLL_SECONDS = 0.001


class Described(NamedTuple):
    """A weight by the name that it has in a model's files."""

    name: str
    shape: list[int]
    dtype: torch.dtype


class Weights(Protocol):
    """The policy's weights as they are now, adapters merged; what is collective is called on all ranks."""

    def version(self) -> int:
        """A number that changes with them."""

    def described(self) -> list[Described]:
        """All of them, in order."""

    def whole(self) -> Iterator[Tensor]:
        """Them, in the same order, each whole on every rank. Collective."""

    def save(self, folder: Path) -> None:
        """Let rank 0 write them as a model. Collective."""


class Sync:
    """Brings servers to the weights of now.

    folder: for those that go by files; None: by broadcast.
    """

    def __init__(self, weights: Weights, folder: Path | None, seconds: float, device: torch.device):
        self.weights, self.folder, self.seconds, self.device = weights, folder, seconds, device

    def __call__(self, servers: Servers, version: str) -> None:
        """Collective. UserError where a server cannot be brought there."""
        distributed.by_rank_0(lambda: servers.post_all("/pause?mode=abort"))
        (self._by_broadcast if self.folder is None else self._by_files)(servers)
        distributed.by_rank_0(lambda: _go_on(servers, version))

    def _by_files(self, servers: Servers) -> None:
        self.weights.save(self.folder)
        body = {"method": "denserl_reload", "kwargs": {"folder": str(self.folder.resolve())}}
        distributed.by_rank_0(lambda: servers.post_all("/collective_rpc", dict.fromkeys(servers.urls, body)))

    def _by_broadcast(self, servers: Servers) -> None:
        first, failed = distributed.rank() == 0, None
        sending = _Sending(servers, self.weights.described(), self.seconds, self.device) if first else None
        try:
            for number, weight in enumerate(self.weights.whole()):
                # Ranks gather the weights together, so that all go to the end.
                if first and failed is None:
                    try:
                        sending.send(number, weight)
                    except UserError as error:
                        failed = error
            distributed.by_rank_0(lambda: _raise(failed) if failed else sending.finish())
        finally:
            if first:
                sending.leave()


class _Sending:
    """An update by broadcast, as the first rank of the training makes it."""

    def __init__(self, servers: Servers, described: list[Described], seconds: float, device: torch.device):
        self.servers, self.described, self.seconds, self.device = servers, described, seconds, device
        self.group: ProcessGroup | None = None
        self.receiving: Calls | None = None

    def send(self, number: int, weight: Tensor) -> None:
        if self.group is None:
            self._begin()
        sent = weight.detach().to(self.device).contiguous()
        self._wait(self.group.broadcast(sent, 0), f"{self.described[number].name} was not taken")

    def finish(self) -> None:
        list(self.receiving.answers())
        self.servers.post_all("/finish_weight_update")

    def leave(self) -> None:
        if self.group is not None:
            leave(self.group)

    def _begin(self) -> None:
        """Meet the workers of all servers, and let them wait for the weights."""
        servers = self.servers
        sizes = [servers.get(url, "/get_world_size").get("world_size") for url in servers.urls]
        size, address = 1 + sum(sizes), address_for(servers.urls)
        store = open_store(address, self.seconds)
        firsts = [1 + sum(sizes[:i]) for i in range(len(sizes))]
        meeting = {"address": address, "port": store.port, "size": size, "seconds": self.seconds}
        bodies = {url: {"init_info": {**meeting, "first_rank": rank}} for url, rank in zip(servers.urls, firsts, strict=True)}
        joining = servers.asked("/init_weight_transfer_engine", bodies)
        self._until(lambda: store.check([is_there(rank) for rank in range(1, size)]), joining, "did not come to the group")
        self.group = join(store, 0, size, self.seconds, self.device)
        list(joining.answers())
        servers.post_all("/start_weight_update")
        names, shapes, dtypes = zip(*self.described, strict=True)
        body = {"names": names, "shapes": shapes, "dtypes": [str(dtype).removeprefix("torch.") for dtype in dtypes]}
        self.receiving = servers.asked("/update_weights", dict.fromkeys(servers.urls, {"update_info": body}))

    def _wait(self, work, late: str) -> None:
        self._until(work.is_completed, self.receiving, late)
        try:
            work.wait(timedelta(seconds=self.seconds))
        except RuntimeError as error:
            # One that left because it failed is about to say why.
            list(self.receiving.answers())
            raise fault(self.servers.urls[0], f"left the group: {str(error)[:SHOWN]!r}") from error

    def _until(self, happened: Callable[[], bool], calls: Calls, late: str) -> None:
        """Wait, unless a server has said that it failed."""
        until = time.monotonic() + self.seconds
        while not happened():
            calls.check()
            if time.monotonic() > until:
                raise fault(self.servers.urls[0], f"{late} within {self.seconds:g} s")
            time.sleep(POLL_SECONDS)


def _go_on(servers: Servers, version: str) -> None:
    """Let servers forget what they have computed with the weights before, and sample with those that they now have."""
    for number, said in servers.asked("/reset_prefix_cache").answers():
        if not (isinstance(said, dict) and said.get("success") is True):
            raise fault(servers.urls[number], f"did not empty its cache: it answered {shown(said)}")
    servers.post_all("/update_weight_version", dict.fromkeys(servers.urls, {"new_version": version}))
    servers.post_all("/resume")


def address_for(urls: Sequence[str]) -> str:
    """An address of this machine that servers reach: loopback where all of them are here."""
    hosts = [urllib.parse.urlsplit(url).hostname for url in urls]
    found = [own_address(host, 1) for host in hosts]
    return next((address for address in found if not ipaddress.ip_address(address).is_loopback), found[0])


def _raise(error: UserError) -> NoReturn:
    raise error
