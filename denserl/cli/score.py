"""Score texts by any source of rewards: coloured segments at the terminal, JSON lines, a page."""

from dataclasses import dataclass

from denserl.cli.launch import launch
from denserl.scored.config import OutputConfig, ScoreConfig, TextsConfig


@dataclass(kw_only=True)
class Options(OutputConfig, TextsConfig, ScoreConfig):
    """Score texts, segment by segment, as train-ppo would pay for them: coloured at the terminal, as JSON lines, as a page."""


def run(options: Options) -> None:
    import json
    from pathlib import Path

    from denserl.files import check_target, replace_whole
    from denserl.scored.inputs import read_conversations
    from denserl.scored.scorer import DenseScorer
    from denserl.scored.terminal import show, wants_colour
    from denserl.terminal import say

    to_file = options.jsonl not in (None, "-")
    for option in ("jsonl", "html") if to_file else ("html",):
        if (path := getattr(options, option)) is not None:
            check_target(option, path)
    conversations = read_conversations(options)
    scored = DenseScorer.from_config(options)(conversations)
    lines = "\n".join(json.dumps(each.to_dict()) for each in scored)
    if to_file:
        replace_whole(Path(options.jsonl), lines + "\n")
    if options.html is not None:
        from denserl.scored.page import page

        replace_whole(Path(options.html), page(scored))
    # Last, for whoever reads it may stop.
    if options.jsonl == "-":
        say(lines)
    else:
        show(scored, wants_colour(options.colour))


def main(argv: list[str] | None = None) -> None:
    launch(Options, "score", run, argv)


if __name__ == "__main__":
    main()
