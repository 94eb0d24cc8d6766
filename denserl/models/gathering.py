"""Weights that ZeRO-3 has spread over ranks, made whole for a while."""

import contextlib

from torch import nn


def gathered(parameters: list[nn.Parameter], write: bool = False):
    """A context in which ZeRO-3 parameters are whole on every rank; does nothing for ordinary ones.

    write: what rank 0 writes into them stays.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    if not partitioned:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if write else None)
