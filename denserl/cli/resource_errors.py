"""What a command says when memory or disk space runs out: what was found, and the flags that need less of it."""

import dataclasses
import resource

import torch

from denserl.config import Config
from denserl.data.batching import is_out_of_memory
from denserl.errors import UserError
from denserl.trainer.checkpoint import is_disk_full


def shortage(error: Exception, options: Config) -> UserError | None:
    """The message for an error that means that memory or disk space ran out; None for any other error."""
    if is_out_of_memory(error):
        fix = f"try {', or '.join(less_memory(options))}"
        return UserError(f"out of memory: {memory_in_use()}", fix, one_rank=True)
    if is_disk_full(error):
        fix = "make room, then go on with --resume if there is a checkpoint"
        return UserError(f"no space left on the disk: {error}", fix, one_rank=True)
    return None


def memory_in_use() -> str:
    """Of this process, now and at most, in words."""
    gib = 2**30
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        used, most = torch.cuda.memory_allocated() / gib, torch.cuda.max_memory_allocated() / gib
        return (
            f"tensors hold {used:.2f} GiB of the device's {total / gib:.2f} GiB, at most {most:.2f} GiB so far; "
            f"{free / gib:.2f} GiB are free"
        )
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"this process held at most {kib / 2**20:.2f} GiB of main memory so far"


def less_memory(options: Config) -> list[str]:
    """The flags of this command that would need less memory than the options at hand, the cheapest change first."""
    now = dataclasses.asdict(options)
    smaller = [
        f"--{name} {now[name] // 2}"
        for name in ("micro_batch_size", "score_tokens", "sample_batch_size", "max_length", "max_new_tokens")
        if now.get(name, 0) > 1
    ]
    if now.get("gradient_checkpointing", False) is None:  # left to the device
        now["gradient_checkpointing"] = torch.cuda.is_available() and now["device"] != "cpu"
    switched = {"gradient_checkpointing": (False, ""), "dtype": ("fp32", " bf16"), "lora_rank": (0, " 16")}
    switched |= {"zero_stage": (0, " 2 on several devices")}
    if torch.cuda.is_available() and now.get("zero_stage"):
        switched |= {"offload_optimizer": (False, "")}
    return smaller[:1] + [f"--{name}{to}" for name, (off, to) in switched.items() if now.get(name) == off] + smaller[1:]
