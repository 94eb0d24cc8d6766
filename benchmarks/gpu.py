"""What a GPU is for, on a random Llama of 1B parameters (or any LAYERSxHIDDEN): shares of what the device can do.

Reward-model training as a share of the matrix rate, rollouts as a share of the bandwidth floor, a PPO iteration by phase, peak
memory by length. torch, transformers and annotated-types are all that is needed, but for the PPO iteration: denserl.trainer
imports datasets.
DeepSpeed is not needed: PlainEngine stands in for its engine, without partitioning and with optimiser state in the weights'
precision. On CPU everything runs in fp32 and memory is not measured.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import flop_floors
import torch
from harness import Options, Result, copy_rate, matrix_rate, quartiles, run_alone, timed
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from denserl.data.batching import pad_responses
from denserl.models.decoding import Decoder
from denserl.models.probe import probe, run_as
from denserl.rewards.aggregation import aggregate
from denserl.rewards.objectives import pair_losses
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.rollouts.policy import PolicySampler, pick
from denserl.segmentation import segment_by_entropy, segment_scores

REACH_TRAINING, REACH_ROLLOUTS = 0.45, 0.5
LEARNING_RATE = 1e-6
PAD = 0


class Sizes(SimpleNamespace):
    """How much is measured: pairs of a step; responses, their length and prompts of a rollout; lengths for memory."""


FULL = Sizes(
    pairs=16, responses=64, new_tokens=512, prompt=256, micro=16, memory_rows=8, memory_lengths=(512, 1024, 2048, 4096)
)
SMALL = Sizes(pairs=2, responses=4, new_tokens=8, prompt=12, micro=2, memory_rows=2, memory_lengths=(16, 32))


def measure(options: Options) -> list[Result]:
    """A 1B-parameter Llama on one device: shares of its matrix rate and bandwidth, PPO by phase, memory."""
    name = options.model or "1b"
    sizes = FULL if options.device == "cuda" else SMALL
    config, place = llama_config(name), {"device": options.device, "dtype": precision(options)}
    repeats = options.repeats or 5
    training = train_reward_model(name, config, sizes, place, repeats)
    sampling = sample(name, config, sizes, place, repeats)
    print(
        decoding_step(config, sizes, place),
        *memory_by_length(config, sizes, place),
        *ppo_phases(config, sizes, place),
        sep="\n",
    )
    return [training, sampling]


def precision(options: Options) -> torch.dtype:
    return torch.bfloat16 if options.device == "cuda" else torch.float32


def llama_config(name: str) -> LlamaConfig:
    """The shape of Llama 3.2 1B, or LAYERSxHIDDEN with a vocabulary of 8192."""
    if name == "1b":
        return LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            pad_token_id=PAD,
        )
    layers, hidden = map(int, name.split("x"))
    return LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        tie_word_embeddings=True,
        pad_token_id=PAD,
    )


def build(model_class, config: LlamaConfig, device: str, dtype: torch.dtype):
    """A random model on the device, which the project may pack as it packs loaded ones."""
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return run_as(model, probe(model))


def reward_model(config: LlamaConfig, device: str, dtype: torch.dtype):
    config = deepcopy(config)
    config.num_labels = 1
    return build(LlamaForSequenceClassification, config, device, dtype)


def random_ids(count: int, low: int, high: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Rows of random tokens, their lengths uniform in low..high."""
    generator = random.Random(seed)
    return [[generator.randrange(1, vocabulary) for _ in range(generator.randint(low, high))] for _ in range(count)]


