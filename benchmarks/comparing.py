"""500 pairs compared in both orders, 1000 texts of two responses each, against the scores of their 1000 responses one by one.

The pairs are those of ultrafeedback-1k whose comparison fits, in a random order. Both sides get texts, encode them, and read a
context once. The model that compares has the weights of the language model under the one that scores.
"""

import random

import fixtures
import numpy as np
from harness import Options, Result, alternate, compared, run_alone, timed

from denserl.data.preferences import load_preferences
from denserl.models.importing import import_labels
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.pair_model import PairModel

# Pairs and repetitions by shape.
PLAN = {"4x128": (500, 3), "8x256": (100, 3)}
LONGEST = 512
# A text of both responses has up to twice the tokens of one.
REACH = 0.5


def measure(options: Options) -> list[Result]:
    """Comparing pairs, texts per second."""
    return [measure_shape(options, shape) for shape in options.models(*PLAN)]


def measure_shape(options: Options, shape: str) -> Result:
    count, repeats = PLAN.get(shape, (16, 3))
    policy = fixtures.language_model(options, shape)
    scorer = RewardScorer([str(fixtures.reward_model(options, policy))], max_length=2 * LONGEST, device=options.device)
    read_as = {"input": "pair", "pair_layout": "denserl"}
    folder = fixtures.kept(
        policy.with_name(f"{policy.name}-compares"), lambda folder: import_labels(str(policy), folder, ("A", "B"), read_as)
    )
    model = PairModel.load(str(folder), device=options.device)
    prompts, firsts, seconds = some_pairs(options, model, count)
    both = [response for pair in zip(firsts, seconds, strict=True) for response in pair]
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts = 2 * len(prompts)
    costs = alternate(
        timed(lambda: model.log_odds(prompts, firsts, seconds), texts),
        timed(lambda: scorer(twice, both), texts),
        options.repeats or repeats,
    )
    lengths = [
        len(ids.prompt_ids) + len(ids.response_ids) for pair in zip(prompts, firsts, seconds) for ids in model.encode(*pair)
    ]
    note = f"{texts} texts of two responses, {np.mean(lengths):.0f} tokens on average; half is due"
    return compared(6, f"comparing pairs, texts/s, against single responses, {shape}", costs, REACH, rate=True, note=note)


def some_pairs(options: Options, model: PairModel, count: int) -> tuple[list, list, list]:
    """Prompts, chosen and rejected responses of which nothing is cut."""
    rows = list(load_preferences([str(fixtures.pairs_file(options))], on_bad_row="skip"))
    random.Random(0).shuffle(rows)
    found = []
    for row in rows:
        texts = row["prompt"], row["chosen"], row["rejected"]
        ids = model.encode(*texts).given
        if len(ids.prompt_ids) + len(ids.response_ids) <= 2 * LONGEST and len(found) < count:
            found.append(texts)
    prompts, firsts, seconds = zip(*found, strict=True)
    return list(prompts), list(firsts), list(seconds)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
