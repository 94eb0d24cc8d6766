"""Folds of a data set: pairs of one prompt are of one, so that a model which leaves a fold out knows nothing of them."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from denserl.data.responses import Messages


def folds_of(prompts: Sequence[Messages], folds: int, seed: int) -> np.ndarray:
    """(N,) int, 0 to `folds` - 1: the fold of each prompt, a function of what it says and of the seed alone."""
    digests = (hashlib.blake2b(f"{seed} {json.dumps(prompt, sort_keys=True)}".encode()).digest() for prompt in prompts)
    return np.array([int.from_bytes(digest[:8], "little") % folds for digest in digests], dtype=np.int64)
