"""How a command starts and ends: parsing, running, and what is said when it ends otherwise than well."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from denserl.cli.options import Options, parse, with_flags
from denserl.cli.record import recorded
from denserl.errors import STOPPED_STATUS, Stopped, UserError
from denserl.terminal import make_output_inert, say

log = logging.getLogger(__name__)


def launch(
    options_class: type[Options],
    command: str,
    run: Callable[[Options], object],
    argv: list[str] | None,
    program: str = "denserl",
) -> None:
    """Parse, run, and turn a user's mistake into a message on stderr and exit status 2. program: what runs the command."""
    make_output_inert()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "filelock", "fsspec", "transformers", "datasets", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # bitsandbytes warns of a missing kernel that is not used (models/four_bit.py).
    for noisy in ("accelerate", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # CPU is a device that was chosen here, not a failure to find another.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    options = None
    # The exception that Python raises instead is lost where a library happens to be in a callback.
    before = signal.signal(signal.SIGINT, lambda *_: _interrupted(f"{program} {command}"))
    try:
        words = sys.argv[1:] if argv is None else argv
        options = parse(options_class, command, words, program)
        with recorded(command, words, options, program):
            run(options)
    except UserError as error:
        _end(f"{program} {command}", str(with_flags(error, options_class)), 2, error.one_rank)
    except Stopped as stopped:
        again = "the same command with --resume" if hasattr(options, "resume") else "the same command"
        _end(f"{program} {command}", f"{stopped}\n  to go on: {again}", STOPPED_STATUS)
    except Exception as error:
        if options is None:
            raise
        from denserl.cli.resource_errors import shortage

        message = shortage(error, options)
        if message is None:
            raise
        _end(f"{program} {command}", str(message), 2, message.one_rank)
    finally:
        signal.signal(signal.SIGINT, before)


def suggest(*commands: str) -> None:
    """Log commands that may come next."""
    for command in commands:
        log.info("  next: denserl %s", command)


def _interrupted(name: str) -> NoReturn:
    # Not through sys.stderr, which the signal may have interrupted in the middle of a write.
    os.write(2, f"\n{name}: interrupted\n".encode())
    os._exit(128 + signal.SIGINT)


def _end(name: str, message: str, status: int, one_rank: bool = False) -> NoReturn:
    # Once per host, whose ranks find the same mistake, as another host's may not; or by the one rank that found it.
    if one_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        rank = f" (rank {os.environ['RANK']})" if one_rank and "RANK" in os.environ else ""
        say(f"{name}{rank}: {message}", sys.stderr)
    raise SystemExit(status) from None
