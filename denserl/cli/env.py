"""What a bug report needs: versions, devices and launcher."""

import os
from dataclasses import dataclass

from denserl.cli.launch import launch
from denserl.cli.versions import versions
from denserl.config import Config
from denserl.terminal import say, visible

# These alone: any other variable may hold a secret, and reports are public.
VARIABLES = "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES OMP_NUM_THREADS".split()
GIB = 2**30


@dataclass(kw_only=True)
class Options(Config):
    """Print the versions and devices that a bug report needs, and of the environment's variables only the launcher's."""


def run(options: Options) -> None:
    # In one piece, so that the reports of several ranks do not mix.
    say("\n".join(f"{name:22}{visible(value, kept='')}" for name, value in [*versions(), *devices(), *launcher()]))


def devices() -> list[tuple[str, str]]:
    """What torch was built for and sees, in words also where it does not load or the driver fails."""
    cores = ("cpu cores", str(os.cpu_count()))
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        return [cores, ("torch does not load", str(error))]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    found = [("torch built for", build), cores, ("torch threads", str(torch.get_num_threads()))]
    try:
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:
        return [*found, ("gpus", str(error))]
    shown = [(f"gpu {i}", f"{gpu.name}, {gpu.total_memory / GIB:.1f} GiB") for i, gpu in enumerate(gpus)]
    return [*found, *(shown or [("gpus", "none")])]


def launcher() -> list[tuple[str, str]]:
    """The variables that say how a run was started, where set."""
    return [(name, os.environ[name] or "(empty)") for name in VARIABLES if name in os.environ]


def main(argv: list[str] | None = None) -> None:
    launch(Options, "env", run, argv)


if __name__ == "__main__":
    main()
