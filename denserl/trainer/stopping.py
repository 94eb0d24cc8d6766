"""SIGTERM and SIGINT during training: asked once, finish the step and save; asked again, stop at once."""

import os
import signal
import sys
import time

from denserl import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers pass on what the terminal has already sent to every process; that is not a second wish.
SAME_WISH_SECONDS = 1.0


class StopRequest:
    """A context around a training loop in which SIGTERM and SIGINT are requests to stop after the step at hand."""

    def __enter__(self) -> "StopRequest":
        self.first: float | None = None
        self.before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank was asked to stop. Collective."""
        return distributed.any_rank(self.first is not None)

    def _handle(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            if os.environ.get("LOCAL_RANK", "0") == "0":
                name = signal.Signals(number).name
                print(f"\n{name}: finishing this step, then saving; once more to stop at once", file=sys.stderr, flush=True)
        elif now - self.first >= SAME_WISH_SECONDS:
            os._exit(128 + number)
