"""DeepSpeed: the process group, configurations, engines, and whole parameters under ZeRO-3.

CPU with gloo is a first-class device, on the same path.
"""

import atexit
import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from denserl import distributed
from denserl.errors import UserError
from denserl.models.gathering import gathered
from denserl.trainer.config import OptimisationConfig
from denserl.trainer.schedules import make_scheduler

log = logging.getLogger(__name__)

# gloo's threads let go of a collective's tensors after its result is out, and need the interpreter lock for it; one that
# waits for the lock when the interpreter ends aborts the process. torch has no call that waits for them, and destroying
# the group does not end them while DeepSpeed's engines refer to it. Each needs microseconds, once it gets a turn.
GLOO_THREADS_SECONDS = 0.3


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> this process's device. UserError when CUDA is asked for and not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("`device` cuda: torch sees no CUDA device", "use `device` cpu, or install a CUDA build of torch")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no device: torch sees {torch.cuda.device_count()} CUDA device(s)",
            "start one process per device: torchrun --nproc_per_node DEVICES, or deepspeed --num_gpus DEVICES",
        )
    return torch.device(name, local_rank if name == "cuda" else None)


def init_distributed(device: torch.device) -> None:
    """Start the process group, also for a plain `python` launch, which is a world of one."""
    if "RANK" not in os.environ:
        # Port 0: whichever is free when the store opens it; one that was looked up before may be taken by then.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    quiet_deepspeed()
    import deepspeed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        # DeepSpeed takes a GPU wherever it sees one; the device is the command's to choose.
        set_accelerator(CPU_Accelerator())
        # The shared-memory op is compiled at first use, for up to a minute, and fails without a compiler; gloo does its work.
        compatible = getattr(deepspeed.ops, "__compatible_ops__", {})
        if "deepspeed_shm_comm" in compatible:
            compatible["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        try:
            deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
        except torch.distributed.DistNetworkError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT {place}: {str(error).splitlines()[0]}",
                "give another free port, e.g. torchrun --master_port 29501 or --rdzv_endpoint HOST:PORT; on several hosts, one "
                "that all of them reach",
            ) from error
        atexit.register(time.sleep, GLOO_THREADS_SECONDS)


def quiet_deepspeed() -> None:
    """Only warnings from DeepSpeed's logger, which otherwise reports every setting at every start."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed.utils

    deepspeed.utils.logger.setLevel(logging.ERROR)


def deepspeed_config(config: OptimisationConfig, dtype: str, micro_batch_size: int, accumulation: int) -> dict:
    """A DeepSpeed configuration; everything it holds comes from the run's options.

    micro_batch_size: rows of a forward on one rank. accumulation: forwards of an optimiser step on one rank.
    """
    zero_stage, max_grad_norm = config.zero_stage, config.max_grad_norm
    # Below stage 2, DeepSpeed adds up gradients of bf16 in bf16, or whole in fp32 on every GPU.
    zero: dict = {"stage": max(zero_stage, 2) if dtype == "bf16" else zero_stage}
    if zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch_size * accumulation * distributed.world_size(),
        "gradient_clipping": max_grad_norm if _keeps_grad_norm(zero_stage, dtype) else 0.0,
        "zero_optimization": zero,
        # Steps whose gradient is not finite are skipped; some versions leave that out for bf16 unless told.
        "bf16": {"enabled": dtype == "bf16", "check_grad_overflow": True},
        # In bf16, a sum of 128 micro-batches' gradients would be 1 % off.
        "data_types": {"grad_accum_dtype": "fp32"},
        # torch's AdamW serves every device; DeepSpeed's own needs a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "wall_clock_breakdown": False,
    }


def _keeps_grad_norm(zero_stage: int, dtype: str) -> bool:
    """DeepSpeed clips at every setting, but forgets the norm where it leaves the optimiser unwrapped."""
    return zero_stage > 0 or dtype == "bf16"


def clip_in_step(optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
    """Clip at the start of the optimiser's own step and keep the norm where DeepSpeed looks for it.

    A norm that is not finite leaves the optimiser without gradients, so that it changes nothing, and is reported the way
    DeepSpeed's own optimisers report it.
    """

    def clip(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer._global_grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.overflow = not torch.isfinite(optimizer._global_grad_norm).item()
        if optimizer.overflow:
            optimizer.zero_grad(set_to_none=True)

    optimizer.register_step_pre_hook(clip)


def before_step(engine: nn.Module, act: Callable[[], None]) -> None:
    """Let something be done between an engine's last backward and the optimiser's step, also where that one is skipped."""
    step = engine.step

    @functools.wraps(step)
    def prepared(*args: Any, **kw: Any) -> None:
        act()
        step(*args, **kw)

    engine.step = prepared


def let_go_of_gathered(engine: nn.Module) -> None:
    """Let ZeRO-3 gather every parameter anew where it is next used; nothing below it."""
    if hasattr(engine.optimizer, "empty_partition_cache"):
        engine.optimizer.empty_partition_cache()


def train_engine(
    module: nn.Module, engine_config: dict, config: OptimisationConfig, *, lr: float, total_steps: int
) -> nn.Module:
    """A DeepSpeed engine with AdamW and the schedule of the options (`make_scheduler`)."""
    import deepspeed

    parameters = trained_parameters(module)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=config.adam_betas, weight_decay=config.weight_decay, fused=True)
    if not engine_config["gradient_clipping"]:
        clip_in_step(optimizer, config.max_grad_norm)
    scheduler = make_scheduler(config, optimizer, total_steps)
    engine = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=scheduler, config=engine_config)[0]
    hold_weights_once(engine)
    return engine


def hold_weights_once(engine: nn.Module) -> None:
    """Let the checkpoints of a DeepSpeed engine hold each trained weight once, and none that is frozen (`EngineFiles`)."""
    from denserl.trainer.engine_files import EngineFiles

    engine.checkpoint_engine = EngineFiles(engine)
    engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
    load = engine.load_checkpoint

    @functools.wraps(load)
    def loaded(*args: Any, **kw: Any) -> tuple:
        found = load(*args, **kw)
        if engine.zero_optimization() and not engine.zero_optimization_partition_weights():
            engine.optimizer.update_lp_params()
        return found

    engine.load_checkpoint = loaded


def frozen_engine(module: nn.Module, engine_config: dict, device: torch.device) -> nn.Module:
    """A model that is only read: partitioned under ZeRO-3, else whole on the device."""
    module.eval().requires_grad_(False)
    if engine_config["zero_optimization"]["stage"] < 3:
        return module.to(device)
    import deepspeed

    engine = deepspeed.initialize(model=module, config=engine_config)[0]
    engine.eval()
    return engine


def update_copy(source: nn.Module, copy: nn.Module) -> nn.Module:
    """Bring an ordinary copy of a ZeRO-3 module up to date, one whole parameter at a time; returns the copy.

    Sampling runs on the copy: DeepSpeed's hooks would gather and release every layer at every token, and ranks whose
    responses end at different lengths would wait for each other forever.
    """
    with torch.no_grad():
        for parameter, target in zip(source.parameters(), copy.parameters(), strict=True):
            with gathered([parameter]):
                target.copy_(parameter)
    return copy


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser changes."""
    return [p for p in module.parameters() if p.requires_grad]


@contextlib.contextmanager
def whole_parameters(module: nn.Module):
    """The module with all its parameters whole, gathered once (ZeRO-3), for generation and saving."""
    with gathered(list(module.parameters())):
        yield module
