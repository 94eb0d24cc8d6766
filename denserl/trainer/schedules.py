"""How learning rates go over the optimiser steps of a run, for all trainings."""

import math
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from denserl.trainer.config import OptimisationConfig


def inverse_sqrt(step: int, warmup: int) -> float:
    """Share of the peak at a step: max(step / W, 0.1) up to step W, then sqrt(W / step), at least 1e-8.

    As in the released code of Secrets of RLHF I (arXiv 2307.04964). warmup: W, in steps; below 1 it is 1.
    """
    warmup = max(warmup, 1)
    return max(step / warmup, 0.1) if step < warmup else max(math.sqrt(warmup / step), 1e-8)


def inverse_sqrt_scheduler(optimizer: torch.optim.Optimizer, warmup: int) -> LRScheduler:
    """A scheduler of `inverse_sqrt`."""
    return LambdaLR(optimizer, partial(inverse_sqrt, warmup=warmup))


def make_scheduler(config: OptimisationConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """The scheduler of a run of so many optimiser steps that the options ask for."""
    warmup = round(config.warmup_ratio * total_steps)
    if config.lr_schedule == "inverse_sqrt":
        return inverse_sqrt_scheduler(optimizer, warmup)
    return get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"min_lr_rate": config.min_lr_ratio},
    )
