"""The versions that what a command does may depend on."""

import functools
import platform
from importlib import metadata

import denserl

PACKAGES = (
    "torch transformers accelerate datasets deepspeed tokenizers safetensors peft numpy tyro flash-attn vllm wandb tensorboard"
).split()


def versions() -> list[tuple[str, str]]:
    """Of denserl, Python, the platform, and each of PACKAGES."""
    own = [("denserl", denserl.__version__), ("python", platform.python_version()), ("platform", platform.platform())]
    return own + [(name, version(name)) for name in PACKAGES]


@functools.cache
def version(package: str) -> str:
    try:
        return metadata.version(package) or "no version"  # None of an installation that was cut short
    except metadata.PackageNotFoundError:
        return "not installed"
