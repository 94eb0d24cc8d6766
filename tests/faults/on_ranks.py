"""Trainings on two ranks, each a process of its own."""

from pathlib import Path

from parity.ranks import environments
from real_runs import Ended, Running, Training, checkpoints


def start_ranks(training: Training, output: Path, **options) -> list[Running]:
    """Two ranks, as a launcher would start them; with --resume where the output folder holds checkpoints."""
    resume = {"resume": True} if checkpoints(output) else {}
    argv = training.arguments(output, **resume | options)
    logs = [output.with_name(f"{output.name}-{rank}.log") for rank in range(2)]
    return [Running(training.command, argv, log, **environment) for log, environment in zip(logs, environments(2))]


def ended(running: list[Running]) -> tuple[list[int], str]:
    """The status of each when all have ended, and what the first has said."""
    ends: list[Ended] = [one.ended() for one in running]
    return [end.code for end in ends], ends[0].said
