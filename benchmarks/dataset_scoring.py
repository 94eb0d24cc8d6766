"""Row 6: scoring a data set with a reward model, as the fit and the evaluation do, against padded batches in file order.

Ours: `map_responses` over `response_token_rewards`, in batches of like length up to score_tokens. Theirs: one forward of the
stock model for each 16 rows as they stand in the file, scores of all positions. Same weights, same rows, no gradient.
"""

import fixtures
import flop_floors
import torch
from harness import Options, Result, alternate, compared, floors, run_alone, timed
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from denserl.data.batching import map_responses, pad_rows
from denserl.models.reward_models import load_reward_model
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.trainer.reward_config import RewardConfig

REACH = 2.0
BATCH = 16
# Pairs and repetitions by shape; a pair is two rows.
PLAN = {"4x128": (64, 5), "8x256": (32, 3)}


def measure(options: Options) -> list[Result]:
    """Scoring a data set, rows per second."""
    return [measure_shape(options, shape) for shape in options.models(*PLAN)]


def measure_shape(options: Options, shape: str) -> Result:
    count, repeats = PLAN.get(shape, (16, 3))
    policy = fixtures.language_model(options, shape)
    folder = fixtures.reward_model(options, policy)
    tokenizer, model = AutoTokenizer.from_pretrained(policy), load_reward_model(str(folder), "fp32").eval().to(options.device)
    # The project's own copy attends in a way of its own.
    stock = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval().to(options.device)
    prompts, responses = in_file_order(*fixtures.pairs(options, tokenizer, count))
    found: dict[str, list] = {}

    def ours() -> None:
        scores = map_responses(
            prompts,
            responses,
            lambda batch: response_token_rewards(model, batch),
            pad_id=tokenizer.pad_token_id,
            max_tokens=RewardConfig.score_tokens,
            device=options.device,
            progress="scores",
        )
        found["ours"] = [torch.from_numpy(scores[row]) for row in range(len(responses))]

    def theirs() -> None:
        found["theirs"] = plain_scores(stock, prompts, responses, tokenizer.pad_token_id)

    costs = alternate(timed(ours, len(responses)), timed(theirs, len(responses)), options.repeats or repeats)
    difference = max((a - b).abs().max().item() for a, b in zip(found["ours"], found["theirs"], strict=True))
    assert difference < 1e-4, f"the two sides' scores differ by {difference}"
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    config, seconds = AutoConfig.from_pretrained(policy), sorted(costs.ours)[len(costs.ours) // 2] * len(responses)
    # A pair's prompt need not be computed twice.
    prefixes = [len(prompt) * (row % 2) for row, prompt in enumerate(prompts)]
    # The weights once: there is no least number of batches.
    moved = 4 * flop_floors.parameters(config)
    spent = floors(seconds, flop_floors.forward_flops(config, lengths, prefixes=prefixes), moved, options.device)
    note = (
        f"{len(responses)} rows, {sum(lengths)} tokens; largest difference of a score {difference:.1e}\nours, all rows: {spent}"
    )
    return compared(6, f"scoring, rows/s, {shape}", costs, REACH, rate=True, note=note)


def in_file_order(numbers: list[int], pairs: list[dict]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of pairs, in the order of the file: a pair's chosen response, then its rejected one."""
    ordered = [pair for _, pair in sorted(zip(numbers, pairs, strict=True), key=lambda item: item[0])]
    prompts = [pair["prompt_ids"] for pair in ordered for _ in range(2)]
    return prompts, [pair[side] for pair in ordered for side in ("chosen_ids", "rejected_ids")]


@torch.no_grad()
def plain_scores(model, prompts: list[list[int]], responses: list[list[int]], pad_id: int) -> list[torch.Tensor]:
    """Scores of each response's tokens from right-padded batches of stock forwards."""
    scores = []
    for first in range(0, len(prompts), BATCH):
        part = list(zip(prompts[first : first + BATCH], responses[first : first + BATCH], strict=True))
        ids = pad_rows([prompt + response for prompt, response in part], pad_id).to(model.device)
        mask = pad_rows([[1] * (len(prompt) + len(response)) for prompt, response in part], 0).to(model.device)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        all_scores = model.score(hidden).squeeze(-1).float().cpu()
        scores += [
            row[len(prompt) : len(prompt) + len(response)] for row, (prompt, response) in zip(all_scores, part, strict=True)
        ]
    return scores


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
