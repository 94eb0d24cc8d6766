"""Row 4: whole PPO iterations, rollout to update, against TRL's experimental PPOTrainer.

Each side is a program of its own under peers/, which loads the same policy, reward model and critic (from the policy's
backbone) and iterates over the same 64 prompts. Two cases: no response ends before the limit; the mean length is half of it.
"""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, median

import fixtures
import flop_floors
from denserl_side import ppo_options, prompt_rows
from harness import HERE, TRL_SETTINGS, Options, Result, Worker, alternate, compared, cpu_only, floors, peer_python, run_alone
from transformers import AutoConfig

from denserl.models.tokenizers import load_tokenizer

# Share of the limit that the mean length is -> ratio to reach.
CASES = {"all at full length": (1.0, 2.0), "mean half of the limit": (0.5, 3.0)}
# Of an iteration; one more before them is not counted. 8x256 (--model) takes a quarter of an hour, and is not of the default.
SHAPES, REPEATS = ("4x128",), 3
# Longer prompts lose tokens on their left; 512 is where TRL's own PPO example leaves prompts out.
RESPONSES, MICRO, LONGEST, LONGEST_PROMPT = 64, 16, 128, 512
ACTOR_LR, CRITIC_LR = 5e-7, 9e-6
# TRL's defaults but for these: sizes, temperature, epochs and KL weight are as ours; its 10 tables of samples and 4 epochs
# would add to the work.
TRL = {
    **TRL_SETTINGS,
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": RESPONSES // MICRO,
    "local_rollout_forward_batch_size": RESPONSES,
    "response_length": LONGEST,
    "stop_token": "eos",
    "temperature": 1.0,
    "kl_coef": 0.01,
    "learning_rate": ACTOR_LR,
    "num_ppo_epochs": 1,
    "num_sample_generations": 0,
    "total_episodes": 10**6 * RESPONSES,
}


def measure(options: Options) -> list[Result]:
    """Whole PPO iterations, responses per second."""
    cpu_only(options)
    trl = peer_python(options, "trl-1.12")
    return [measure_case(options, shape, case, trl) for shape in options.models(*SHAPES) for case in CASES]


def measure_case(options: Options, shape: str, case: str, trl: Path) -> Result:
    share, reach = CASES[case]
    model = fixtures.language_model(options, shape, fixtures.end_probability(share * LONGEST, LONGEST))
    settings = our_options(options, model, options.runs / f"out/ppo-{shape}")
    tokenizer = load_tokenizer(settings.model)
    prompts = prompt_rows(settings, tokenizer)["prompt_ids"]
    file = options.runs / f"out/prompts-{shape}.json"
    file.write_text(json.dumps(list(prompts)))
    theirs = {
        "model": settings.model,
        "reward_model": settings.reward_model[0],
        "prompts": str(file),
        "settings": {**TRL, "output_dir": str(options.runs / f"out/trl-ppo-{shape}")},
    }
    answers: dict[str, list[dict]] = {"ours": [], "TRL": []}

    def worker(python, program: str, setup: dict) -> Worker:
        log = options.runs / f"logs/{program}-{shape}-{share:g}.log"
        return Worker(python, HERE / f"peers/{program}.py", {**setup, "threads": options.threads}, options.threads, log)

    def iterate(side: str, process: Worker) -> float:
        answers[side].append(process.repeat())
        return answers[side][-1]["seconds"] / RESPONSES

    with worker(sys.executable, "denserl_ppo", {"options": asdict(settings)}) as ours, worker(trl, "trl_ppo", theirs) as peer:
        sides = partial(iterate, "ours", ours), partial(iterate, "TRL", peer)
        costs = alternate(*sides, options.repeats or REPEATS)
    note = about(model, [len(prompt) for prompt in prompts], answers, peer.about)
    return compared(4, f"PPO, responses/s, {shape}, {case}", costs, reach, rate=True, note=note)


def our_options(options: Options, model: Path, out: Path):
    """Options of train-ppo: one optimiser step over all responses, as TRL's default of one mini-batch."""
    tokenizer = load_tokenizer(str(model))
    return ppo_options(
        model,
        fixtures.reward_model(options, model),
        out,
        data=[str(fixtures.pairs_file(options))],
        limit=RESPONSES,
        entropy_threshold=fixtures.upper_quarter_entropy(model, fixtures.pairs(options, tokenizer, 16)[1]),
        rollout_batch_size=RESPONSES,
        train_batch_size=RESPONSES,
        micro_batch_size=MICRO,
        sample_batch_size=RESPONSES,
        max_prompt_length=LONGEST_PROMPT,
        max_new_tokens=LONGEST,
        actor_lr=ACTOR_LR,
        critic_lr=CRITIC_LR,
        device="cpu",
    )


def about(model: Path, prompts: list[int], answers: dict[str, list[dict]], peer: dict) -> str:
    """What either side sampled, ours phase by phase, and the floors of an iteration of ours."""
    lengths = {side: mean(length for answer in given for length in answer["lengths"]) for side, given in answers.items()}
    config, last = AutoConfig.from_pretrained(model), answers["ours"][-1]
    sequences = [prompt + response for prompt, response in zip(prompts, last["lengths"], strict=True)]
    flops, moved = iteration_work(config, prompts, last["lengths"], sequences)
    phases = {phase: median(answer["phases"][phase] for answer in answers["ours"]) for phase in last["phases"]}
    return (
        f"mean length: ours {lengths['ours']:.1f}, TRL {lengths['TRL']:.1f} of {LONGEST}; prompts: mean {mean(prompts):.0f}, "
        f"longest {max(prompts)} tokens; TRL {peer['trl']}, transformers {peer['transformers']}, torch {peer['torch']}\n"
        f"ours, an iteration: {floors(last['seconds'], flops, moved)}; "
        + ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in phases.items())
    )


def iteration_work(config, prompts: list[int], responses: list[int], sequences: list[int]) -> tuple[float, float]:
    """FLOP and least bytes of an iteration: sampling, four forwards (two with logits), two trainings (one with logits)."""
    tokens = sum(responses)
    sampling = flop_floors.forward_flops(config, sequences, tokens)
    scoring = 2 * flop_floors.forward_flops(config, sequences, tokens) + 2 * flop_floors.forward_flops(config, sequences)
    training = flop_floors.step_flops(config, sequences, tokens) + flop_floors.step_flops(config, sequences)
    passes = RESPONSES // MICRO
    weights = flop_floors.parameters(config) * 4
    moved = (
        flop_floors.decoding_bytes(config, prompts, responses)
        + 4 * passes * weights
        + 2 * flop_floors.step_bytes(config, passes, 1)
    )
    return sampling + scoring + training, moved


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