def train_reward_model(name: str, config, sizes: Sizes, place: dict, repeats: int) -> Result:
    """Optimiser steps at segment level with stored entropies, in one micro-batch; lengths between an eighth and the whole."""
    prompts = random_ids(sizes.pairs, sizes.prompt // 8, sizes.prompt, config.vocab_size, 0) * 2
    responses = random_ids(2 * sizes.pairs, sizes.new_tokens // 8, sizes.new_tokens, config.vocab_size, 1)
    step = reward_step(reward_model(config, **place), prompts, responses)
    step()
    seconds = [timed(step)() for _ in range(repeats)]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    rate = matrix_rate(place["device"], place["dtype"], 8192 if place["device"] == "cuda" else 512)
    # A pair's prompt need not be computed twice, nor is it counted twice.
    prefixes = [0] * sizes.pairs + [len(prompt) for prompt in prompts[sizes.pairs :]]
    flops = flop_floors.step_flops(config, lengths, prefixes=prefixes)
    note = (
        f"{len(prompts)} rows, {sum(lengths)} tokens a step, longest {max(lengths)}: "
        f"{sum(lengths) / median(seconds):.0f} tokens/s; {flops / 1e12:.3g} TFLOP a step"
    )
    shares = [flops / rate / spent for spent in seconds]
    return shares_result(3, f"RM training, TFLOP/s of the matrix rate, {name}", shares, rate / 1e12, REACH_TRAINING, note)


def reward_step(model, prompts: list[list[int]], responses: list[list[int]]) -> Callable[[], None]:
    """One optimiser step of the project's segment-level loss; AdamW on the weights as they are."""
    device, pairs = next(model.parameters()).device, len(prompts) // 2
    batch = pad_responses(prompts, responses, PAD).to(device)
    # Stored entropies, of which a quarter lies above the threshold.
    entropy = 4 * torch.rand(batch.response_mask.shape, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=device.type == "cuda")

    def step() -> None:
        segments = segment_by_entropy(entropy, batch.response_mask, 3.0)
        scores = aggregate(segment_scores(response_token_rewards(model, batch), segments), segments.counts)
        (pair_losses(*scores.chunk(2)).sum() / pairs).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sample(name: str, config, sizes: Sizes, place: dict, repeats: int) -> Result:
    """Rollouts in which no response ends before the limit, against the time that their bytes need at the measured bandwidth."""
    model = build(LlamaForCausalLM, config, **place).eval()
    prompts = random_ids(sizes.responses, sizes.prompt // 8, sizes.prompt, config.vocab_size, 2)
    sampler, streams = endless_sampler(model, sizes), [(0, number) for number in range(len(prompts))]
    sampler(prompts, streams)
    seconds = [timed(lambda: sampler(prompts, streams))() for _ in range(repeats)]
    size, tokens = torch.finfo(place["dtype"]).bits // 8, sizes.responses * sizes.new_tokens
    moved = flop_floors.decoding_bytes(config, [len(prompt) for prompt in prompts], [sizes.new_tokens] * len(prompts), size)
    floor = moved / copy_rate(place["device"])
    note = (
        f"{len(prompts)} rows, {sizes.new_tokens} tokens each; {moved / 1e9:.3g} GB of weights and caches, floor {floor:.3g} s"
    )
    shares = [floor / spent for spent in seconds]
    return shares_result(5, f"rollouts, tokens/s of the bandwidth floor, {name}", shares, tokens / floor, REACH_ROLLOUTS, note)


def decoding_step(config, sizes: Sizes, place: dict) -> str:
    """What one token for all rows of a rollout costs halfway: recorded and replayed, and as it is; and drawing it."""
    model = build(LlamaForCausalLM, config, **place).eval()
    prompts = sorted(random_ids(sizes.responses, sizes.prompt // 8, sizes.prompt, config.vocab_size, 2), key=len, reverse=True)
    prompts = [prompt + [1] * (sizes.new_tokens // 2) for prompt in prompts]
    with torch.no_grad():
        decoder = Decoder(model, sizes.new_tokens // 2)
        scores, number = decoder.admit(prompts), torch.rand(len(prompts), device=place["device"], dtype=torch.float64)

        def step() -> None:
            decoder.one_token.forget()
            scores.copy_(decoder.step(scores.argmax(1)))

        as_it_is = timed(step)
        replayed = timed(lambda: scores.copy_(decoder.step(scores.argmax(1))))
        parts = {
            "as it is": [as_it_is() for _ in range(3)],
            "recorded": [replayed()],
            "replayed": [replayed() for _ in range(9)],
            "draw": [timed(lambda: pick(scores, number))() for _ in range(9)],
        }
    each = ", ".join(f"{name} {1e3 * median(seconds):.2f} ms" for name, seconds in parts.items())
    return f"one token for {len(prompts)} rows of {len(prompts[0])} tokens at most: {each}"


def endless_sampler(model, sizes: Sizes) -> PolicySampler:
    """The project's sampler, for responses that never end early: no token has the number -1."""
    return PolicySampler(lambda: model, [-1], PAD, sizes.new_tokens, batch_size=sizes.responses)


def shares_result(row: int, name: str, shares: list[float], whole: float, reach: float, note: str) -> Result:
    """A rate as a share of what the device gives."""
    share = median(shares)
    return Result(row, name, share * whole, whole, share, quartiles(shares), reach, share >= reach, note)


def memory_by_length(config, sizes: Sizes, place: dict) -> list[str]:
    """Peak memory of a reward-model step of equally long rows, one line each."""
    if place["device"] != "cuda":
        return ["peak memory: only measured on CUDA"]
    return [f"peak memory, RM step: {line}" for line in (memory_at(config, sizes, place, n) for n in sizes.memory_lengths)]


def memory_at(config, sizes: Sizes, place: dict, length: int) -> str:
    rows = 2 * (sizes.memory_rows // 2)
    step = reward_step(
        reward_model(config, **place),
        random_ids(rows // 2, length // 4, length // 4, config.vocab_size, 3) * 2,
        random_ids(rows, length - length // 4, length - length // 4, config.vocab_size, 4),
    )
    # The first step makes the optimiser's state.
    step()
    resident = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    return f"{rows} rows x {length} tokens: {peak / 2**30:.2f} GiB, of which {resident / 2**30:.2f} GiB weights and optimiser"


class PlainEngine(nn.Module):
    """The calls that PPOTrainer makes of a DeepSpeed engine, for one process: plain accumulation, clipping, AdamW."""

    def __init__(self, module: nn.Module, micro_batches: int):
        super().__init__()
        self.module, self.micro_batches, self.calls, self.norm = module, micro_batches, 0, None
        fused = next(module.parameters()).device.type == "cuda"
        self.optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE, fused=fused)

    def forward(self, *args, **kw):
        return self.module(*args, **kw)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.micro_batches).backward()

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.micro_batches == 0:
            self.norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_lr(self) -> list[float]:
        return [LEARNING_RATE]

    def get_global_grad_norm(self) -> torch.Tensor:
        return self.norm

    def was_step_applied(self) -> bool:
        return True

    def zero_optimization_stage(self) -> int:
        return 0


def ppo_phases(config, sizes: Sizes, place: dict) -> list[str]:
    """Seconds and shares of rollout, scoring and update in one iteration, the second of two."""
    try:
        import denserl.trainer.ppo_trainer  # noqa: F401
    except ModuleNotFoundError as error:
        return [f"PPO iteration: not measured, {error}"]
    with TemporaryDirectory() as folder:
        trainer = ppo_trainer(config, sizes, place, Path(folder))
        trainer.iterate()
        metrics = trainer.iterate()
    seconds = {phase: metrics[f"{phase}_seconds"] for phase in ("rollout", "scoring", "update")}
    total = sum(seconds.values())
    parts = ", ".join(f"{phase} {spent:.2f} s ({spent / total:.0%})" for phase, spent in seconds.items())
    return [f"PPO iteration of {sizes.responses} responses of {sizes.new_tokens} tokens: {total:.2f} s: {parts}"]


def ppo_trainer(config, sizes: Sizes, place: dict, folder: Path):
    """The project's PPO loop on random models, all resident on the device."""
    from denserl.ppo_utils.dense_reward import DenseReward, Penalties
    from denserl.rewards.sources.reward_model import RewardModelSource
    from denserl.segmentation import Segmenter
    from denserl.trainer.ppo_data import Schedule
    from denserl.trainer.ppo_metrics import RunLog
    from denserl.trainer.ppo_models import Models, PolicyModule
    from denserl.trainer.ppo_rewards import PaidSource, Rewards
    from denserl.trainer.ppo_trainer import PPOTrainer
    from denserl.trainer.trackers import Trackers

    policy, reference = (build(LlamaForCausalLM, config, **place) for _ in range(2))
    critic, scorer = (reward_model(config, **place) for _ in range(2))
    for frozen in (reference, scorer):
        frozen.eval().requires_grad_(False)
    micro_batches = sizes.responses // sizes.micro
    models = Models(
        actor=PlainEngine(PolicyModule(policy), micro_batches),
        critic=PlainEngine(critic, micro_batches),
        reference=PolicyModule(reference),
        current_policy=lambda: policy,
        trained_policy=policy,
    )
    paid = PaidSource("reward_model", RewardModelSource([scorer]), Segmenter(8.5), DenseReward("even", None))
    # Nothing reads the texts.
    tokenizer = SimpleNamespace(pad_token_id=PAD, batch_decode=lambda rows, **kw: [""] * len(rows))
    return PPOTrainer(
        ppo_config(sizes, folder),
        Schedule(iterations=2, steps_per_iteration=1),
        models,
        Rewards([paid], Penalties()),
        endless_sampler(policy, sizes),
        RunLog(Trackers(folder, [], {}), tokenizer, folder, samples=0),
        tokenizer=tokenizer,
        prompts=Prompts(random_ids(sizes.responses, sizes.prompt // 8, sizes.prompt, config.vocab_size, 5)),
        eval_prompts=None,
        device=torch.device(place["device"]),
    )


class Prompts:
    """Rows of prompts as a table of `datasets` gives them."""

    def __init__(self, ids: list[list[int]]):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: list[int]) -> dict:
        return {"prompt": [[]] * len(rows), "prompt_ids": [self.ids[row] for row in rows]}


def ppo_config(sizes: Sizes, folder: Path):
    """One optimiser step an iteration, over all of its responses; the models are those that are given to the trainer."""
    from denserl.trainer.ppo_config import PPOConfig

    return PPOConfig(
        model="random",
        reward_model=["random"],
        data=[],
        output_dir=str(folder),
        iterations=2,
        rollout_batch_size=sizes.responses,
        train_batch_size=sizes.responses,
        micro_batch_size=sizes.micro,
        samples_per_prompt=1,
        ppo_epochs=1,
        gamma=1.0,
        lam=0.95,
        policy_clip=0.2,
        value_clip=0.25,
        kl_coefficient=0.01,
        average="sequence",
        reward_clip=10.0,
        kl_estimator="k1",
        temperature=1.0,
        ptx_coef=0.0,
        ema_decay=0.0,
        critic_warmup_iterations=0,
        zero_stage=0,
        eval_every=0,
        save_every=0,
        keep_checkpoints=1,
        max_skipped_steps=5,
        samples_logged=0,
        seed=0,
    )


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
