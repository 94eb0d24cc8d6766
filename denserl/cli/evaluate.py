"""Judge a reward model on a suite, or on preferences of one's own: accuracy with intervals, calibration, length bias."""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from tyro.conf import Positional, arg

from denserl.cli.launch import launch
from denserl.config import FIRST, INPUT, Only
from denserl.data.columns import parse_columns
from denserl.data.config import has_splits
from denserl.errors import require
from denserl.evaluation.config import JudgedConfig
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(JudgedConfig):
    """Score the answers of a suite with a reward model, or ask a judge of them, and write how often the better ones win."""

    group: ClassVar[str] = "suite"

    suite: Annotated[Positional[str], FIRST, arg(metavar="SUITE")]
    """What is judged: preferences of one's own (pairs), two answers and a vote (votes), or a published suite: rewardbench,
    rewardbench2, mrewardbench, rmb, rmbench, judgebench, ppe, hhh, mtbench, llmbar; first wrong steps (processbench), a choice
    among stored answers (bon_answers); or module:NAME of a Suite of one's own (docs/extending.md)."""
    path: Annotated[Positional[str], INPUT, FIRST, arg(metavar="PATH")]
    """File, folder or hub name (NAME or NAME:CONFIG) of the suite's rows."""
    split: Annotated[
        str | None,
        Only(
            "where there are no splits: folders and hub datasets have some, files do not",
            lambda c: c.suite not in ("rmb", "llmbar", "ppe") and has_splits([c.path]),
        ),
    ] = None
    """Split of a hub dataset or folder; default: the suite's own (pairs: test)."""
    columns: str | None = None
    """Names of columns in the rows, e.g. prompt=question,chosen=response_j; KEY= leaves a key unread."""
    limit: Annotated[int | None, Ge(1)] = None
    """Judge at most this many items of each subset."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is dropped and counted."""


def run(options: Options) -> dict:
    """Returns what is written to results.json."""
    from denserl import distributed
    from denserl.data.bad_rows import BadRows, finish
    from denserl.evaluation.judge_scorer import format_judge
    from denserl.evaluation.results import format_remarks, versions
    from denserl.evaluation.scorers import opened_scorer, outputs_name
    from denserl.evaluation.suites.registry import account, find_suite, read_items, with_strengths
    from denserl.trainer.start import start_run

    require(
        Path(options.path).resolve() != Path(options.output_dir).resolve(),
        f"`output_dir` {options.output_dir} is the folder of the data, where what is written would be read as data",
        "give another folder",
    )
    device, dtype = start_run(options)
    suite = find_suite(options.suite, options.paper_compat, options.as_is, **options.of_suite(options.suite))
    bad_rows, refused = BadRows(options.on_bad_row), BadRows(options.on_bad_row)
    items, left_out = read_items(suite, options.path, options.split, bad_rows, options.limit, parse_columns(options.columns))
    finish(bad_rows, options.path, len(items), left_out.total())
    if options.strength_from:
        suite = with_strengths(suite, options.strength_from, items, options.split, options.on_bad_row)
    with opened_scorer(options, suite, device, dtype) as scorer:
        judged = suite.judge(items, scorer, refused)
    finish(refused, options.path, len(judged))
    summary = {
        "suite": options.suite,
        **suite.summarise(judged, scorer, options.bootstrap, options.seed),
        **account(suite, [entry.item for entry in judged], left_out),
        "left_out": dict(left_out),
        "bad_rows": dict(bad_rows.reasons + refused.reasons),
        "options": dataclasses.asdict(options),
        **scorer.describe(),
        **({"precision": dtype} if options.has_models() else {}),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if distributed.rank() == 0:
        folder = Path(options.output_dir)
        suite.write(folder, outputs_name(options, summary), judged, scorer, summary)
        say(f"{options.suite}, {len(judged)} items, {' '.join(options.scorer or options.judge or [])}\n{suite.format(summary)}")
        say("\n".join([*format_judge(summary), *format_remarks(summary), f"written to {folder}"]))
    distributed.barrier()
    return summary


def main(argv: list[str] | None = None) -> None:
    launch(Options, "evaluate", run, argv)


if __name__ == "__main__":
    main()
