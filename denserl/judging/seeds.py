"""Random numbers of a judge's answers: a function of what is asked, not of when or beside what."""

import hashlib
import json

from denserl.judging.contract import Request


def seed_of(request: Request, bits: int) -> int:
    """A seed of some bits, at most 64: a hash of the messages and the number of the sample."""
    asked = json.dumps([request.messages, request.sample], sort_keys=True)
    return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big") >> (64 - bits)
