"""What a GPU is for, on a random Llama of 1B parameters (or any LAYERSxHIDDEN): shares of what the device can do.

Its parts, of which --parts names some: reward-model training as a share of the matrix rate (reward), where a step of it goes
(profile), what Liger's kernels change of it and of a policy's update (kernels), rollouts as a share of the
bandwidth floor (rollouts), a PPO iteration by phase (ppo), peak memory against `denserl plan` (memory), adapters on the shape
of 8B (adapters). Models are random, and made on the device; engines, losses, samplers and the PPO loop are the project's own.
On CPU everything is tiny.
"""

import functools
import gc
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import flop_floors
import torch
from harness import Options, Result, arguments, as_options, copy_rate, ending_well, matrix_rate, quartiles, table, timed
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from denserl.data.batching import ResponseBatch, pad_responses
from denserl.models.decoding import Decoder
from denserl.models.kernels import use_liger_kernel
from denserl.models.measured import Measured, stock_model
from denserl.models.probe import run_as
from denserl.models.scoring import token_logprob_entropy
from denserl.rewards.aggregation import aggregate
from denserl.rewards.objectives import pair_losses
from denserl.rewards.pair_metrics import response_token_rewards
from denserl.rollouts.policy import PolicySampler, pick
from denserl.segmentation import segment_by_entropy, segment_scores

REACH_TRAINING, REACH_ROLLOUTS = 0.45, 0.5
LEARNING_RATE = 1e-6
PAD = 0
GIB = 2**30
# Tokens of prompts and responses of UltraFeedback's pairs: the least, the deciles and the most, at 4.2 characters a token.
PROMPT_DECILES = (4, 13, 22, 33, 56, 88, 120, 161, 240, 405, 1024)
RESPONSE_DECILES = (1, 15, 40, 77, 128, 199, 290, 396, 521, 662, 1024)


class Sizes(SimpleNamespace):
    """How much is measured: pairs of a step and of a forward, and how much shorter they are than real ones; rows, lengths and
    prompts of rollouts; responses and forwards of PPO; lengths for memory, and how many tokens each takes.
    """


FULL = Sizes(
    **{"pairs": 32, "micro_pairs": 8, "shorter": 1, "rollouts": (64, 256), "responses": 64, "new_tokens": 512, "prompt": 256},
    **{"micro": 16, "memory_tokens": 16384, "memory_lengths": (512, 2048, 4096)},
)
SMALL = Sizes(
    **{"pairs": 2, "micro_pairs": 1, "shorter": 40, "rollouts": (4,), "responses": 4, "new_tokens": 8, "prompt": 12},
    **{"micro": 2, "memory_tokens": 64, "memory_lengths": (32,)},
)


class Place(SimpleNamespace):
    """Where and on what is measured: device, dtype and its name, sizes, the name and config of the shape, repetitions."""

    @property
    def rate(self) -> float:
        """FLOP/s of a large matrix product."""
        return matrix_rate(self.device, self.dtype, 8192 if self.device == "cuda" else 512)

    @property
    def bandwidth(self) -> float:
        """Bytes read and written per second by a large copy."""
        return copy_rate(self.device, 2**30 if self.device == "cuda" else 2**24)


def measure(options: Options, parts: tuple[str, ...] = ()) -> list[Result]:
    """A 1B-parameter Llama on one device: shares of its matrix rate and bandwidth, PPO by phase, memory."""
    from denserl.trainer.engine import init_distributed, pick_device

    init_distributed(pick_device(options.device))
    is_gpu, name = options.device == "cuda", options.model or "1b"
    place = Place(
        **{"device": options.device, "sizes": FULL if is_gpu else SMALL, "name": name, "config": llama_config(name)},
        **{"dtype": torch.bfloat16 if is_gpu else torch.float32, "precision": "bf16" if is_gpu else "fp32"},
        repeats=options.repeats or 5,
    )
    print(f"{torch.cuda.get_device_name() if is_gpu else 'CPU'}, torch {torch.__version__}: ", end="")
    print(f"{place.rate / 1e12:.4g} TFLOP/s in {place.precision}, copies {place.bandwidth / 1e12:.3g} TB/s", flush=True)
    results = []
    for part in parts or PARTS:
        print(f"{part}, with {held()} in use", flush=True)
        try:
            for found in PARTS[part](place):
                results += [found] if isinstance(found, Result) else []
                print(table([found]) if isinstance(found, Result) else found, flush=True)
        except Exception:
            # What the others have measured, and will, stands.
            traceback.print_exc()
            print(f"{part}: FAILED", flush=True)
        free()
    return results


