"""SIGTERM and SIGINT during training: asked once, finish the step and save; asked again, stop at once."""

import os
import signal
import sys
import threading
import time

from denserl import distributed
from denserl.terminal import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers forward the signal that the terminal has already sent to every process; that is not a second request.
SAME_WISH_SECONDS = 1.0


class StopRequest:
    """A context around a training loop in which SIGTERM and SIGINT are requests to stop after the step at hand.

    A thread waits for them: the main thread may be inside a collective that another rank never joins.
    """

    def __enter__(self) -> "StopRequest":
        self.first: float | None = None
        waiting, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        threading.Thread(target=self._watch, args=(waiting,), daemon=True).start()
        self.pipe_before = signal.set_wakeup_fd(self.pipe, warn_on_full_buffer=False)
        self.before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.pipe_before)
        os.close(self.pipe)

    def requested(self) -> bool:
        """Whether any rank was asked to stop. Collective."""
        return distributed.any_rank(self.first is not None)

    def _watch(self, waiting: int) -> None:
        with open(waiting, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in SIGNALS:
                    self._heard(number[0])

    def _heard(self, number: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            if os.environ.get("LOCAL_RANK", "0") == "0":
                name = signal.Signals(number).name
                say(f"\n{name}: finishing this step, then saving; once more to stop at once", sys.stderr)
        elif now - self.first >= SAME_WISH_SECONDS:
            os._exit(128 + number)
