"""Runs a command for as long as its own standard input is open, then ends it with all processes that it has started.

    python keeper.py SECONDS COMMAND...

Whoever holds the other end of that pipe lets go of it by ending, in whatever way. SECONDS: between a request to end, and no
more than that. Imports nothing but Python's own, so that it is there at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(server, seconds), daemon=True).start()
    status = server.wait()
    # What it has started and not ended.
    _signal(server.pid, signal.SIGKILL)
    sys.exit(status)


def _end_with_input(server: subprocess.Popen, seconds: float) -> None:
    while os.read(0, 1):
        pass
    _signal(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(seconds)
    _signal(server.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
