"""The page of runs that are still going on, served to this machine alone and made anew when their files have changed."""

import signal
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from denserl.errors import UserError
from denserl.files import COMMAND_FILE
from denserl.report.reading import ANSWERS, FITS, METRICS, RESULTS, SAMPLES, SCORES, TURNS, listed, paths_of

HOST = "127.0.0.1"
# Names under which a browser on this machine asks; a page from elsewhere whose name leads here has another.
NAMES = ("127.0.0.1", "localhost", "[::1]")
FILES = (COMMAND_FILE, METRICS, RESULTS, SCORES, FITS, ANSWERS, *(f"{file}.jsonl" for file in SAMPLES))


def state_of(folders: Sequence[str]) -> str:
    """What tells whether anything has changed in the runs of these folders: sizes and times of their files.

    UserError where a folder is not there.
    """
    parts = []
    for folder in dict.fromkeys([*map(Path, folders), *paths_of(folders)]):  # a demo's own files, and those of its runs
        for path in (*(folder / name for name in FILES), *listed(folder, TURNS)):
            try:
                stat = path.stat()
                parts.append(f"{stat.st_size}-{stat.st_mtime_ns}")
            except OSError:
                parts.append("none")
    return f'"{hash(tuple(parts)) & (2**64 - 1):016x}"'


class Server(ThreadingHTTPServer):
    """Serves one page. make: makes it, as HTML. state: changes with what it is made of."""

    daemon_threads = True

    def __init__(self, port: int, make: Callable[[], str], state: Callable[[], str]):
        self.make, self.state, self.lock = make, state, threading.Lock()
        self.made: tuple[str, bytes] = ("", b"")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UserError(
                f"cannot listen at port {port} of {HOST}: {error.strerror}", "give another `port`, or 0 for a free one"
            ) from error

    def page(self) -> tuple[str, bytes]:
        """Its state and the page, made anew where that has changed."""
        with self.lock:
            try:
                state = self.state()
                if state != self.made[0]:
                    self.made = (state, self.make().encode("utf-8"))
            except UserError as error:  # a run that was removed meanwhile
                raise FileNotFoundError(str(error)) from error
            return self.made


class Handler(BaseHTTPRequestHandler):
    """GET / alone, of this machine's own browsers."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "denserl", ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in NAMES and host not in NAMES:
            return self._answer(403, b"this page is served to its own machine alone\n", "text/plain")
        if self.path.split("?")[0] != "/":
            return self._answer(404, b"there is / alone\n", "text/plain")
        try:
            state, page = self.server.page()
        except FileNotFoundError as error:
            return self._answer(503, f"{error}\n".encode(), "text/plain")
        if self.headers.get("If-None-Match") == state:
            return self._answer(304, b"", "text/html", state)
        self._answer(200, page, "text/html", state)

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, kind: str, state: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        if state:
            self.send_header("ETag", state)
        self.end_headers()
        if self.command == "GET" and status != 304:
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing: a line each few seconds would hide what is said."""


def serve(server: Server) -> None:
    """Answer until SIGINT or SIGTERM."""

    def stop(*_: object) -> None:
        # From another thread: it waits for the loop that the signal has interrupted.
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)
