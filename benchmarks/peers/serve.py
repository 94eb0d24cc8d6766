"""A program's side of its talk with harness.Worker: a JSON line in, a JSON line out. It runs in every environment.

What the program prints beside that goes to its log.
"""

import json
import os
import sys
import time

import torch
import transformers
from transformers import TrainerCallback


class Talk:
    """Requests from stdin; answers to what was stdout when it was made, which from then on is stderr."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def request(self) -> dict:
        """The next request; the program ends when there is none."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        return json.loads(line)

    def answer(self, **values) -> None:
        print(json.dumps(values), file=self.out, flush=True)


class StepTalk(TrainerCallback):
    """Lets a trainer stand still between repetitions; a repetition is `steps` optimiser steps, all that lies between included.

    Args:
        about: answered when training begins. extra: gives what else is answered after a repetition.
    """

    def __init__(self, talk: Talk, steps: int, about: dict, extra=dict):
        self.talk, self.steps, self.about, self.extra = talk, steps, about, extra

    def on_train_begin(self, args, state, control, **kw):
        self.talk.answer(**self.about)
        self._wait()

    def on_step_end(self, args, state, control, **kw):
        if state.global_step % self.steps == 0:
            self.talk.answer(seconds=time.perf_counter() - self.start, **self.extra())
            self._wait()

    def _wait(self) -> None:
        self.talk.request()
        self.start = time.perf_counter()


def versions() -> dict[str, str | int]:
    """What a program ran with, for the notes."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
