"""Row 3: training a reward model on real lengths, against TRL's RewardTrainer and against the reference's way.

Each side is a program of its own under peers/, with the same weights, pairs, micro-batches, optimiser and learning rate.
"""

import json
import random
import sys
from pathlib import Path

import fixtures
import flop_floors
from harness import (
    HERE,
    TRL_SETTINGS,
    Options,
    Pairs,
    Result,
    Worker,
    compared,
    cpu_only,
    floors,
    in_turns,
    peer_python,
    run_alone,
)
from transformers import AutoConfig, AutoTokenizer

REACH_TRL, REACH_REFERENCE = 1.8, 3.0
# Pairs of an optimiser step and of a forward; 8 is TRL's default.
STEP_PAIRS, MICRO_PAIRS = 16, 8
LEARNING_RATE, BETAS = 1e-5, (0.9, 0.95)
# Steps of a repetition, and repetitions: the larger model gets fewer.
PLAN = {"4x128": (1, 4), "8x256": (1, 3)}
# TRL's defaults but for these.
TRL = {
    **TRL_SETTINGS,
    "per_device_train_batch_size": MICRO_PAIRS,
    "gradient_accumulation_steps": STEP_PAIRS // MICRO_PAIRS,
    "learning_rate": LEARNING_RATE,
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "max_length": fixtures.LONGEST,
    "num_train_epochs": 10**6,
}


def measure(options: Options) -> list[Result]:
    """Reward-model training, pairs per second."""
    cpu_only(options)
    trl = peer_python(options, "trl-1.16")
    return [result for shape in options.models(*PLAN) for result in measure_shape(options, shape, trl)]


def measure_shape(options: Options, shape: str, trl: Path) -> list[Result]:
    steps, repeats = PLAN.get(shape, (1, 3))
    model = fixtures.language_model(options, shape)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows, pairs = fixtures.pairs(options, tokenizer, steps * STEP_PAIRS)
    base, ours, theirs, reference = setups(options, model, shape, steps, rows, pairs)
    peers, logs = HERE / "peers", options.runs / "logs"

    def worker(python, name: str, setup: dict) -> Worker:
        return Worker(python, peers / f"{name}.py", {**base, **setup}, options.threads, logs / f"{name}-{shape}.log")

    with worker(sys.executable, "denserl_reward", ours) as first, worker(trl, "trl_reward", theirs) as second:
        reference["threshold"] = first.about["threshold"]
        with worker(sys.executable, "reference_reward", reference) as third:
            sides = [lambda side=side: side.repeat()["seconds"] / len(pairs) for side in (first, second, third)]
            costs = in_turns(sides, options.repeats or repeats)
    name, note = f"RM training, pairs/s, {shape}", about(model, pairs, costs[0], first.about, second.about)
    return [
        compared(3, f"{name}, vs TRL", Pairs(costs[0], costs[1]), REACH_TRL, rate=True, note=note),
        compared(3, f"{name}, vs reference's way", Pairs(costs[0], costs[2]), REACH_REFERENCE, rate=True),
    ]


def setups(options: Options, model: Path, shape: str, steps: int, rows: list[int], pairs: list[dict]) -> tuple[dict, ...]:
    """What all sides are told, and then ours, TRL's and the reference's."""
    reward_model, out = fixtures.reward_model(options, model), options.runs / "out"
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"pairs-{shape}.json"
    file.write_text(json.dumps([joined(pair) for pair in pairs]))
    base = {"threads": options.threads, "steps": steps, "reward_model": str(reward_model)}
    ours = {
        "model": str(model),
        "data": [str(fixtures.pairs_file(options))],
        "output_dir": str(out / f"rm-{shape}"),
        "cache_dir": str(options.runs / "cache"),
        "batch_size": STEP_PAIRS,
        "micro_batch_size": MICRO_PAIRS,
        "lr": LEARNING_RATE,
        "adam_betas": BETAS,
        "max_length": fixtures.LONGEST,
        "max_prompt_length": fixtures.LONGEST_PROMPT_OF_PAIR,
        "epochs": 1e6,
        "eval_steps": 0,
        "save_steps": 0,
        "on_bad_row": "skip",
        "device": "cpu",
    }
    theirs = {"pairs": str(file), "settings": {**TRL, "output_dir": str(out / f"trl-rm-{shape}")}}
    reference = {
        "pairs": str(file),
        "model": str(model),
        "pad_id": AutoTokenizer.from_pretrained(model).pad_token_id,
        "step_pairs": STEP_PAIRS,
        "micro_pairs": MICRO_PAIRS,
        "lr": LEARNING_RATE,
        "betas": BETAS,
        "max_grad_norm": 1.0,
    }
    return base, {"options": ours, "rows": rows}, theirs, reference


def joined(pair: dict) -> dict:
    """A pair as TRL wants it: prompt and response in one."""
    sides = {side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")}
    return {**sides, "prompt_length": len(pair["prompt_ids"])}


def about(model: Path, pairs: list[dict], costs: list[float], ours: dict, trl: dict) -> str:
    """What was measured, on what, and how far ours is from the floors."""
    config = AutoConfig.from_pretrained(model)
    lengths = [len(joined(pair)[side]) for pair in pairs for side in ("chosen_ids", "rejected_ids")]
    # A pair's prompt need not be computed twice.
    prefixes = [length for pair in pairs for length in (0, len(pair["prompt_ids"]))]
    passes, steps = len(pairs) // MICRO_PAIRS, len(pairs) // STEP_PAIRS
    # AdamW once a step, weights and gradients once a pass.
    moved = flop_floors.step_bytes(config, passes, steps)
    seconds = sorted(costs)[len(costs) // 2] * len(pairs)
    return (
        f"{len(pairs)} pairs a repetition, {sum(lengths)} tokens, {padding(lengths):.2f} times as many when padded at random; "
        f"vocabulary {config.vocab_size}, TRL {trl['trl']}, "
        f"torch {trl['torch']} / {ours['torch']}, transformers {trl['transformers']} / {ours['transformers']}, "
        f"threads {trl['threads']} / {ours['threads']}\n"
        f"ours, a repetition: {floors(seconds, flop_floors.step_flops(config, lengths, prefixes=prefixes), moved)}"
    )


def padding(lengths: list[int], trials: int = 500) -> float:
    """Padded tokens to real ones in random micro-batches, on average. lengths: of both sequences of each pair in turn."""
    longest, generator = [max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True)], random.Random(0)
    padded = 0
    for _ in range(trials):
        order = generator.sample(longest, len(longest))
        batches = [order[first : first + MICRO_PAIRS] for first in range(0, len(order), MICRO_PAIRS)]
        padded += sum(2 * len(batch) * max(batch) for batch in batches)
    return padded / trials / sum(lengths)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
