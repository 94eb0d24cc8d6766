"""Row 5: rollouts alone, responses of very unequal length, against `model.generate` on the full batch.

Both sides sample from the same weights with the same prompts in one process. Ours is the sampler that train-ppo builds; theirs
is generate's own sampling of all prompts at once, left-padded, until the last response ends.
"""

from collections.abc import Callable
from statistics import mean

import fixtures
import flop_floors
import torch
from denserl_side import ppo_options, ppo_trainer
from harness import Options, Result, alternate, compared, floors, run_alone, timed
from transformers import AutoConfig, AutoModelForCausalLM

from denserl.data.batching import pad_rows

REACH = 1.5
PROMPTS, LONGEST, MEAN, LONGEST_PROMPT = 64, 256, 48, 256
REPEATS = {"4x128": 5, "8x256": 3}


def measure(options: Options) -> list[Result]:
    """Rollouts, tokens per second."""
    return [measure_shape(options, shape) for shape in options.models(*REPEATS)]


def measure_shape(options: Options, shape: str) -> Result:
    model = fixtures.language_model(options, shape, fixtures.end_probability(MEAN, LONGEST))
    trainer = ppo_trainer(
        ppo_options(
            model,
            fixtures.reward_model(options, model),
            options.runs / f"out/rollouts-{shape}",
            data=[str(fixtures.pairs_file(options))],
            limit=PROMPTS,
            entropy_threshold=1.75,
            rollout_batch_size=PROMPTS,
            train_batch_size=PROMPTS,
            sample_batch_size=PROMPTS,
            max_prompt_length=LONGEST_PROMPT,
            max_new_tokens=LONGEST,
            device=options.device,
        )
    )
    torch.set_num_threads(options.threads)
    prompts = list(trainer.prompts["prompt_ids"])
    # As a user of transformers loads it; the project's own copy attends in a way of its own.
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(options.device)
    ours, theirs = (
        Sampling(our_sampling(trainer.sampler, prompts)),
        Sampling(plain_sampling(policy, trainer.tokenizer, prompts)),
    )
    costs = alternate(ours, theirs, options.repeats or REPEATS.get(shape, 3))
    config, seconds = AutoConfig.from_pretrained(model), ours.seconds[-1]
    flops = flop_floors.forward_flops(config, [len(p) + n for p, n in zip(prompts, ours.last, strict=True)], sum(ours.last))
    moved = flop_floors.decoding_bytes(config, [len(prompt) for prompt in prompts], ours.last)
    note = (
        f"responses: mean {mean(ours.lengths):.1f} / {mean(theirs.lengths):.1f}, longest {max(ours.lengths)} / "
        f"{max(theirs.lengths)} of {LONGEST} tokens; prompts: mean {mean(map(len, prompts)):.0f} tokens\n"
        f"ours, a batch: {floors(seconds, flops, moved, options.device)}"
    )
    return compared(5, f"rollouts, tokens/s, {shape}", costs, REACH, rate=True, note=note)


class Sampling:
    """A repetition: sample all prompts once; costs the seconds for each response token. Keeps lengths and seconds."""

    def __init__(self, sample: Callable[[], list[int]]):
        self.sample, self.last, self.lengths, self.seconds = sample, [], [], []

    def __call__(self) -> float:
        seconds = timed(self._sample)()
        self.lengths += self.last
        self.seconds.append(seconds)
        return seconds / sum(self.last)

    def _sample(self) -> None:
        self.last = self.sample()


def our_sampling(sampler, prompts: list[list[int]]) -> Callable[[], list[int]]:
    """Each call samples with streams of random numbers of its own; returns the lengths of the responses."""
    calls = iter(range(10**9))

    def sample() -> list[int]:
        call = next(calls)
        rollouts = sampler(prompts, [(0, call, number) for number in range(len(prompts))])
        return [len(response) for response in rollouts.responses]

    return sample


def plain_sampling(model, tokenizer, prompts: list[list[int]]) -> Callable[[], list[int]]:
    """`generate` as a user of transformers calls it; returns the lengths of the responses, end token included."""
    ids = pad_rows([prompt[::-1] for prompt in prompts], tokenizer.pad_token_id).flip(1).to(model.device)
    mask = pad_rows([[1] * len(prompt) for prompt in prompts], 0).flip(1).to(model.device)

    def sample() -> list[int]:
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=LONGEST
        )
        # Nothing but the end of a response is ever padded: the model never samples the pad token.
        return (output[:, ids.shape[1] :] != tokenizer.pad_token_id).sum(1).tolist()

    return sample


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
