"""From a bound socket to a server that runs until it is told to stop."""

import contextlib
import errno
import signal
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from denserl.errors import UserError

LONGEST_STOP = 30  # seconds that requests at hand may take when the server is told to stop


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at the address that takes no connections yet. UserError where it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        fix = "give another `port`, or stop what listens there" if in_use else "correct `host` and `port`"
        raise UserError(f"cannot listen at port {port} of {host}: {error.strerror or error}", fix) from error


def is_loopback(bound: socket.socket) -> bool:
    """Whether a socket is reached from this machine alone."""
    host = bound.getsockname()[0]
    return host == "::1" or host.startswith("127.")


def serve(app: FastAPI, bound: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those at hand are answered before it ends. A second Ctrl-C ends it at once."""
    # Nothing is chosen by what else is installed, and uvicorn sets up no logging of its own.
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LONGEST_STOP,
    )
    _Server(config).run(sockets=[bound])


class _Server(uvicorn.Server):
    """A server that, told to stop by a signal, ends well: uvicorn's own would send itself the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