def free() -> None:
    """Let go of what is not used any more, and measure the most memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def llama_config(name: str) -> LlamaConfig:
    """The shape of Llama 3.2 1B or Llama 3.1 8B, or LAYERSxHIDDEN with a vocabulary of 8192."""
    shared = {"vocab_size": 128256, "num_key_value_heads": 8, "num_attention_heads": 32, "max_position_embeddings": 8192}
    if name == "1b":
        sizes = {**shared, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    elif name == "8b":
        sizes = {**shared, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    else:
        layers, hidden = map(int, name.split("x"))
        sizes = {"vocab_size": 8192, "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
        sizes["num_attention_heads"] = hidden // 32
    return LlamaConfig(**sizes, tie_word_embeddings=name != "8b", pad_token_id=PAD)


def build(model_class, config: LlamaConfig, place: Place):
    """A random model on the device, without padding, as Llama is measured to run (tests/cuda)."""
    torch.manual_seed(0)
    with torch.device(place.device):
        model = model_class._from_config(config, dtype=place.dtype, attn_implementation="sdpa")
    return run_as(model, Measured())


def policy(place: Place):
    return build(LlamaForCausalLM, place.config, place)


def reward_model(place: Place, config: LlamaConfig | None = None):
    config = deepcopy(config or place.config)
    config.num_labels = 1
    return build(LlamaForSequenceClassification, config, place)


def random_ids(lengths: list[int], vocabulary: int, seed: int) -> list[list[int]]:
    """Rows of random tokens."""
    generator = random.Random(seed)
    return [[generator.randrange(1, vocabulary) for _ in range(length)] for length in lengths]


def uniform_ids(count: int, low: int, high: int, vocabulary: int, seed: int) -> list[list[int]]:
    """The same, their lengths uniform in low..high."""
    generator = random.Random(seed)
    return random_ids([generator.randint(low, high) for _ in range(count)], vocabulary, seed)


def real_lengths(count: int, deciles: tuple[int, ...], shorter: int, seed: int) -> list[int]:
    """Lengths that are spread as the deciles say, each the same for the same number, and so many times shorter."""
    generator, lengths = random.Random(seed), []
    for i in range(count):
        part, within = divmod(10 * (i + generator.random()) / count, 1)
        low, high = deciles[int(part)], deciles[int(part) + 1]
        lengths.append(max(1, round((low + within * (high - low)) / shorter)))
    generator.shuffle(lengths)
    return lengths


class Pairs:
    """The pairs of an optimiser step, in micro-batches of like length as the trainer deals them."""

    def __init__(self, place: Place):
        sizes, vocabulary = place.sizes, place.config.vocab_size
        prompts = random_ids(real_lengths(sizes.pairs, PROMPT_DECILES, sizes.shorter, 0), vocabulary, 0)
        sides = [
            random_ids(real_lengths(sizes.pairs, RESPONSE_DECILES, sizes.shorter, seed), vocabulary, seed) for seed in (1, 2)
        ]
        pairs = sorted(zip(prompts, *sides, strict=True), key=lambda pair: sum(map(len, pair)))
        self.pairs, self.lengths, self.prefixes, self.batches = len(pairs), [], [], []
        for first in range(0, len(pairs), sizes.micro_pairs):
            some = pairs[first : first + sizes.micro_pairs]
            rows = [(prompt, side[n]) for n in (0, 1) for prompt, *side in some]
            self.batches.append(pad_responses(*zip(*rows, strict=True), PAD).to(place.device))
            self.lengths += [len(prompt) + len(response) for prompt, response in rows]
            # A pair's prompt need not be computed twice, nor is it counted twice.
            self.prefixes += [0] * len(some) + [len(prompt) for prompt, *_ in some]

    @property
    def tokens(self) -> int:
        """Of a step, each prompt once."""
        return sum(self.lengths) - sum(self.prefixes)


def reward_loss(model: nn.Module, batch: ResponseBatch) -> torch.Tensor:
    """The project's segment-level loss of pairs, on entropies of which a quarter lies above the threshold."""
    entropy = 4 * torch.rand(batch.response_mask.shape, device=batch.input_ids.device)
    segments = segment_by_entropy(entropy, batch.response_mask, 3.0)
    scores = aggregate(segment_scores(response_token_rewards(model, batch), segments), segments.counts)
    return pair_losses(*scores.chunk(2)).mean()


