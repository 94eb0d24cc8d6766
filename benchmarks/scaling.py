"""Row 8: time and peak memory of an RM step and of a PPO iteration as batch and length double, and peaks against the plan.

Peaks are taken in a fresh process for each size, times in one process for each series; the first with an allocator that gives
freed memory back at once, the second with one that keeps it, for its page faults would grow faster than the tokens. Rows are
random tokens of one length, so that the number of tokens is known. Plans come from the functions behind `denserl plan`.
"""

import ctypes
import gc
import multiprocessing
import os
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import fixtures
import flop_floors
import numpy as np
import torch
from datasets import Dataset
from denserl_side import ppo_options, ppo_trainer, train
from harness import Options, Result, limited, run_alone, synchronize
from transformers import AutoConfig, PrinterCallback, ProgressCallback, TrainerCallback

from denserl.memory.config import PlanConfig
from denserl.memory.phases import Planner
from denserl.memory.search import setting_given
from denserl.models import logprob
from denserl.models.reward_models import load_reward_model
from denserl.models.tokenizers import load_tokenizer
from denserl.segmentation import Segmenter
from denserl.trainer.reward_config import RewardConfig
from denserl.trainer.reward_trainer import RewardTrainer
from denserl.trainer.start import start_run
from denserl.trainer.supervised import training_arguments

SHAPE, WARM_UP_SHAPE = "4x128", "1x32"
DOUBLINGS = 4
REPEATS = {"RM step": 4, "PPO iteration": 2}
# The smallest size of either series. A pair is two sequences with a short prompt in common; half of a rollout is prompt.
SEQUENCES, LENGTH, PAIR_PROMPT = 4, 128, 8
# What a token may cost at the largest size against the smallest, and how far a planned peak may be from the measured one.
REACH_GROWTH, REACH_PLAN = 1.1, 0.1
# For glibc, before a process starts: freed tensors go back at once, so that a peak is of tensors that live together, or never.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**36)}
MIB = 2**20


class Size(NamedTuple):
    """An RM step over `sequences` / 2 pairs, or a PPO iteration over so many responses; `length`: tokens of a sequence."""

    kind: str
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def measure(options: Options) -> list[Result]:
    """Growth of time and peak memory over four doublings (limits), and peaks against the plan."""
    results = []
    # Made here, so that no measuring process makes them.
    for shape in (WARM_UP_SHAPE, options.model or SHAPE):
        fixtures.reward_model(options, fixtures.language_model(options, shape, 0.0))
    for kind in ("RM step", "PPO iteration"):
        series = {name: [sized(kind, name, doubling) for doubling in range(DOUBLINGS + 1)] for name in ("batch", "length")}
        every = dict.fromkeys(size for sizes in series.values() for size in sizes)
        peaks = {size: in_process("forkserver", GIVE_BACK, peak_of, options, size) for size in every}
        for name, sizes in series.items():
            seconds = in_process("spawn", KEEP, seconds_of, options, sizes)
            results += [time_growth(options, name, sizes, seconds), memory_growth(name, sizes, [peaks[size] for size in sizes])]
        results.append(against_plan(options, peaks))
    return results


def sized(kind: str, series: str, doubling: int) -> Size:
    factor = 2**doubling
    return Size(kind, SEQUENCES * factor, LENGTH) if series == "batch" else Size(kind, SEQUENCES, LENGTH * factor)


