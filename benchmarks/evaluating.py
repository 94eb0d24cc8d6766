"""`denserl evaluate` on 1000 pairs of up to 512 tokens, against padded batches of stock forwards in the order of the file.

The pairs are those of hh-harmless and ultrafeedback-1k whose sequences fit, in a random order; both sides get the same ids.
"""

import random

import fixtures
import numpy as np
import torch
from dataset_scoring import plain_scores
from harness import Options, Result, alternate, compared, run_alone, timed
from transformers import AutoModelForSequenceClassification

from denserl.data.preferences import load_preferences
from denserl.data.responses import Encoded
from denserl.rewards.scorer import RewardScorer
from denserl.rewards.sources.reading import after_the_turn

SHAPE, PAIRS, LONGEST = "4x128", 1000, 512
REACH, REPEATS = 2.0, 3


def measure(options: Options) -> list[Result]:
    """Evaluating 1000 pairs with a reward model, answers per second."""
    folder = fixtures.reward_model(options, fixtures.language_model(options, SHAPE))
    scorer = RewardScorer([str(folder)], max_length=LONGEST, device=options.device)
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval().to(options.device)
    encoded = answers(options, scorer)
    # A classifier from elsewhere is read at the last token that the chat template writes.
    closing, found = after_the_turn(scorer.tokenizer), dict[str, np.ndarray]()
    prompts, responses = [row.prompt_ids for row in encoded], [[*row.response_ids, *closing] for row in encoded]

    def ours() -> None:
        found["ours"] = scorer.score(encoded)

    def theirs() -> None:
        scores = plain_scores(stock, prompts, responses, scorer.tokenizer.pad_token_id)
        found["theirs"] = np.array([row[-1].item() for row in scores])

    count = len(encoded)
    costs = alternate(timed(ours, count), timed(theirs, count), options.repeats or REPEATS)
    difference = np.abs(found["ours"] - found["theirs"]).max()
    assert difference < 1e-4, f"the two sides' scores differ by {difference}"
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    note = f"{count} answers, {np.mean(lengths):.0f} tokens on average; largest difference of a score {difference:.1e}"
    return [compared(6, f"evaluate, answers/s, {SHAPE}", costs, REACH, rate=True, note=note)]


def answers(options: Options, scorer: RewardScorer) -> list[Encoded]:
    """Chosen and rejected answers of the pairs that fit with room to spare, pair by pair, so that nothing is cut."""
    sources = [str(options.data / "hh-harmless/train.jsonl.gz"), str(fixtures.pairs_file(options))]
    rows = list(load_preferences(sources, on_bad_row="skip"))
    random.Random(0).shuffle(rows)
    encoded: list[Encoded] = []
    for row in rows:
        pair = [scorer.encode(row["prompt"], row[side]) for side in ("chosen", "rejected")]
        longest = max(len(answer.prompt_ids) + len(answer.response_ids) for answer in pair)
        if longest < LONGEST - len(after_the_turn(scorer.tokenizer)) and len(encoded) < 2 * PAIRS:
            encoded += pair
    return encoded


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
