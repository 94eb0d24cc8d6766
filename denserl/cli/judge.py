"""Judge the answers of policies as AlpacaEval, Arena-Hard and MT-Bench do, or prompts of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from denserl.cli.launch import launch
from denserl.config import FIRST, INPUT
from denserl.evaluation.policies.judge_config import PolicyJudgingConfig
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(PolicyJudgingConfig):
    """Judge the answers of policies as published suites do: win rates against a baseline, or grades, with intervals."""

    group: ClassVar[str] = "suite"

    suite: Annotated[Positional[Literal["alpacaeval", "arenahard", "mtbench", "prompts"]], FIRST, arg(metavar="SUITE")]
    """What the answers are to: AlpacaEval 2 (alpacaeval), Arena-Hard (arenahard), MT-Bench (mtbench), prompts of one's own
    (prompts)."""
    answers: Annotated[Positional[list[str]], INPUT, FIRST, arg(metavar="ANSWERS")]
    """Answers of a policy: a file in the original's shape, or the folder of denserl answer. Several policies stand in one
    table, with their differences."""


def run(options: Options) -> dict[str, Any]:
    """Returns what is written to results.json."""
    from denserl import distributed
    from denserl.evaluation.policies.judging import read_given, said_by_files, said_by_judges, said_by_reward_models
    from denserl.evaluation.policies.report import counting, format_summary, summary_of, write_all
    from denserl.trainer.start import start_run

    given = read_given(options)
    how = counting(options, given)
    device, dtype = start_run(options)
    if options.annotations:
        said = said_by_files(options, given)
    else:
        said = (said_by_judges if options.judge else said_by_reward_models)(options, given, device, dtype)
    summary = summary_of(options, said, how)
    if distributed.rank() == 0:
        folder = Path(options.output_dir)
        write_all(folder, options, said, summary)
        say(f"{format_summary(summary, said)}\nwritten to {folder}")
    distributed.barrier()
    return summary


def main(argv: list[str] | None = None) -> None:
    launch(Options, "judge", run, argv)


if __name__ == "__main__":
    main()
