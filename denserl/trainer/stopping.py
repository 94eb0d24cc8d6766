"""What a training is told beside its steps. Signals: asked once, finish the step and save; asked again, stop at once. And the
clock that says when a checkpoint is due.
"""

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

    def requested_or_due(self, clock: "SaveClock") -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether a checkpoint is due. Collective, in one reduction."""
        stop, due = distributed.any_ranks(self.first is not None, clock.due())
        return stop, due

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


class SaveClock:
    """Says when a checkpoint is due: `minutes` after the last one, or the start, by rank 0's clock; never if None."""

    now = staticmethod(time.monotonic)

    def __init__(self, minutes: float | None):
        self.minutes = minutes
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written."""
        self.since = self.now()

    def due(self) -> bool:
        """On rank 0, whether it is time; False on the others, whose clocks are not asked."""
        return distributed.rank() == 0 and self.minutes is not None and self.now() - self.since >= 60 * self.minutes