def policy_loss(model: nn.Module, batch: ResponseBatch) -> torch.Tensor:
    """What a policy's update costs: log-probabilities of responses, and their gradient."""
    logprobs, _ = token_logprob_entropy(model, *batch[:3], batch.response_mask.shape[1], 1.0, batch.shared, False)
    return -logprobs.sum() / batch.response_mask.sum()


def engine_of(module: nn.Module, place: Place, micro: int, accumulation: int, lora_rank: int = 0):
    """The engine with which the commands train, its activations recomputed by `recompute`."""
    from denserl.trainer.config import OptimisationConfig
    from denserl.trainer.engine import deepspeed_config, train_engine

    config = OptimisationConfig(zero_stage=2, lora_rank=lora_rank)
    return train_engine(
        module, deepspeed_config(config, place.precision, micro, accumulation), config, lr=LEARNING_RATE, total_steps=1000
    )


def recompute(model: nn.Module, wanted: bool) -> nn.Module:
    """Gradient checkpointing switched as --gradient_checkpointing does."""
    from denserl.models.adapters import recompute_activations

    model.gradient_checkpointing_disable()
    recompute_activations(model, wanted, "cuda")
    return model


def engine_step(engine: nn.Module, batches: list[ResponseBatch]) -> Callable[[], None]:
    """One optimiser step of reward-model training."""

    def step() -> None:
        engine.train()
        for batch in batches:
            engine.backward(reward_loss(engine, batch))
            engine.step()

    return step


def train_reward_model(place: Place) -> Iterator[Result]:
    """Optimiser steps at segment level with stored entropies and real lengths, as a share of the matrix rate."""
    pairs = Pairs(place)
    model = reward_model(place)
    engine = engine_of(model, place, place.sizes.micro_pairs, len(pairs.batches))
    for wanted in (True, False):
        recompute(model, wanted)
        yield training_share(place, pairs, engine_step(engine, pairs.batches), "recomputed" if wanted else "kept")
    engine.destroy()


def profile_step(place: Place) -> Iterator[str]:
    """Seconds of a step's passes and of its optimiser, and the operations of one step that take longest."""
    pairs = Pairs(place)
    engine = engine_of(recompute(reward_model(place), False), place, place.sizes.micro_pairs, len(pairs.batches))
    step = engine_step(engine, pairs.batches)
    step()
    engine.train()
    spent = {"forward": 0.0, "backward": 0.0, "step": 0.0}
    for batch in pairs.batches:
        loss: list[torch.Tensor] = []
        spent["forward"] += timed(functools.partial(lambda loss, batch: loss.append(reward_loss(engine, batch)), loss, batch))()
        spent["backward"] += timed(functools.partial(engine.backward, loss[0]))()
        spent["step"] += timed(engine.step)()
    yield "a step, its parts waited for: " + ", ".join(f"{part} {seconds:.3g} s" for part, seconds in spent.items())
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if place.device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as seen:
        step()
    averages = seen.key_averages()
    yield averages.table(sort_by="self_device_time_total", row_limit=14, max_name_column_width=60)
    yield averages.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=60)
    engine.destroy()


def training_share(place: Place, pairs: Pairs, step: Callable[[], None], how: str, work: float = 1.0) -> Result:
    """A training step as a share of the matrix rate; what is recomputed is not counted as work.

    work: what share of a full training's it does.
    """
    step()
    free()
    seconds = [timed(step)() for _ in range(place.repeats)]
    flops = work * flop_floors.step_flops(place.config, pairs.lengths, prefixes=pairs.prefixes)
    note = f"{pairs.pairs} pairs, {pairs.tokens} tokens a step, longest {max(pairs.lengths)}: {median(seconds):.3g} s,"
    note += f" {pairs.tokens / median(seconds):.0f} tokens/s; {flops / 1e12:.3g} TFLOP a step; peak {peak()}"
    name = f"RM training, activations {how}, TFLOP/s of the matrix rate, {place.name}"
    return shares_result(3, name, [flops / place.rate / spent for spent in seconds], place.rate / 1e12, REACH_TRAINING, note)


