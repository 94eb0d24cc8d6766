"""Commands run one after the other in one process, as a pipeline of several does."""

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

from denserl.cli.options import parse, with_flags
from denserl.cli.record import recorded
from denserl.errors import UserError
from denserl.flags import as_flags
from denserl.terminal import say


def stage(command: str, *words: str | Path, **flags: Any):
    """Print a command and run it in this process; where an earlier run was stopped in it, it goes on from there.

    Args:
        words: arguments without a name. flags: option -> value.

    Returns: what the command's `run` returns.
    """
    from denserl.trainer.several import has_begun

    if has_begun(Path(flags["output_dir"])):
        flags["resume"] = True
    argv = [*map(str, words), *(word for name, value in flags.items() for word in as_flags(name, value))]
    say(f"\n$ denserl {shlex.join([command, *argv])}", sys.stderr)
    module = importlib.import_module(f"denserl.cli.{command.replace('-', '_')}")
    options = parse(module.Options, command, argv)
    try:
        with recorded(command, argv, options):
            return module.run(options)
    except UserError as error:
        raise with_flags(error, module.Options) from error
