"""Measure the strength of preferences by several reward models, and keep it in a file beside a summary and a picture."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from denserl.cli.launch import launch, suggest
from denserl.config import TemplateConfig, options_of
from denserl.errors import require
from denserl.evaluation.config import MeasureConfig as Options
from denserl.evaluation.config import SolutionConfig
from denserl.rewards.config import ReadConfig
from denserl.terminal import say


def run(options: Options) -> dict[str, Any]:
    """Returns what is written to summary.json."""
    from denserl import distributed
    from denserl.data.preferences import load_preferences
    from denserl.data.strength_file import STRENGTH_FILE, write_strength
    from denserl.evaluation.pair_scorer import PairScorer, load_answer_scorer
    from denserl.evaluation.plots import plot_strength
    from denserl.evaluation.results import versions
    from denserl.evaluation.strength import strength_lines, strength_summary
    from denserl.evaluation.strength_page import write_strength_page
    from denserl.files import replace_whole
    from denserl.rewards.strength import parts
    from denserl.rewards.voting import measure_strength
    from denserl.trainer.start import start_run

    folder = Path(options.output_dir)
    found = f"`output_dir` {folder} is the folder of the data, where what is written would be read as data"
    require(all(Path(source).resolve() != folder.resolve() for source in options.data), found, "give another folder")
    device, dtype = start_run(options)
    pairs = load_preferences(**options.source(), seed=options.seed)

    def load(path: str) -> Any:
        how: dict[str, Any] = {"sft_model": options.sft_model, "aggregate": options.aggregate, "template": options.template()}
        scorer = load_answer_scorer([path], options, device, dtype, read=options, **how)
        # What compares answers is asked for its log-odds.
        return scorer.model if isinstance(scorer, PairScorer) else scorer

    votes = measure_strength(options.reward_model, pairs, load, options, dtype, folder / "scores", _how_read(options, dtype))
    strength, summary = strength_summary(votes)
    summary |= {"options": dataclasses.asdict(options), "precision": dtype, "versions": versions()}
    if distributed.rank() == 0:
        write_strength(folder / STRENGTH_FILE, pairs, votes.chosen, votes.rejected)
        plot_strength(strength.mean, parts(strength.mean), summary["deciles"], folder / "strength.png")
        write_strength_page(folder / "strength.html", pairs, strength, summary, folder / "strength.png")
        replace_whole(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        say("\n".join([*strength_lines(summary), f"written to {folder}"]))
        suggest(f"evaluate pairs DATA --scorer REWARD_MODEL --strength_from {folder} --output_dir NEW_FOLDER")
    distributed.barrier()
    return summary


def _how_read(options: Options, dtype: str) -> str:
    """What scores depend on beside the reward models and the pairs: options, and what is in the files that they name."""
    from denserl.data.templates import fingerprint
    from denserl.rewards.sources.reading import sft_fingerprint

    kinds = (SolutionConfig, ReadConfig, TemplateConfig)
    given = {option.name: getattr(options, option.name) for kind in kinds for option in options_of(kind)}
    sft = options.sft_model and sft_fingerprint(options.sft_model, dtype)
    files = {"chat_template": fingerprint(options.chat_template), "sft_model": sft}
    return json.dumps({**given, **files, "max_length": options.max_length})


def main(argv: list[str] | None = None) -> None:
    launch(Options, "strength", run, argv)


if __name__ == "__main__":
    main()