def held() -> str:
    return f"{torch.cuda.memory_allocated() / GIB:.2f} GiB"


def peak() -> str:
    return f"{torch.cuda.max_memory_allocated() / GIB:.2f} GiB"


def compare_kernels(place: Place) -> Iterator[str]:
    """Forward and backward passes of a step, without the optimiser: as they are, and with Liger's kernels."""
    pairs, ways = Pairs(place), {"as it is": None, **({"Liger": liger} if place.device == "cuda" else {})}
    for make, loss in ((reward_model, reward_loss), (policy, policy_loss)):
        model = make(place).train()
        expected = None
        for way, change in ways.items():
            if change is not None:
                change(model)
            for wanted in (True, False):
                recompute(model, wanted)

                def step(model=model, loss=loss) -> None:
                    model.zero_grad(set_to_none=True)
                    for batch in pairs.batches:
                        loss(model, batch).backward()

                first = timed(step)()
                step()
                free()
                seconds = sorted(timed(step)() for _ in range(place.repeats))
                with torch.no_grad():
                    found = loss_values(model, pairs.batches[0])
                expected = found if expected is None else expected
                off = ((found - expected).norm() / expected.norm()).item()
                yield (
                    f"{loss.__name__}, {way}, activations {'recomputed' if wanted else 'kept'}: {median(seconds):.4g} s"
                    f" ({seconds[0]:.4g} - {seconds[-1]:.4g}), {pairs.tokens / median(seconds):.0f} tokens/s, peak {peak()};"
                    f" first {first:.1f} s; outputs off by {off:.2g}"
                )
        model = None
        free()


def loss_values(model: nn.Module, batch: ResponseBatch) -> torch.Tensor:
    """What the losses are made of, to be compared."""
    if hasattr(model, "score"):
        return response_token_rewards(model, batch) * batch.response_mask
    return token_logprob_entropy(model, *batch[:3], batch.response_mask.shape[1], 1.0, batch.shared, False)[0]


def liger(model: nn.Module) -> None:
    use_liger_kernel(stock_model(model))


