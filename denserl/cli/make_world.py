"""Write an embedded world as ordinary model and data files."""

import logging
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval, Lt

from denserl.cli.launch import launch
from denserl.config import FIRST, Config, Only
from denserl.errors import require
from denserl.files import make_folder
from denserl.terminal import quiet_libraries

log = logging.getLogger(__name__)


LONGEST = 40  # sentences of a response, which fill the base model's positions
OF_LANGUAGE = Only("with `kind` sums", lambda c: c.kind == "language")


@dataclass(kw_only=True)
class Options(Config):
    """Write an embedded world: a base model, demonstrations, rewards and prompts, in the formats any user would bring."""

    output_dir: Annotated[str, FIRST] = "runs/world"
    """Folder to write."""
    kind: Annotated[Literal["language", "sums"], FIRST] = "language"
    """language: sentences that are good or bad, and preferences. sums: arithmetic whose steps are right or wrong."""
    seed: Annotated[int, FIRST, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of the base model's weights and of everything drawn."""
    scale: Annotated[float, FIRST, Gt(0)] = 1.0
    """Share of the rows written."""
    truth: Annotated[Literal["mean", "sum", "asked"], OF_LANGUAGE] = "mean"
    """What a response is worth: mean or sum of its sentences' values; asked: the mean, less a cost of more or fewer."""
    min_sentences: Annotated[int, OF_LANGUAGE] = 2
    """Fewest sentences of the responses that are drawn."""
    max_sentences: Annotated[int, OF_LANGUAGE] = 6
    """Most sentences of the responses that are drawn."""
    large: Annotated[bool, OF_LANGUAGE] = False
    """Draw responses from some six times as many sentences, 32 that serve each prompt in place of 6: for long responses."""
    length_bias: Annotated[float, OF_LANGUAGE] = 0.0
    """Added to the logit of preferences in training pairs for each sentence more; held-out pairs are of the true reward."""
    artefact: Annotated[float, Interval(ge=0, le=1), OF_LANGUAGE] = 0.0
    """Probability that a sentence worth nothing is put into a training pair's winner. preferences_artefact.jsonl then has pairs
    of equal worth, the chosen one with that sentence: accuracy on it is the share that the sentence wins."""
    groups: Annotated[bool, OF_LANGUAGE] = False
    """Training pairs have a column `group`, the topic and the wish of their prompt."""
    ratings: Annotated[bool, OF_LANGUAGE] = False
    """Also write responses rated for being apt, on topic, harmless, fresh and verbose, a quarter of the ratings missing."""
    error_rate: Annotated[float, Gt(0), Lt(1), Only("with `kind` language", lambda c: c.kind == "sums")] = 0.15
    """Probability that a step of a solution with errors errs."""


def run(options: Options) -> dict:
    """Returns what world.json holds."""
    quiet_libraries()
    make_folder("output_dir", options.output_dir)
    return _sums(options) if options.kind == "sums" else _language(options)


def _language(options: Options) -> dict:
    from denserl.world.language import NUMBERS
    from denserl.world.make import WorldRules, WorldSizes, write_world

    low, high = options.min_sentences, options.max_sentences
    # Further numbers have no word to ask for them, and where there is little to say responses would only repeat it.
    most = LONGEST if options.large and options.truth != "asked" else max(NUMBERS)
    found = f"`min_sentences` {low} `max_sentences` {high}"
    require(min(NUMBERS) <= low <= high <= most, found, f"let {min(NUMBERS)} <= MIN <= MAX <= {most}")
    names = [field.name for field in fields(WorldRules)]
    rules = WorldRules(**{name: getattr(options, name) for name in names})
    world = write_world(options.output_dir, options.seed, _scaled(WorldSizes(), options.scale), rules)
    log.info(
        "%s: %d demonstrations, %d pairs; the best reachable accuracy on unseen combinations is %.3f",
        options.output_dir,
        world["sizes"]["sft"],
        world["sizes"]["pairs"],
        world["best_accuracy_test"],
    )
    return world


def _sums(options: Options) -> dict:
    from denserl.world.make_sums import SumSizes, write_world

    world = write_world(options.output_dir, options.seed, _scaled(SumSizes(), options.scale), options.error_rate)
    sizes = world["sizes"]
    log.info("%s: %d demonstrations, %d solutions with labelled steps", options.output_dir, sizes["sft"], sizes["steps"])
    return world


def _scaled(sizes: Any, scale: float) -> Any:
    """The sizes of a world with a share of the rows, at least one of each kind."""
    of_model = ("hidden_size", "num_layers")
    rows = [field.name for field in fields(sizes) if field.name not in of_model]
    return replace(sizes, **{name: max(1, round(getattr(sizes, name) * scale)) for name in rows})


def main(argv: list[str] | None = None) -> None:
    launch(Options, "make-world", run, argv)


if __name__ == "__main__":
    main()