def in_process(method: str, allocator: dict[str, str], function, *args):
    """What a function returns in a fresh process. Those of the fork server have everything imported, and its allocator."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["deepspeed", "scaling"])
    with mock.patch.dict(os.environ, allocator), context.Pool(1) as pool:
        return pool.apply(function, args)


def seconds_of(options: Options, sizes: list[Size]) -> list[list[float]]:
    """Seconds of each repetition of each size; the sizes take turns, so that a drift of the machine favours none."""
    torch.set_num_threads(options.threads)
    shape, rounds = options.model or SHAPE, range(options.repeats or REPEATS[sizes[0].kind])
    # The first step of each is a warm-up.
    seconds = [[repeated(options, size, shape, 2)[-1] for size in sizes] for _ in rounds]
    return [list(of_size) for of_size in zip(*seconds, strict=True)]


def peak_of(options: Options, size: Size) -> int:
    """The most bytes above those from before, in two repetitions: in the second, the optimiser's state is there."""
    torch.set_num_threads(options.threads)
    # Libraries are loaded, and their buffers made, in a run of a much smaller model.
    repeated(options, sized(size.kind, "batch", 0), WARM_UP_SHAPE, 1)
    gc.collect()
    if options.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = process_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    repeated(options, size, options.model or SHAPE, 2)
    return (torch.cuda.max_memory_allocated() if options.device == "cuda" else process_bytes("VmHWM")) - before


def process_bytes(name: str) -> int:
    """A line of /proc/self/status that is in kB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def repeated(options: Options, size: Size, shape: str, count: int) -> list[float]:
    """Build the trainer of a size, and take some steps; the seconds of each."""
    model = fixtures.language_model(options, shape, 0.0)
    run = reward_steps if size.kind == "RM step" else ppo_iterations
    return run(options, size, model, options.runs / f"out/scaling-{shape}", count)


def reward_steps(options: Options, size: Size, model: Path, out: Path, count: int) -> list[float]:
    pairs = size.sequences // 2
    settings = RewardConfig(
        model=str(model),
        data=[],
        output_dir=str(out),
        batch_size=pairs,
        micro_batch_size=pairs,
        eval_steps=0,
        save_steps=0,
        device=options.device,
        dtype="fp32",
    )
    device, dtype = start_run(settings)
    tokenizer, clock = load_tokenizer(settings.model), StepClock()
    trainer = RewardTrainer(
        model=load_reward_model(str(fixtures.reward_model(options, model)), dtype),
        args=training_arguments(settings, device, dtype),
        train_dataset=random_pairs(pairs * count, size.length, len(tokenizer)),
        processing_class=tokenizer,
        segmenter=Segmenter(0.5),
        pad_id=tokenizer.pad_token_id,
        callbacks=[clock],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    train(trainer, settings)
    return clock.seconds


def ppo_iterations(options: Options, size: Size, model: Path, out: Path, count: int) -> list[float]:
    rows, half = size.sequences, size.length // 2
    out.mkdir(parents=True, exist_ok=True)
    batches = ("rollout_batch_size", "train_batch_size", "micro_batch_size", "sample_batch_size")
    settings = ppo_options(
        model,
        fixtures.reward_model(options, model),
        out,
        data=[str(fixtures.pairs_file(options))],
        limit=rows,
        entropy_threshold=1.75,
        max_new_tokens=half,
        device=options.device,
        dtype="fp32",
        **dict.fromkeys(batches, rows),
    )
    trainer, numbers = ppo_trainer(settings), np.random.default_rng(0)
    prompts = numbers.integers(4, len(trainer.tokenizer), (rows, half)).tolist()
    trainer.prompts = Dataset.from_dict({"prompt": [""] * rows, "prompt_ids": prompts})
    return [clocked(trainer.iterate) for _ in range(count)]


def random_pairs(count: int, length: int, vocabulary: int) -> Dataset:
    """Pairs of random tokens; both sequences of a pair have `length` tokens."""
    numbers = np.random.default_rng(0)
    shape = (count, length - PAIR_PROMPT)
    columns = {"prompt_ids": numbers.integers(4, vocabulary, (count, PAIR_PROMPT)), "margin": np.zeros(count)}
    for side in ("chosen", "rejected"):
        columns |= {f"{side}_ids": numbers.integers(4, vocabulary, shape), f"{side}_entropy": numbers.random(shape)}
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


def clocked(function) -> float:
    synchronize()
    began = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - began


class StepClock(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kw):
        synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kw):
        synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def time_growth(options: Options, series: str, sizes: list[Size], seconds: list[list[float]]) -> Result:
    """What a further token costs in time at the last doubling against those before, attention aside where length grows.

    What is set aside is the part that grows with the square of the length, but no more than twice what arithmetic gives
    attention, so that a square of our own would show.
    """
    tokens = np.array([size.tokens for size in sizes], dtype=float)
    medians = np.array([np.median(part) for part in seconds])
    note = "seconds: " + ", ".join(f"{size.tokens} tokens {value:.3f}" for size, value in zip(sizes, medians, strict=True))
    attention, growth = np.zeros(len(sizes)), []
    if series == "length":
        shares, fitted = np.array([attention_share(options, size) for size in sizes]), quadratic_part(tokens, medians)
        attention = np.minimum(fitted, 2 * shares * medians)
        note += f"; attention at the largest: {fitted[-1] / medians[-1]:.0%} as fitted, {shares[-1]:.0%} by arithmetic"
    for repeat in zip(*seconds, strict=True):
        others = np.array(repeat) - attention
        before = (others[-2] - others[0]) / (tokens[-2] - tokens[0])
        growth.append((others[-1] - others[-2]) / (tokens[-1] - tokens[-2]) / before)
    return limited(8, f"{sizes[0].kind}, {series} x16, time per further token (limit)", growth, REACH_GROWTH, note=note)


def quadratic_part(tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The seconds that grow with the square of the length, of a least-squares fit of relative errors to a + b n + c n^2."""
    terms = np.stack([np.ones_like(tokens), tokens, tokens**2], 1)
    fitted = np.linalg.lstsq(terms / seconds[:, None], np.ones_like(seconds), rcond=None)[0]
    return max(fitted[2], 0.0) * tokens**2