def sample(place: Place) -> Iterator[Result]:
    """Rollouts in which no response ends before the limit, against the time that their bytes need at the measured bandwidth."""
    model, sizes = policy(place).eval(), place.sizes
    for rows in sizes.rollouts:
        prompts = uniform_ids(rows, sizes.prompt // 8, sizes.prompt, place.config.vocab_size, 2)
        sampler, streams = endless_sampler(model, sizes, rows), [(0, number) for number in range(rows)]
        sampler(prompts, streams)
        free()
        again = functools.partial(sampler, prompts, streams)
        seconds = [timed(again)() for _ in range(min(place.repeats, 3))]
        size, tokens = torch.finfo(place.dtype).bits // 8, rows * sizes.new_tokens
        moved = flop_floors.decoding_bytes(place.config, [*map(len, prompts)], [sizes.new_tokens] * rows, size)
        floor = moved / place.bandwidth
        note = f"{rows} rows, {sizes.new_tokens} tokens each: {median(seconds):.3g} s, {tokens / median(seconds):.0f} tokens/s;"
        note += f" {moved / 1e9:.3g} GB of weights and caches, floor {floor:.3g} s; peak {peak()}"
        name = f"rollouts of {rows}, tokens/s of the bandwidth floor, {place.name}"
        yield shares_result(5, name, [floor / spent for spent in seconds], tokens / floor, REACH_ROLLOUTS, note)
    yield decoding_step(model, sizes.rollouts[0], place)


def decoding_step(model, rows: int, place: Place) -> str:
    """What one token for all rows of a rollout costs halfway: recorded and replayed, and as it is; and drawing it."""
    sizes = place.sizes
    prompts = uniform_ids(rows, sizes.prompt // 8, sizes.prompt, place.config.vocab_size, 2)
    prompts = sorted((prompt + [1] * (sizes.new_tokens // 2) for prompt in prompts), key=len, reverse=True)
    with torch.no_grad():
        decoder = Decoder(model, sizes.new_tokens // 2)
        scores, number = decoder.admit(prompts), torch.rand(len(prompts), device=place.device, dtype=torch.float64)

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


def endless_sampler(model, sizes: Sizes, rows: int) -> PolicySampler:
    """The project's sampler, for responses that never end early: no token has the number -1."""
    return PolicySampler(lambda: model, [-1], PAD, sizes.new_tokens, batch_size=rows)


def shares_result(row: int, name: str, shares: list[float], whole: float, reach: float, note: str) -> Result:
    """A rate as a share of what the device gives."""
    share = median(shares)
    return Result(row, name, share * whole, whole, share, quartiles(shares), reach, share >= reach, note)


def plan_of(place: Place, **options):
    """The planner of `denserl plan` for the shape, one GPU; and ZeRO 2, which bf16 runs at, with activations recomputed."""
    from denserl.memory.config import PlanConfig
    from denserl.memory.phases import Planner
    from denserl.memory.search import setting_given

    folder = Path(options.pop("folder"))
    config = deepcopy(place.config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    planned = PlanConfig(model=str(folder), dtype=place.precision, **options)
    return Planner(planned), setting_given(planned, 2)


def memory_by_length(place: Place) -> Iterator[str]:
    """Peak memory of reward-model steps of equally long rows, against what `denserl plan` says of them."""
    sizes, vocabulary = place.sizes, place.config.vocab_size
    model = recompute(reward_model(place), True)
    pairs = sizes.memory_tokens // min(sizes.memory_lengths) // 2
    engine = engine_of(model, place, pairs, 2)
    for length in sizes.memory_lengths:
        pairs = sizes.memory_tokens // length // 2
        prompts = random_ids([length // 4] * 2 * pairs, vocabulary, 3)
        responses = random_ids([length - length // 4] * 2 * pairs, vocabulary, 4)
        step = engine_step(engine, [pad_responses(prompts, responses, PAD).to(place.device)] * 2)
        step()
        free()
        step()
        with TemporaryDirectory() as folder:
            planner, setting = plan_of(place, folder=folder, micro_batch_size=pairs, max_length=length)
            planned = planner.reward_training(setting)
        yield f"peak memory, RM training, {2 * pairs} rows x {length} tokens: {peak()}; planned {planned / GIB:.2f} GiB"
    engine.destroy()


def ppo_phases(place: Place) -> Iterator[str]:
    """Seconds, shares and peak memory of rollout, scoring and update in an iteration, as it is and with Liger's kernels."""
    sizes, peaks = place.sizes, {}
    with TemporaryDirectory() as folder:
        trainer, models = ppo_trainer(place, Path(folder) / "run")
        planner, setting = plan_of(
            place,
            **{"folder": folder, "micro_batch_size": sizes.micro, "sample_batch_size": sizes.responses},
            **{"max_prompt_length": sizes.prompt, "max_new_tokens": sizes.new_tokens},
        )
        planned = [getattr(planner, phase)(setting) / GIB for phase in ("rollout", "scoring", "update")]
        for phase in ("sample", "score", "update"):
            setattr(trainer, phase, with_peak(getattr(trainer, phase), phase, peaks))
        yield f"PPO iteration of {sizes.responses} responses of {sizes.new_tokens} tokens: {phases_of(trainer, peaks, planned)}"
        if place.device == "cuda":
            for model in models:
                liger(model)
            yield f"the same with Liger's kernels: {phases_of(trainer, peaks, planned)}"
        for engine in trainer.models.engines.values():
            engine.destroy()


def phases_of(trainer, peaks: dict[str, str], planned: list[float]) -> str:
    """The phases of the second of two iterations."""
    trainer.iterate()
    metrics = trainer.iterate()
    seconds = {phase: metrics[f"{phase}_seconds"] for phase in ("rollout", "scoring", "update")}
    total = sum(seconds.values())
    parts = [
        f"{phase} {spent:.2f} s ({spent / total:.0%}), peak {most}, planned {plan:.2f} GiB"
        for (phase, spent), most, plan in zip(seconds.items(), peaks.values(), planned, strict=True)
    ]
    return f"{total:.2f} s: {'; '.join(parts)}"


def with_peak(function: Callable, phase: str, peaks: dict[str, str]) -> Callable:
    """The function, after which the most memory in it is noted."""

    def measured(*args, **kw):
        free()
        found = function(*args, **kw)
        peaks[phase] = peak()
        return found

    return measured


def ppo_trainer(place: Place, folder: Path):
    """The project's PPO loop on random models, all resident on the device; and the models."""
    from denserl.ppo_utils.dense_reward import DenseReward, Penalties
    from denserl.rewards.sources.reward_model import RewardModelSource
    from denserl.segmentation import Segmenter
    from denserl.trainer.ppo_data import Schedule
    from denserl.trainer.ppo_metrics import RunLog
    from denserl.trainer.ppo_models import Models
    from denserl.trainer.ppo_rewards import PaidSource, Rewards
    from denserl.trainer.ppo_trainer import PPOTrainer
    from denserl.trainer.reference import PolicyModule
    from denserl.trainer.trackers import Trackers

    sizes = place.sizes
    trained, reference = (policy(place) for _ in range(2))
    critic, scorer = (reward_model(place) for _ in range(2))
    for frozen in (reference, scorer):
        frozen.eval().requires_grad_(False)
    for model in (trained, critic):
        recompute(model, True)
    accumulation = sizes.responses // sizes.micro
    models = Models(
        actor=engine_of(PolicyModule(trained), place, sizes.micro, accumulation),
        critic=engine_of(critic, place, sizes.micro, accumulation),
        reference=PolicyModule(reference),
        current_policy=lambda: trained,
        trained_policy=trained,
    )
    paid = PaidSource("reward_model", RewardModelSource([scorer]), Segmenter(8.5), DenseReward("even", None))
    # Nothing reads the texts.
    tokenizer = SimpleNamespace(pad_token_id=PAD, batch_decode=lambda rows, **kw: [""] * len(rows))
    trainer = PPOTrainer(
        ppo_config(sizes, folder),
        Schedule(iterations=2, steps_per_iteration=1),
        models,
        Rewards([paid], Penalties()),
        endless_sampler(trained, sizes, sizes.responses),
        RunLog(Trackers(folder, [], {}), tokenizer, folder, samples=0),
        tokenizer=tokenizer,
        prompts=Prompts(uniform_ids(sizes.responses, sizes.prompt // 8, sizes.prompt, place.config.vocab_size, 5)),
        eval_prompts=None,
        device=torch.device(place.device),
    )
    return trainer, (trained, reference, critic, scorer)


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
        zero_stage=2,
        eval_every=0,
        save_every=0,
        keep_checkpoints=1,
        max_skipped_steps=5,
        samples_logged=0,
        seed=0,
    )


def train_adapters(place: Place) -> Iterator[Result]:
    """Reward-model training of adapters of rank 16 on a frozen 8B (on CPU: on the shape at hand), as a share."""
    from denserl.models.adapters import prepare_model
    from denserl.models.config import AdapterConfig

    if place.device == "cuda":
        place = Place(**{**vars(place), "config": llama_config("8b"), "name": "8b, LoRA"})
    pairs, config = Pairs(place), AdapterConfig(lora_rank=16, gradient_checkpointing=True)
    adapted = prepare_model(reward_model(place), config, "SEQ_CLS", place.device)
    engine = engine_of(adapted, place, place.sizes.micro_pairs, len(pairs.batches), lora_rank=16)
    step = engine_step(engine, pairs.batches)
    # Frozen weights have no gradient: two thirds of the work.
    yield training_share(place, pairs, step, "recomputed", 2 / 3)
    if place.device == "cuda":
        liger(adapted)
        yield training_share(place, pairs, step, "recomputed, Liger", 2 / 3)
    engine.destroy()


PARTS: dict[str, Callable[[Place], Iterator[Result | str]]] = {
    "reward": train_reward_model,
    "profile": profile_step,
    "rollouts": sample,
    "ppo": ppo_phases,
    "memory": memory_by_length,
    "adapters": train_adapters,
    "kernels": compare_kernels,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=[*PARTS], help="what to measure; default: all")
    parsed = parser.parse_args()
    options = as_options(parsed)
    results: list[Result] = []
    ending_well(lambda: results.extend(measure(options, tuple(parsed.parts))))
    print(table([result._replace(note="") for result in results]))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
