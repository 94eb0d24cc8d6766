"""What stands in for the running of a benchmark's commands: each is parsed, and leaves the files that others look for."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from denserl.cli.options import parse
from denserl.flags import as_flags
from denserl.world.make import WorldSizes, write_world


def recorder(leave: Callable[[str, Any], None]) -> tuple[list, Callable]:
    """A list of (command, options), and a `stage` that parses into it. leave: writes what else is read of a command."""
    commands = []

    def stage(command: str, *words, **flags) -> None:
        options = parsed(command, words, flags)
        commands.append((command, options))
        leave(command, options)

    return commands, stage


def parsed(command: str, words: tuple, flags: dict):
    """The options of a command; a tiny world, or an empty file of weights, in its output folder."""
    argv = [*map(str, words), *(word for name, value in flags.items() for word in as_flags(name, value))]
    options = parse(importlib.import_module(f"denserl.cli.{command.replace('-', '_')}").Options, command, argv)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if command == "make-world":
        write_world(folder, options.seed, WorldSizes(20, 20, 5, 5, 10, 5, 16, 1))
    elif command in ("train-sft", "train-rm", "train-ppo"):
        (folder / "model.safetensors").touch()
    return options
