"""Let a policy answer the questions of AlpacaEval, Arena-Hard, MT-Bench, or prompts of one's own."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from denserl.cli.launch import launch, suggest
from denserl.config import FIRST
from denserl.evaluation.policies.config import AnswerConfig, SuiteName
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(AnswerConfig):
    """Let a policy answer the questions of a suite, into files that the suite's own program reads.

    The same command goes on where it was ended, and adds samples where more are asked for.
    """

    suite: Annotated[Positional[SuiteName], FIRST, arg(metavar="SUITE")]
    """What is answered: alpacaeval, arenahard, mtbench (both turns), or prompts of one's own."""


def run(options: Options) -> dict:
    """Returns what is written to answers.json."""
    from denserl import distributed
    from denserl.evaluation.policies.answering import answer
    from denserl.trainer.start import start_run

    device, dtype = start_run(options)
    account = answer(options, device, dtype)
    if distributed.rank() == 0:
        tokens = " and ".join(f"{mean:.0f}" for mean in account["tokens"])
        lines = [
            f"{options.suite}, {options.called()}: {account['questions']['count']} questions x {options.samples} answers, "
            f"{account['truncated']:.1%} cut off, {account['empty']} empty, {tokens} tokens on average",
            f"written to {options.output_dir}: {' '.join(account['files'])}",
        ]
        say("\n".join(lines))
        baseline = "" if options.suite == "mtbench" else " --baseline ANSWERS"
        asked = f" --questions {options.questions}" if options.suite in ("arenahard", "mtbench") else ""
        suggest(f"judge {options.suite} {options.output_dir}{baseline}{asked} --judge MODEL --output_dir NEW_FOLDER")
    return account


def main(argv: list[str] | None = None) -> None:
    launch(Options, "answer", run, argv)


if __name__ == "__main__":
    main()