def attention_share(options: Options, size: Size) -> float:
    """Of the FLOP of all layers, those between pairs of tokens."""
    config = AutoConfig.from_pretrained(fixtures.language_model(options, options.model or SHAPE, 0.0))
    products = 2 * flop_floors.layer_parameters(config) * size.tokens
    return 1 - products / flop_floors.forward_flops(config, [size.length] * size.sequences)


def memory_growth(series: str, sizes: list[Size], peaks: list[int]) -> Result:
    """What a further token costs in memory at the last doubling against the first."""
    tokens = [size.tokens for size in sizes]
    costs = np.diff(peaks) / np.diff(tokens)
    note = "KiB of each further token, doubling by doubling: " + ", ".join(f"{cost / 1024:.1f}" for cost in costs)
    name = f"{sizes[0].kind}, {series} x16, memory per token (limit)"
    return limited(8, name, [costs[-1] / costs[0]], REACH_GROWTH, note=note)


def against_plan(options: Options, peaks: dict[Size, int]) -> Result:
    """How far a planned peak is from the measured one, as a share of this, where it is furthest."""
    rows, distances = [], []
    for size, peak in peaks.items():
        expected = planned(options, size)
        distances.append(abs(expected / peak - 1))
        rows.append(f"{size.sequences} x {size.length}: planned {expected / MIB:.0f}, measured {peak / MIB:.0f} MiB")
    kind = next(iter(peaks)).kind
    name = f"{kind}, planned peak against measured (limit)"
    return limited(8, name, [max(distances)], REACH_PLAN, note="\n".join(rows))


def planned(options: Options, size: Size) -> int:
    """The peak that `denserl plan` would print for this run, in bytes."""
    model, half = fixtures.language_model(options, options.model or SHAPE, 0.0), size.length // 2
    settings = PlanConfig(
        model=str(model),
        dtype="fp32",
        micro_batch_size=size.sequences // 2 if size.kind == "RM step" else size.sequences,
        max_length=size.length,
        max_prompt_length=half,
        max_new_tokens=half,
        sample_batch_size=size.sequences,
    )
    planner, setting = Planner(settings), setting_given(settings, 0)
    phases = [planner.reward_training] if size.kind == "RM step" else [planner.rollout, planner.scoring, planner.update]
    # The plan is for GPUs, which are given larger blocks of logits at a time.
    factor = 1 if options.device == "cpu" else logprob.DEVICE_FACTOR
    with mock.patch.object(logprob, "DEVICE_FACTOR", factor):
        return max(phase(setting) for phase in phases)


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
