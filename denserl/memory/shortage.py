"""Whether what training holds fits a GPU at all, by the formulas alone: a lower bound, without the memory of passes."""

from collections.abc import Sequence

from denserl.memory.formulas import Sharding, Size, at_rest, between_micro_batches, training_peak, weights
from denserl.memory.search import GIB, stages


def least_bytes(trained: Sequence[Size], frozen: Sequence[Size], sharding: Sharding) -> int:
    """Bytes per GPU of weights, gradients and optimiser states, at the height of a step of one of the trained models."""
    rest = sum(at_rest(size, sharding) for size in trained) + sum(weights(size, sharding) for size in frozen)
    kept = [between_micro_batches(size, sharding) for size in trained]
    return rest + max(sum(kept) - own + training_peak(size, sharding, 0) for own, size in zip(kept, trained, strict=True))


def shortage(trained: Sequence[Size], frozen: Sequence[Size], sharding: Sharding, memory: int) -> str:
    """What is said where that is more than a GPU's memory (bytes), with the stage that needs least; empty where it is not.

    Offloading the optimiser is named only where no stage is enough without.
    """
    needed = least_bytes(trained, frozen, sharding)
    if needed <= memory:
        return ""
    found = (
        f"weights, gradients and optimiser alone need {needed / GIB:.1f} GiB of each GPU at `zero_stage` {sharding.zero_stage}"
        f"{' with `offload_optimizer`' if sharding.offload else ''}, and it has {memory / GIB:.1f}"
    )
    four_bit = any(size.four_bit for size in trained)
    for offload in (sharding.offload, True):
        others = [sharding._replace(zero_stage=stage, offload=offload) for stage in stages(True, four_bit)]
        enough = min(others, key=lambda other: least_bytes(trained, frozen, other))
        if least_bytes(trained, frozen, enough) <= memory:
            break
    else:
        return f"{found}; no stage is enough on {sharding.gpus} GPU(s)"
    switch = " with `offload_optimizer`" if enough.offload else ""
    need = least_bytes(trained, frozen, enough) / GIB
    return (
        f"{found}; `zero_stage` {enough.zero_stage}{switch} needs {need:.1f}, to which passes come (denserl plan counts them)"
    )
