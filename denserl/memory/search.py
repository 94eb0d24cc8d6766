"""The search for what fits: settings in the order in which they are tried, and the first in which all phases fit.

What a phase needs is in phases.py.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from denserl.errors import require
from denserl.memory.config import PlanConfig

STAGES = (0, 1, 2, 3)
BATCHES = ("micro_batch_size", "sample_batch_size", "score_tokens")
# Of a GPU's memory; the rest is left to the CUDA context, the communication library and fragments.
USABLE = 0.92
GIB = 2**30


class Setting(NamedTuple):
    """What is changed until a run fits; the fields are named like the options of the training commands that set them."""

    zero_stage: int
    gradient_checkpointing: bool
    offload_optimizer: bool
    micro_batch_size: int
    sample_batch_size: int
    score_tokens: int


class Phase(NamedTuple):
    """A phase of a command, the bytes per GPU that it needs in a setting, and the batch on which they depend."""

    command: str
    name: str
    needs: Callable[[Setting], int]
    batch: str


def setting_given(options: PlanConfig, zero_stage: int) -> Setting:
    """What the options ask for, and nothing more, at a stage."""
    batches = (options.micro_batch_size, options.sample_batch_size, options.score_tokens)
    return Setting(zero_stage, options.gradient_checkpointing is not False, options.offload_optimizer, *batches)


def stages(offload: bool, four_bit: bool) -> tuple[int, ...]:
    """The ZeRO stages; without ZeRO nothing is offloaded, and weights in 4 bits are not spread."""
    return STAGES[int(offload) : 3 if four_bit else 4]


def settings_in_order(options: PlanConfig) -> Iterator[Setting]:
    """ZeRO stages 0 to 3 (2 with weights in 4 bits); the same with gradient checkpointing; with offloading as well; then with
    batches halved and halved.

    What the options ask for is on from the start.
    """
    given = setting_given(options, 0)
    checkpointed = given._replace(gradient_checkpointing=True)
    # Each once: what the options ask for may make some of them the same.
    for setting in dict.fromkeys((given, checkpointed, checkpointed._replace(offload_optimizer=True))):
        yield from (setting._replace(zero_stage=stage) for stage in stages(setting.offload_optimizer, options.load_in_4bit))
    batches = {name: given._asdict()[name] for name in BATCHES}
    while max(batches.values()) > 1:
        batches = {name: max(1, size // 2) for name, size in batches.items()}
        for stage in stages(offload=True, four_bit=options.load_in_4bit):
            yield Setting(stage, gradient_checkpointing=True, offload_optimizer=True, **batches)


def first_fit(phases: list[Phase], options: PlanConfig, usable: float) -> Setting | None:
    """The first setting in which all of the phases fit, each batch only as small as its own phases ask for; None if none is."""

    def fits(setting: Setting, some: list[Phase]) -> bool:
        return all(phase.needs(setting) <= usable for phase in some)

    settings = list(settings_in_order(options))
    found = next((setting for setting in settings if fits(setting, phases)), None)
    if found is None:
        return None
    for name in BATCHES:
        own = [phase for phase in phases if phase.batch == name]
        sizes = dict.fromkeys(setting._asdict()[name] for setting in settings)
        candidates = [found._replace(**{name: size}) for size in sizes]
        found = next(candidate for candidate in candidates if fits(candidate, own))
    return found


def usable_bytes(options: PlanConfig) -> float:
    """What a run may take of one GPU. UserError where the GPU's memory is neither given nor to be seen."""
    if options.gpu_memory is not None:
        return USABLE * (options.gpu_memory * GIB)
    import torch

    require(torch.cuda.is_available(), "torch sees no GPU whose memory could be read", "add `gpu_memory` GIB, e.g. 80")
    return USABLE * torch.cuda.get_device_properties(0).total_memory
