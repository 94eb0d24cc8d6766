"""Row 15: rollouts by vLLM on the CPU, in an environment of its own: speed, what an update costs, how right it leaves weights.

Speed is that of all responses of a rollout, of very unequal length, against the own decoder with the same weights and prompts.
The rest is of ten PPO iterations each, with tied embeddings and without: five by broadcast, five by files. The engine's
log-probabilities are compared with the trainer's own after each update.
"""

import time
from pathlib import Path
from statistics import median

import fixtures
import torch
from denserl_side import iteration, ppo_options, ppo_trainer
from harness import Options, Result, alternate, compared, cpu_only, engine_python, limited, run_alone
from rollouts import LONGEST, LONGEST_PROMPT, MEAN, PROMPTS, Sampling, our_sampling
from transformers import AutoModelForCausalLM, AutoTokenizer

from denserl.rollouts.policy import PolicySampler

SHAPE, REPEATS, UPDATES, RESPONSES = "4x128", 3, 10, 16
REACH = 1e-4  # nats
FILES = UPDATES // 2  # the first update that goes by files


def measure(options: Options) -> list[Result]:
    """Rollouts by an engine."""
    cpu_only(options)
    python = engine_python(options)
    tied = fixtures.language_model(options, SHAPE, fixtures.end_probability(MEAN, LONGEST))
    return [*measure_model(options, python, tied, True), *measure_model(options, python, untied(options, tied), False)]


def untied(options: Options, folder: Path) -> Path:
    """The same model with a head of its own."""

    def make(target: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)

    return fixtures.kept(folder.with_name(f"{folder.name}-untied"), make)


def measure_model(options: Options, python: Path, model: Path, is_tied: bool) -> list[Result]:
    name = "tied" if is_tied else "untied"
    trainer = ppo_trainer(
        ppo_options(
            model,
            fixtures.reward_model(options, model),
            options.runs / f"out/engine-{name}",
            data=[str(fixtures.pairs_file(options))],
            limit=PROMPTS,
            entropy_threshold=1.75,
            rollout_batch_size=RESPONSES,
            train_batch_size=RESPONSES,
            micro_batch_size=8,
            sample_batch_size=PROMPTS,
            max_prompt_length=LONGEST_PROMPT,
            max_new_tokens=LONGEST,
            actor_lr=1e-4,
            warmup_ratio=0.0,
            rollout_engine="vllm",
            rollout_python=str(python),
            rollout_timeout=1800.0,
        )
    )
    torch.set_num_threads(options.threads)
    try:
        speed = [measure_speed(options, trainer)] if is_tied else []
        return [*speed, measure_updates(trainer, name)]
    finally:
        trainer.close()


def measure_speed(options: Options, trainer) -> Result:
    """The engine's rollouts against the own decoder's, tokens per second."""
    prompts = list(trainer.prompts["prompt_ids"])
    own = PolicySampler.from_config(trainer.config, trainer.models.current_policy, trainer.tokenizer)
    ours, theirs = Sampling(our_sampling(trainer.sampler, prompts)), Sampling(our_sampling(own, prompts))
    costs = alternate(ours, theirs, options.repeats or REPEATS)
    note = f"responses: mean {sum(ours.lengths) / len(ours.lengths):.1f}, longest {max(ours.lengths)} of {LONGEST} tokens"
    return compared(15, f"rollouts by vLLM, against the own decoder, tokens/s, {SHAPE}", costs, 0.0, rate=True, note=note)


def measure_updates(trainer, name: str) -> Result:
    """The largest distance of log-probabilities after each of ten updates; in the note what updates cost."""
    sync, seconds, rows = trainer.sampler.sync, [], []

    def timed(*asked) -> None:
        began = time.perf_counter()
        sync(*asked)
        seconds.append(time.perf_counter() - began)

    timed.weights = sync.weights
    trainer.sampler.sync = timed
    # The first iteration samples with the weights from before any update, which the server may already have.
    iteration(trainer)
    for number in range(UPDATES):
        sync.folder = None if number < FILES else trainer.log.output_dir / "rollout/weights"
        rows.append(iteration(trainer))
    by_broadcast, by_files = seconds[-UPDATES:][:FILES], seconds[-UPDATES:][FILES:]
    means = [row["rollout_mismatch_mean"] for row in rows]
    note = f"seconds of an update: {median(by_broadcast):.2f} by broadcast, {median(by_files):.2f} by files; "
    note += f"mean distance {min(means):.1e} to {max(means):.1e} nats a token"
    largest = [row["rollout_mismatch_max"] for row in rows]
    return limited(15, f"largest distance of log-probs, {UPDATES} updates, limit, {name}", [max(largest)], REACH, note=note)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
