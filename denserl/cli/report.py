"""Runs as one page: curves, samples, fits, judgements and settings, alone or compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from denserl.cli.launch import launch
from denserl.config import FIRST
from denserl.report.config import ReportConfig
from denserl.terminal import say


@dataclass(kw_only=True)
class Options(ReportConfig):
    """Show runs, alone or compared, as one page that opens offline."""

    runs: Annotated[Positional[list[str]], FIRST, arg(metavar="RUN")]
    """Folders that train-sft, train-rm, fit-normalizer, train-ppo, bon, evaluate, answer, judge or demo have written."""


def run(options: Options) -> None:
    from denserl.errors import require
    from denserl.report.build import PAGE, report_of, write_report
    from denserl.report.watch import Server, serve, state_of

    require(options.runs, "no run is given", "denserl report RUN [RUN ...]")
    report = report_of(options.runs, options.samples, options.seeds, options.watch)
    if options.watch:
        server = Server(
            options.port,
            lambda: report_of(options.runs, options.samples, options.seeds, watched=True).html,
            lambda: state_of(options.runs),
        )
        say(f"watching {' '.join(options.runs)} at http://127.0.0.1:{server.server_address[1]}/ (Ctrl-C ends it)")
        serve(server)
        say("stopped")
        return
    own = f"{options.runs[0]}/{PAGE}"
    require(
        options.html or report.kinds[0] != "judge",
        f"{own} is the page of denserl judge, with all answers",
        "give another file with `html`",
    )
    target = Path(options.html or own)
    write_report(target, report)
    say(f"{report.text}\n\n{target}")


def main(argv: list[str] | None = None) -> None:
    launch(Options, "report", run, argv)


if __name__ == "__main__":
    main()
